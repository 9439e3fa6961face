"""Small data in memory, objectives without a model, and batches of several processes as one."""

import functools
import itertools

import numpy as np

from t5lite.data.array_data import ArrayData
from t5lite.rows import HostHalf

LENGTHS = {"inputs": 16, "targets": 8}


class Copy(HostHalf):
    """An objective with chance in it, several examples or none for one, and renamed arrays."""

    features = ("inputs", "targets")

    def __init__(self, fail_at=None, error=OSError("the disk is on fire")):
        self.fail_at, self.error = fail_at, error

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            if example["inputs"][0] == self.fail_at:
                raise self.error
            for _ in range(int(rng.integers(0, 3))):
                yield {
                    "inputs": example["inputs"][: lengths["inputs"]],
                    "targets": rng.integers(1, 99, int(rng.integers(1, lengths["targets"] + 1))),
                }

    def batch(self, rows):
        weights = (rows["targets_segment_ids"] > 0).astype(np.float32)
        return {"model_" + name: value for name, value in rows.items()} | {"weights": weights}


class Plain(Copy):
    """Examples as they are."""

    def prepare(self, examples, *, lengths, vocabulary, rng):
        yield from examples


def arrays(count, first=0):
    return [
        {"inputs": np.full(1 + i % 13, first + i + 1), "targets": np.full(1 + i % 7, 3)}
        for i in range(count)
    ]


def make(**changes):
    defaults = {"lengths": LENGTHS, "batch_size": 16, "num_shards": 8, "window": 10}
    return ArrayData(arrays(300), arrays(45, 1000), **(defaults | {"block_rows": 3} | changes))


def take(batches, count):
    """The next batches of all processes, put together as the devices see them."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in itertools.islice(zip(*batches, strict=True), count)
    ]


def shards_of_all(data, process_count):
    """The shards of processes whose devices hold contiguous rows."""
    rows = np.arange(data.batch_size).reshape(process_count, -1)
    return [data.shards_of(each) for each in rows.tolist()]


def open_all(data, process_count, objective=None, seed=5):
    return [
        data.train_batches(objective or Copy(), seed=seed, shards=shards)
        for shards in shards_of_all(data, process_count)
    ]


# Rows of processes as slices of TPUs have them: of a ring through the machines, shared in part.
SCATTERED = ((0, 1, 14, 15), (2, 3, 4, 5), (4, 5, 6, 7, 12, 13), (8, 9, 10, 11))


def as_one(data, parts, batches):
    """Puts each process's rows where its devices hold them; those of several must be the same."""
    whole = {}
    for rows, batch in zip(parts, batches, strict=True):
        for name, values in batch.items():
            place = whole.setdefault(name, {})
            for row, value in zip(rows, values, strict=True):
                np.testing.assert_array_equal(place.setdefault(row, value), value)
    rows = range(data.batch_size)
    return {name: np.stack([place[row] for row in rows]) for name, place in whole.items()}


def validation_of_all(data, objective, parts, **options):
    """The validation batches of several processes, which agree on how many there are."""
    most = max(
        sum(1 for _ in data.validation_batches(objective, shards=shards, agree=some, **options))
        for shards in parts
        for some in [lambda more, found=[]: found.append(more) or more or len(found) == 1]
    )

    def agree(more, asked):
        asked.append(more)
        return len(asked) <= most

    return [
        data.validation_batches(
            objective, shards=shards, agree=functools.partial(agree, asked=[]), **options
        )
        for shards in parts
    ]


def close(batches):
    for each in batches:
        each.close()


def same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
