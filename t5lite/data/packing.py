"""Examples into rows: packed, several to a row, or padded, one to a row. Pure NumPy."""

from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.errors import InputError, unknown
from t5lite.rows import Example, Rows, RowSpec, token_names


def pack(
    examples: Sequence[Example], specs: Mapping[str, RowSpec], *, decreasing: bool = True
) -> Rows:
    """Packs examples into few rows by first-fit decreasing, no example divided or lost.

    Each example goes to the first row with room for all of its arrays, after earlier examples; the
    largest first, unless that takes more rows, as it may with several arrays. Time is O(tokens)
    plus O(examples * rows) to find the rows: pack some hundreds of examples at a time.

    Args:
      examples: arrays by name, `[n, *inner]`; of `per_example` specs `[*inner]`.
      specs: of the arrays to pack.
      decreasing: whether the largest examples may go first.

    Returns:
      For each of `specs` an array `[rows, length, *inner]` of its dtype, 0 on padding. Tokens also
      have `name_segment_ids` `[rows, length]` int32: 1.. on the first, second .. example of the
      row, the same number in all arrays, and 0 on padding. The value of segment i of a
      `per_example` array is number i - 1.
    Raises: InputError if an array is missing, too long or of another shape or type.
    """
    sizes = sizes_of(examples, specs)
    # Arrays aligned with tokens fit wherever the tokens do.
    columns = [column for column, spec in enumerate(specs.values()) if spec.along is None]
    limits = np.array([spec.length for spec in specs.values()])[columns]
    fitted = sizes[:, columns]
    orders = [np.argsort(-(fitted / limits).max(axis=1, initial=0), kind="stable")]
    if not decreasing or len(limits) > 1:
        orders[:] = [np.arange(len(examples)), *orders[:decreasing]]
    fits = [_first_fit(fitted, limits, order.tolist()) for order in orders]
    _, (rows, offsets, segments) = min(fits, key=lambda fit: fit[0])
    names = [name for name, spec in specs.items() if spec.along is None]
    starts = {name: offsets[:, column] for column, name in enumerate(names)}
    return _placed(examples, specs, sizes, rows=rows, starts=starts, segments=segments)


def pad(examples: Sequence[Example], specs: Mapping[str, RowSpec]) -> Rows:
    """Returns one row for each example, with arguments and errors of `pack`.

    `per_example` arrays are `[rows, 1, *inner]`, and tokens also have `name_lengths` `[rows]`
    int32, the mark of rows with one example.
    """
    sizes = sizes_of(examples, specs)
    placed = _placed(
        examples,
        specs,
        sizes,
        rows=np.arange(len(examples)),
        starts=dict.fromkeys(specs, np.zeros(len(examples), np.int64)),
        segments=None,
    )
    columns = {name: column for column, name in enumerate(specs)}
    lengths = {f"{n}_lengths": sizes[:, columns[n]].astype(np.int32) for n in token_names(specs)}
    return placed | lengths


def empty_rows(specs: Mapping[str, RowSpec], num_rows: int, *, packed: bool) -> Rows:
    """Returns rows without examples, as of `pack` or `pad`."""
    rows = (pack if packed else pad)([], specs)
    return {
        name: np.zeros((num_rows, *values.shape[1:]), values.dtype) for name, values in rows.items()
    }


