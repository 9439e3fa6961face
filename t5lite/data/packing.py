"""Examples into rows: packed, several to a row, or padded, one to a row. Pure numpy."""

from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.errors import InputError

Example = Mapping[str, np.ndarray]


def pack(
    examples: Sequence[Example], lengths: Mapping[str, int], *, decreasing: bool = True
) -> dict[str, np.ndarray]:
    """Packs examples into few rows by first-fit decreasing, no example divided or lost.

    Each example goes to the first row with room for all of its features, after the examples that
    are there; the largest first, unless that takes more rows, as it may with several features.
    Time is O(tokens), plus O(examples * rows) of the cheapest kind for finding the row: give it
    some hundreds of examples at a time.

    Args:
      examples: 1-D integer (or float) arrays by feature, each at most `lengths[feature]` long.
      lengths: the features to pack and the length of their rows, in tokens.
      decreasing: whether the largest examples may go first; False: always in their own order.

    Returns:
      For every feature `name`, `[rows, length]` int32 arrays: `name`, the tokens, 0 behind them
      (float32, if the examples hold floats);
      `name_segment_ids`, 1.. for the first, second .. example of the row, 0 behind them (one
      example has one number in all features); `name_positions`, 0.. from each example's start.

    Raises:
      InputError: if a feature is missing or too long.
    """
    sizes = token_counts(examples, lengths)
    limits = np.array(list(lengths.values()))
    orders = [np.argsort(-(sizes / limits).max(axis=1, initial=0), kind="stable")]
    if not decreasing or len(lengths) > 1:
        orders[:] = [np.arange(len(examples)), *orders[:decreasing]]
    fits = [_first_fit(sizes, limits, order.tolist()) for order in orders]
    num_rows, (rows, offsets, segments) = min(fits, key=lambda fit: fit[0])
    packed = {}
    for column, (name, length) in enumerate(lengths.items()):
        size = sizes[:, column]
        starts = np.cumsum(size) - size
        within = np.arange(size.sum()) - np.repeat(starts, size)
        places = np.repeat(rows * length + offsets[:, column], size) + within
        for suffix, values in (
            ("", _joined(examples, name)),
            ("_segment_ids", np.repeat(segments, size)),
            ("_positions", within),
        ):
            flat = np.zeros(num_rows * length, values.dtype if not suffix else np.int32)
            flat[places] = values
            packed[name + suffix] = flat.reshape(num_rows, length)
    return packed


def pad_with_segments(
    examples: Sequence[Example], lengths: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Gives each example a row of its own, and says which places it fills.

    For vocabularies whose id 0 is a token: nothing else tells it from what fills the rows up.

    Args:
      examples: as `pad` takes them.
      lengths: likewise.

    Returns:
      What `pad` does, and for every feature `name_segment_ids`, `[examples, length]` int32: 1 on
      the tokens, 0 behind them.

    Raises:
      InputError: if a feature is missing or too long.
    """
    sizes, rows = token_counts(examples, lengths), pad(examples, lengths)
    for column, (name, length) in enumerate(lengths.items()):
        filled = np.arange(length) < sizes[:, column, None]
        rows[f"{name}_segment_ids"] = filled.astype(np.int32)
    return rows


def pad(examples: Sequence[Example], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Gives each example a row of its own.

    Args:
      examples: 1-D integer (or float) arrays by feature, each at most `lengths[feature]` long.
      lengths: the features to take and the length of their rows, in tokens.

    Returns:
      For every feature an `[examples, length]` int32 array (float32, if the examples hold
      floats), 0 behind the tokens.

    Raises:
      InputError: if a feature is missing or too long.
    """
    sizes = token_counts(examples, lengths)
    padded = {}
    for column, (name, length) in enumerate(lengths.items()):
        values = _joined(examples, name)
        padded[name] = np.zeros((len(examples), length), values.dtype)
        padded[name][np.arange(length) < sizes[:, column, None]] = values
    return padded


def token_counts(examples: Sequence[Example], lengths: Mapping[str, int]) -> np.ndarray:
    """Counts tokens.

    Returns:
      `[examples, features]` int64, features in the order of `lengths`.

    Raises:
      InputError: if a feature is missing, or too long for a row.
    """
    counts = np.zeros((len(examples), len(lengths)), np.int64)
    for i, example in enumerate(examples):
        for column, (name, length) in enumerate(lengths.items()):
            if name not in example:
                raise InputError(
                    f"an example lacks the feature {name!r}: it has {', '.join(sorted(example))}"
                )
            counts[i, column] = size = example[name].size
            if size > length:
                raise InputError(
                    f"feature {name!r} of an example has {size} tokens and a row has room for "
                    f"{length}; raise lengths[{name!r}] or let the objective's prepare() cut it"
                )
    return counts


def _first_fit(
    sizes: np.ndarray, limits: np.ndarray, order: Sequence[int]
) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Finds how many rows, and each example's `row [n]`, `offset [n, features]`, `segment [n]`."""
    # By row; there are never more rows than examples. Features apart are faster than an axis.
    first, *others = (np.zeros(len(sizes), np.int64) for _ in limits)
    starts: list[list[int]] = [[0] * len(limits) for _ in range(len(sizes))]  # room used, by row
    rooms, needs = (limits - sizes).tolist(), sizes.tolist()
    rows, segments, offsets = [0] * len(sizes), [0] * len(sizes), [[0]] * len(sizes)
    counts, openers = [0] * len(sizes), list[int]()  # of each row: examples, the first of them
    for i in order:
        # The row after the last is empty and fits whatever fits at all.
        end = len(openers) + 1
        fits = first[:end] <= rooms[i][0]
        for used, most in zip(others, rooms[i][1:], strict=True):
            fits &= used[:end] <= most
        row = int(fits.argmax())
        if row == len(openers):
            openers.append(i)
        counts[row] += 1
        rows[i], segments[i], offsets[i] = row, counts[row], starts[row]
        starts[row] = [a + b for a, b in zip(starts[row], needs[i], strict=True)]
        for used, start in zip((first, *others), starts[row], strict=True):
            used[row] = start
    # A row's first example may be its largest; as these came in random order, so do the rows.
    rank = np.empty(len(openers), np.int64)
    rank[np.argsort(openers)] = np.arange(len(openers))
    shape = (len(sizes), len(limits))
    return len(openers), (
        rank[np.array(rows, int)],
        np.array(offsets, int).reshape(shape),
        np.array(segments, int),
    )


def _joined(examples: Sequence[Example], name: str) -> np.ndarray:
    """Returns all values of a feature, one example behind the other, int32 or float32."""
    if not examples:
        return np.zeros(0, np.int32)
    values = np.concatenate([example[name] for example in examples])
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32, copy=False)
