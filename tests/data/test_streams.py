"""Streams are functions of their seed and shard, and can be put where they once were."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from t5lite.data.sources import ArraySource
from t5lite.data.streams import ExampleStream, MixtureStream, RowStream
from t5lite.errors import InputError

LENGTHS = {"inputs": 12, "targets": 6}


def source(count, name="arrays", first=0):
    """Examples that are told apart by their first token, `first + 1 ..`."""
    return ArraySource(
        name,
        [
            {"inputs": np.full(1 + i % 11, first + i + 1), "targets": np.full(1 + i % 5, 3)}
            for i in range(count)
        ],
    )


def noisy(examples, rng):
    """Several or no examples for one, with chance in them, and some order to hold on to."""
    for example in examples:
        for _ in range(int(rng.integers(0, 3))):
            yield {**example, "targets": rng.integers(1, 99, 1 + len(example["targets"]))}


def as_it_is(examples, rng):
    del rng
    yield from examples


def ids(examples):
    return [int(example["inputs"][0]) for example in examples]


def same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("count", [5, 64, 65, 199])
def test_each_pass_has_every_example_once(count):
    shards = [
        ExampleStream(source(count), as_it_is, shard=s, num_shards=5, window=7) for s in range(5)
    ]
    for _ in range(3):
        taken = [list(islice(stream, len(range(s, count, 5)))) for s, stream in enumerate(shards)]
        assert sorted(ids(each for part in taken for each in part)) == list(range(1, count + 1))


def test_windows_are_shuffled_anew_in_every_pass_shard_and_seed():
    def order(seed, shard, epoch):
        stream = ExampleStream(
            source(80), as_it_is, shard=shard, num_shards=2, seed=seed, window=20
        )
        passes = [ids(islice(stream, 40)) for _ in range(epoch + 1)]
        return passes[epoch]

    first = order(0, 0, 0)
    assert first != sorted(first)
    assert sorted(first[:20]) == list(range(1, 41, 2))  # the window of raw examples 0, 2, ..
    assert first == order(0, 0, 0)
    assert first != order(0, 0, 1)
    assert first != order(1, 0, 0)
    ranks = [(token - 2) // 2 for token in order(0, 1, 0)]
    assert ranks != [(token - 1) // 2 for token in first]
    assert np.argsort(first[:20]).tolist() != np.argsort(first[20:]).tolist()


def test_fewer_examples_than_shards_go_to_every_shard():
    orders = []
    for shard in range(4):
        stream = ExampleStream(source(3), as_it_is, shard=shard, num_shards=4)
        orders.append(ids(islice(stream, 30)))
        assert Counter(orders[-1]) == {1: 10, 2: 10, 3: 10}
        assert stream.epoch == 9
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("seed", range(15))
def test_a_loaded_stream_continues(seed):
    rng = np.random.default_rng(seed)

    def streams():
        common = {"shard": 1, "num_shards": 3, "seed": seed}
        big = ExampleStream(source(100), noisy, window=int(size), **common)
        small = ExampleStream(source(20, "small", 1000), noisy, window=4, **common)
        return big, MixtureStream([big, small], [3, 1], seed=seed, shard=1)

    size = rng.integers(1, 40)
    for choice in range(2):
        stream = streams()[choice]
        taken = int(rng.integers(0, 150))
        list(islice(stream, taken))
        state = json.loads(json.dumps(stream.state()))
        expected = list(islice(stream, 80))
        fresh = streams()[choice]
        fresh.load(state)
        assert fresh.state() == state
        same(list(islice(fresh, 80)), expected)
        stream.load(state)
        same(list(islice(stream, 80)), expected)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_loaded_rows_continue(seed, packed):
    def rows():
        stream = ExampleStream(source(60), noisy, seed=seed, window=16)
        return RowStream(stream, LENGTHS, packed=packed, block_rows=3)

    rng = np.random.default_rng(seed)
    stream = rows()
    for count in rng.integers(1, 9, 8):
        state = json.loads(json.dumps(stream.state()))
        fresh = rows()
        fresh.load(state)
        same([stream.take(int(count))], [fresh.take(int(count))])


def test_the_size_of_takes_changes_nothing():
    def rows():
        return RowStream(ExampleStream(source(60), noisy), LENGTHS, packed=True, block_rows=3)

    whole, stream = rows().take(40), rows()
    parts = [stream.take(count) for count in (1, 7, 2, 30)]
    for name, value in whole.items():
        assert len(value) == 40
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_one_pass_hold_all_tokens_once(packed):
    stream = ExampleStream(source(90), as_it_is, window=8, repeat=False)
    rows = RowStream(stream, LENGTHS, packed=packed, block_rows=4)
    taken = rows.take(1000)
    counts = Counter(taken["inputs"][taken["inputs"] > 0].tolist())
    assert counts == {i + 1: 1 + i % 11 for i in range(90)}
    assert len(rows.take(5)["inputs"]) == 0
    assert (len(taken["inputs"]) == 90) != packed


def test_unshuffled_passes_keep_the_order():
    stream = ExampleStream(source(50), as_it_is, window=8, shuffle=False, repeat=False)
    assert ids(stream) == list(range(1, 51))


def test_mixtures_follow_their_rates_and_never_end():
    streams = [
        ExampleStream(source(10, "a"), as_it_is),
        ExampleStream(source(10, "b", 100), as_it_is),
    ]
    mixed = MixtureStream(streams, [1, 3])
    share = np.mean(np.array(ids(islice(mixed, 4000))) > 100)
    assert abs(share - 0.75) < 0.03
    assert mixed.epoch == min(streams[0].epoch, streams[1].epoch) > 90


def test_mixtures_go_far_back():
    """Further than the draws that are made at a time."""
    streams = [
        ExampleStream(source(10, name, first), as_it_is) for name, first in [("a", 0), ("b", 100)]
    ]
    mixed = MixtureStream(streams, [1, 3])
    list(islice(mixed, 100))
    state = mixed.state()
    first = ids(islice(mixed, 1500))
    mixed.load(state)
    assert ids(islice(mixed, 1500)) == first


def test_without_rates_streams_take_turns_until_all_have_ended():
    sizes = {"a": 2, "b": 5, "c": 3}
    streams = [
        ExampleStream(source(n, name, 100 * i), as_it_is, shuffle=False, repeat=False)
        for i, (name, n) in enumerate(sizes.items())
    ]
    assert ids(MixtureStream(streams, None)) == [1, 101, 201, 2, 102, 202, 103, 203, 104, 105]


@pytest.mark.parametrize("repeat", [True, False])
def test_nothing_is_an_error_and_not_an_endless_search(repeat):
    for empty in (
        ExampleStream(source(0), as_it_is, repeat=repeat),
        ExampleStream(source(9), lambda examples, rng: iter(()), repeat=repeat),
    ):
        with pytest.raises(InputError, match="arrays has no examples"):
            next(empty)
    stream = ExampleStream(source(9), lambda examples, rng: iter(()), shard=2, num_shards=3)
    with pytest.raises(InputError, match=r"shard 2 of 3 .* num_shards"):
        next(stream)


def test_a_pass_that_ends_in_nothing_does_not_end_the_stream():
    """The filter leaves nothing of the last window, where the stream is put."""
    stream = ExampleStream(
        source(20),
        lambda examples, rng: (each for each in examples if each["inputs"][0] <= 10),
        window=10,
        shuffle=False,
    )
    list(islice(stream, 10))
    state = stream.state()
    assert ids(islice(stream, 3)) == [1, 2, 3]
    for position in (state, [0, 1, 0]):
        stream.load(position)
        assert ids(islice(stream, 3)) == [1, 2, 3]
        assert stream.epoch == 1
