"""Examples into rows: packed, several to a row, or padded, one to a row. Pure numpy."""

from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.errors import InputError

Example = Mapping[str, np.ndarray]


def pack(examples: Sequence[Example], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Packs examples into as few rows as first-fit finds, no example divided or lost.

    Each example goes to the first row with room for all of its features, behind the examples that
    are there. Time is O(tokens), plus O(examples * rows) of the cheapest kind for finding the row:
    give it some hundreds of examples at a time.

    Args:
      examples: 1-D integer (or float) arrays by feature, each at most `lengths[feature]` long.
      lengths: the features to pack and the length of their rows, in tokens.

    Returns:
      For every feature `name`, `[rows, length]` int32 arrays: `name`, the tokens, 0 behind them
      (float32, if the examples hold floats);
      `name_segment_ids`, 1.. for the first, second .. example of the row, 0 behind them (one
      example has one number in all features); `name_positions`, 0.. from each example's start.

    Raises:
      InputError: if a feature is missing or too long.
    """
    sizes = token_counts(examples, lengths)
    rows, offsets, segments = _first_fit(sizes, np.array(list(lengths.values())))
    num_rows = int(rows.max(initial=-1)) + 1
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


def _first_fit(sizes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds each example's `row [n]`, `offset [n, features]` in it and `segment [n]`, from 1."""
    num_examples = len(sizes)
    used = np.zeros_like(sizes)  # by row; there are never more rows than examples
    counts, segments = np.zeros(num_examples, np.int64), np.zeros(num_examples, np.int64)
    rows = np.zeros(num_examples, np.int64)
    offsets = np.zeros_like(sizes)
    room = lengths - sizes
    num_rows = 0
    for i in range(num_examples):
        # The row after the last is empty and fits whatever fits at all.
        row = int((used[: num_rows + 1] <= room[i]).all(axis=1).argmax())
        num_rows = max(num_rows, row + 1)
        rows[i] = row
        offsets[i] = used[row]
        used[row] += sizes[i]
        counts[row] += 1
        segments[i] = counts[row]
    return rows, offsets, segments


def _joined(examples: Sequence[Example], name: str) -> np.ndarray:
    """Returns all values of a feature, one example behind the other, int32 or float32."""
    if not examples:
        return np.zeros(0, np.int32)
    values = np.concatenate([example[name] for example in examples])
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32, copy=False)