def sizes_of(examples: Sequence[Example], specs: Mapping[str, RowSpec]) -> np.ndarray:
    """Returns the positions that each example takes in each array: `[examples, arrays]` int64."""
    sizes = np.ones((len(examples), len(specs)), np.int64)
    for column, (name, spec) in enumerate(specs.items()):
        for example in examples:
            if name not in example:
                raise InputError(
                    f"an example lacks the feature {name!r}: it has {', '.join(sorted(example))}"
                )
        arrays = [np.asarray(example[name]) for example in examples]
        outer = 0 if spec.kind == "per_example" else 1
        for shape, kind in {(values.shape[outer:], values.dtype.kind) for values in arrays}:
            if shape != spec.inner:
                raise InputError(
                    f"feature {name!r} of an example has values of shape {list(shape)}, not "
                    f"{list(spec.inner)}: declare their shape in the objective's rows()"
                )
            if kind == "f" and np.dtype(spec.dtype).kind in "iub":
                raise InputError(
                    f"feature {name!r} of an example holds floats and its rows {spec.dtype}: "
                    "declare the dtype in the objective's rows()"
                )
        if outer and arrays:
            sizes[:, column] = [len(values) for values in arrays]
            if (longest := int(sizes[:, column].max())) > spec.length:
                raise InputError(
                    f"feature {name!r} of an example has {longest} tokens and a row has room for "
                    f"{spec.length}; raise lengths[{name!r}] or let the objective's prepare() cut "
                    "it"
                )
    columns = {name: column for column, name in enumerate(specs)}
    for name, spec in specs.items():
        if spec.along and spec.along not in columns:
            raise unknown(f"RowSpec.along of {name!r}", spec.along, columns, field="RowSpec.along")
        if spec.along and not np.array_equal(
            sizes[:, columns[name]], sizes[:, columns[spec.along]]
        ):
            raise InputError(
                f"feature {name!r} of an example lacks a value for each token of {spec.along!r}: "
                "its prepare() must give both the same length"
            )
    return sizes


def _placed(
    examples: Sequence[Example],
    specs: Mapping[str, RowSpec],
    sizes: np.ndarray,
    *,
    rows: np.ndarray,
    starts: Mapping[str, np.ndarray],
    segments: np.ndarray | None,
) -> Rows:
    """Returns rows with each example at its `row [n]`, from its `starts [n]` there."""
    num_rows, packed = int(rows.max(initial=-1)) + 1, segments is not None
    placed = {}
    for column, (name, spec) in enumerate(specs.items()):
        size, filled = sizes[:, column], spec.zeros(num_rows, packed=packed)
        length = filled.shape[1]
        before = np.cumsum(size) - size
        begins = rows * length + starts[spec.along or name]
        positions = np.arange(size.sum()) + np.repeat(begins - before, size)
        if examples:
            join = np.stack if spec.kind == "per_example" else np.concatenate
            filled.reshape(-1, *spec.inner)[positions] = join([item[name] for item in examples])
        placed[name] = filled
        if spec.kind == "tokens":
            ids = np.zeros(num_rows * length, np.int32)
            ids[positions] = 1 if segments is None else np.repeat(segments, size)
            placed[f"{name}_segment_ids"] = ids.reshape(num_rows, length)
    return placed


def _first_fit(
    sizes: np.ndarray, limits: np.ndarray, order: Sequence[int]
) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the number of rows, and examples' `row [n]`, `offset [n, arrays]`, `segment [n]`."""
    # Room used by row, an array for each feature, which is faster than an axis of features.
    first, *rest = (np.zeros(len(sizes), np.int64) for _ in limits)
    starts: list[list[int]] = [[0] * len(limits) for _ in range(len(sizes))]  # room used, by row
    rooms, needs = (limits - sizes).tolist(), sizes.tolist()
    rows, segments, offsets = [0] * len(sizes), [0] * len(sizes), [[0]] * len(sizes)
    counts, openers = [0] * len(sizes), list[int]()  # of each row: examples, the first of them
    for i in order:
        # The row after the last is empty: any example fits there.
        end = len(openers) + 1
        fits = first[:end] <= rooms[i][0]
        for used, most in zip(rest, rooms[i][1:], strict=True):
            fits &= used[:end] <= most
        row = int(fits.argmax())
        if row == len(openers):
            openers.append(i)
        counts[row] += 1
        rows[i], segments[i], offsets[i] = row, counts[row], starts[row]
        starts[row] = [a + b for a, b in zip(starts[row], needs[i], strict=True)]
        for used, start in zip((first, *rest), starts[row], strict=True):
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
