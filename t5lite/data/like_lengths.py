"""Batches of rows of like lengths, cut to one of a few lengths: less padding, few compilations.

A block of a shard's rows is sorted by length and delivered in groups, in an order that the seed and
the block's number decide, the same in every shard, so that a batch's rows have similar lengths. A
batch is cut only if one process makes all of its rows; several processes keep the full length.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.rows import Example, Rows, RowSpec, token_names

_PARTS = 4  # lengths that batches are cut to: quarters of the full one
_SHORT, _LONG = 8, 128  # lengths are multiples of these; of the second from 512 on


def cut_lengths(length: int) -> list[int]:
    """Returns the lengths, ascending up to `length`, that rows are cut to."""
    step = _LONG if length >= 512 else _SHORT
    quarters = [math.ceil(length * part / _PARTS / step) * step for part in range(1, _PARTS + 1)]
    return [min(quarter, length) for quarter in quarters]


def order_by_length(
    examples: Sequence[Example],
    specs: Mapping[str, RowSpec],
    *,
    size: int,
    seed: Sequence[int],
) -> list[Example]:
    """Returns examples sorted by the share of their rows that they fill, in groups of `size`.

    Neighbours stay together in a group; the `seed` decides the order of the groups.
    """
    names = token_names(specs)
    shares = [max(len(item[name]) / specs[name].length for name in names) for item in examples]
    order = np.argsort(np.asarray(shares), kind="stable")
    starts = np.random.default_rng(list(seed)).permutation(-(-len(order) // size)) * size
    return [examples[index] for start in starts for index in order[start : start + size]]


def cut(rows: Rows, specs: Mapping[str, RowSpec]) -> Rows:
    """Returns a batch's rows, made by `packing.pad`, without columns of padding; see `cut_lengths`.

    All tokens, and arrays aligned with them, are cut to the same part of their length.
    """
    part, tokens = 0, token_names(specs)
    for name in tokens:
        columns = np.flatnonzero(rows[f"{name}_segment_ids"].any(axis=0))
        used = int(columns[-1]) + 1 if columns.size else 0
        part = max(part, int(np.searchsorted(cut_lengths(specs[name].length), used)))
    shorter = dict(rows)
    for name, spec in specs.items():
        if spec.kind != "per_example":
            length = cut_lengths(spec.length)[part]
            for array in (name, f"{name}_segment_ids") if name in tokens else (name,):
                shorter[array] = rows[array][:, :length]
    return shorter
