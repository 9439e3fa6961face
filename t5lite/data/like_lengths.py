"""Batches of rows of like lengths, cut to one of a few lengths: less padding, few compilations.

A block of a shard's rows is sorted by length and given out in groups, in an order that the seed and
the block's number decide: the same in every shard, so that all of a batch's rows come from the same
part of their shards' lengths. Which length a batch is cut to depends on all of its rows: it is cut
where one process makes them all. Several processes get the same rows at their full length.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.data.sources import Example

Groups = Sequence[Sequence[str]]
"""Features whose rows are cut together, the first of which has the tokens."""

_PARTS = 4  # lengths that batches are cut to: quarters of the full one
_SHORT, _LONG = 8, 128  # lengths are multiples of these; of the second from 512 on
_SUFFIXES = ("", "_segment_ids", "_positions")


def cut_lengths(length: int) -> list[int]:
    """Returns the lengths, ascending, that rows of a length are cut to; the last is that length."""
    step = _LONG if length >= 512 else _SHORT
    quarters = [math.ceil(length * part / _PARTS / step) * step for part in range(1, _PARTS + 1)]
    return [min(quarter, length) for quarter in quarters]


def order_by_length(
    examples: Sequence[Example],
    lengths: Mapping[str, int],
    groups: Groups,
    *,
    size: int,
    seed: Sequence[int],
) -> list[Example]:
    """Returns examples sorted by the share of their rows that they fill, in shuffled groups.

    Args:
      examples: arrays by feature.
      lengths: of the rows.
      groups: whose first features count.
      size: of a group of neighbours, which stay together.
      seed: decides the order of the groups.
    """
    firsts = [names[0] for names in groups]
    shares = [max(len(each[name]) / lengths[name] for name in firsts) for each in examples]
    order = np.argsort(np.asarray(shares), kind="stable")
    starts = np.random.default_rng(list(seed)).permutation(-(-len(order) // size)) * size
    return [examples[index] for start in starts for index in order[start : start + size]]


def cut(rows: Mapping[str, np.ndarray], groups: Groups) -> dict[str, np.ndarray]:
    """Returns a batch's rows without the columns that hold only padding, as far as `cut_lengths`.

    Args:
      rows: `[batch, length]` by feature, with `_segment_ids` where 0 is a token.
      groups: which features are cut together; all groups are cut to the same part of their length.
    """
    part = 0
    for first, *_ in groups:
        tokens = rows.get(f"{first}_segment_ids", rows[first])
        places = np.flatnonzero(tokens.any(axis=0))
        used = int(places[-1]) + 1 if places.size else 0
        part = max(part, int(np.searchsorted(cut_lengths(tokens.shape[1]), used)))
    found = dict(rows)
    for names in groups:
        length = cut_lengths(rows[names[0]].shape[1])[part]
        for name in (f"{name}{suffix}" for name in names for suffix in _SUFFIXES):
            if name in found:
                found[name] = found[name][:, :length]
    return found
