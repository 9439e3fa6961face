"""Streams are functions of their seed and shard, and can be put where they once were."""

import itertools
import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from t5lite.data.array_data import ArraySource
from t5lite.data.order import permuted
from t5lite.data.sources import dealt
from t5lite.data.streams.examples import ExampleStream
from t5lite.data.streams.mixture import MixtureStream
from t5lite.data.streams.rows import RowStream
from t5lite.data.tasks.dealing import Dealing
from t5lite.errors import InputError
from t5lite.rows import RowSpec

LENGTHS = {"inputs": 12, "targets": 6}
SPECS = {name: RowSpec(length) for name, length in LENGTHS.items()}


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


@pytest.mark.parametrize("count", [1, 3, 5, 64, 65, 199])
def test_shards_deal_out_each_epoch_once_whatever_its_size(count):
    shards = [
        ExampleStream(source(count), as_it_is, shard=s, num_shards=5, window=7) for s in range(5)
    ]
    # A round has one example of every shard; an epoch may end within one, and even several.
    rounds = np.array([ids(next(stream) for stream in shards) for _ in range(3 * count)])
    seen = Counter()
    for number, examples in enumerate(rounds.tolist(), 1):
        seen.update(examples)
        assert {seen[each] for each in range(1, count + 1)} <= {
            5 * number // count,
            -(-5 * number // count),
        }
    assert sum(stream.read for stream in shards) == 15 * count


def orders(seed=0, *, count=400, num_shards=2, epochs=2):
    """The examples of each epoch, of all shards in turn."""
    streams = [
        ExampleStream(source(count), as_it_is, shard=s, num_shards=num_shards, seed=seed, window=20)
        for s in range(num_shards)
    ]
    return [[ids(islice(stream, count // num_shards)) for stream in streams] for _ in range(epochs)]


def test_every_epoch_and_seed_has_an_order_of_its_own_across_windows_and_shards():
    (first, *_), second = orders()
    assert orders()[0][0] == first
    assert orders(seed=1)[0][0] != first
    # What a shard and a window have in one epoch is all over the place in the next.
    assert 60 < len(set(first) & set(second[0])) < 140
    assert len(set(first[:20]) & set(second[0][:20])) < 8
    assert abs(np.corrcoef(first, np.arange(200))[0, 1]) < 0.25


def test_of_few_examples_every_shard_gets_all_in_time():
    orders = []
    for shard in range(4):
        stream = ExampleStream(source(3), as_it_is, shard=shard, num_shards=4)
        orders.append(ids(islice(stream, 60)))
        assert set(orders[-1]) == {1, 2, 3}
        assert stream.read / stream.pass_size == 80
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
        return RowStream(stream, SPECS, packed=packed, block_rows=3)

    rng = np.random.default_rng(seed)
    stream = rows()
    for count in rng.integers(1, 9, 8):
        state = json.loads(json.dumps(stream.state()))
        fresh = rows()
        fresh.load(state)
        same([stream.take(int(count))], [fresh.take(int(count))])


def test_the_size_of_takes_changes_nothing():
    def rows():
        return RowStream(ExampleStream(source(60), noisy), SPECS, packed=True, block_rows=3)

    whole, stream = rows().take(40), rows()
    parts = [stream.take(count) for count in (1, 7, 2, 30)]
    for name, value in whole.items():
        assert len(value) == 40
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


@pytest.mark.parametrize("packed", [False, True])
def test_shards_read_their_blocks_in_different_batches(packed):
    """No batch waits for a block of every shard, after the first one."""
    key = {"num_shards": 8, "seed": 0}
    streams = [ExampleStream(source(4000), as_it_is, shard=shard, **key) for shard in range(8)]
    rows = [
        RowStream(stream, SPECS, packed=packed, block_rows=32, phase=4 * shard)
        for shard, stream in enumerate(streams)
    ]
    reads = []
    for _ in range(120):
        before = sum(stream.read for stream in streams)
        for shard in rows:
            shard.take(1)
        reads.append(sum(stream.read for stream in streams) - before)
    assert max(reads[1:]) <= reads[0] / 3


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_one_pass_hold_all_tokens_once(packed):
    stream = ExampleStream(source(90), as_it_is, window=8, repeat=False)
    rows = RowStream(stream, SPECS, packed=packed, block_rows=4)
    taken = rows.take(1000)
    counts = Counter(taken["inputs"][taken["inputs"] > 0].tolist())
    assert counts == {i + 1: 1 + i % 11 for i in range(90)}
    assert len(rows.take(5)["inputs"]) == 0
    assert (len(taken["inputs"]) == 90) != packed


def test_mixtures_follow_their_rates_and_never_end():
    streams = [
        ExampleStream(source(10, "a"), as_it_is),
        ExampleStream(source(10, "b", 100), as_it_is),
    ]
    mixed = MixtureStream(streams, [1, 3])
    share = np.mean(np.array(ids(islice(mixed, 4000))) > 100)
    assert abs(share - 0.75) < 0.03
    assert mixed.passes == min(stream.passes for stream in streams) > 90
    assert mixed.read == sum(stream.read for stream in streams) == 4000
    assert mixed.pass_size == 20


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


@pytest.mark.parametrize("counted", [True, False])
def test_without_rates_each_example_comes_once_in_proportion_or_in_turn(counted):
    sizes = {"a": 20, "b": 80, "c": 40}
    sources = [source(n, name, 1000 * i) for i, (name, n) in enumerate(sizes.items())]
    for each in sources:
        each.count = lambda each=each: each.num_examples if counted else None
    streams = [ExampleStream(each, as_it_is, repeat=False) for each in sources]
    given = np.array(ids(MixtureStream(streams, None)))
    assert sorted(given) == [
        1000 * i + k + 1 for i, n in enumerate(sizes.values()) for k in range(n)
    ]
    for some in (35, 70):
        counts = np.bincount(given[:some] // 1000)
        expected = (
            some * np.array([20, 80, 40]) / 140 if counted else [some / 3, some / 3, some / 3]
        )
        if counted or some < 60:  # until one has ended
            np.testing.assert_allclose(counts, expected, atol=1)


def test_nothing_is_an_error_and_not_an_endless_search():
    for empty in (
        ExampleStream(source(0), as_it_is),
        ExampleStream(source(9), lambda examples, rng: iter(())),
    ):
        with pytest.raises(InputError, match="arrays has no examples"):
            next(empty)
    for count in (1, 9, 40_000):
        stream = ExampleStream(
            Numbers(count), lambda examples, rng: (e for e in examples if 0), shard=2, num_shards=3
        )
        with pytest.raises(InputError, match=r"shard 2 of 3 .* num_shards"):
            next(stream)
    assert list(ExampleStream(source(9), lambda examples, rng: iter(()), repeat=False)) == []


class Numbers:
    """A source of numbers, which are made when they are read."""

    name = "numbers"

    def __init__(self, num_examples):
        self.num_examples = num_examples

    def windows(self, **which):
        return dealt(self.num_examples, self.name, **which)

    def examples(self, window, *, seed):
        return ({"inputs": np.array([number]), "targets": np.ones(1, int)} for number in window)


def test_a_few_useful_examples_among_many_shards_are_enough():
    """Each shard reads most epochs in vain."""

    def useful(examples, rng):
        return (example for example in examples if example["inputs"][0] == 7)

    stream = ExampleStream(Numbers(9), useful, shard=2, num_shards=16)
    assert ids(islice(stream, 5)) == [7] * 5
    assert stream.read > 5
    assert 0 < stream.vanished <= stream.read


def test_a_pass_that_ends_in_nothing_does_not_end_the_stream():
    """The filter leaves nothing of some windows, at one of which the stream is put."""

    def few(examples, rng):
        return (example for example in examples if example["inputs"][0] < 3)

    stream = ExampleStream(Numbers(40), few, window=10)
    first = ids(islice(stream, 6))
    assert sorted(first[:3]) == sorted(first[3:]) == [0, 1, 2]
    for position in range(4):
        stream.load([0, position, 0, 10 * position])
        assert set(ids(islice(stream, 6))) == {0, 1, 2}


@pytest.mark.parametrize("count", [3, 200])
def test_a_position_of_the_first_format_goes_on_at_the_same_epoch(count):
    """Then every shard had all of few examples, and the same ones of many in every epoch."""
    stream = ExampleStream(Numbers(count), as_it_is, shard=1, num_shards=8, window=10)
    stream.load([6, 1, 4])
    read = 6 * 3 + 10 + 4 if count == 3 else 6 * 25 + 14
    assert stream.read == pytest.approx(read, abs=10)  # the window is redone
    next(stream)
    assert stream.read == pytest.approx(read, abs=2)
    assert stream.passes == pytest.approx(read * 8 / count, abs=1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 4096, 4097, 5000, 2**13, 70_001])
def test_an_order_is_a_permutation_that_places_tell_apart(size):
    whole = permuted(np.arange(size), size, "a", 1)
    assert np.array_equal(np.sort(whole), np.arange(size))
    some = np.arange(size)[:: max(size // 7, 1)]
    assert np.array_equal(permuted(some, size, "a", 1), whole[some])
    if size > 100:
        for other in (permuted(np.arange(size), size, "a", 2), np.arange(size)):
            assert (whole == other).mean() < 0.01
            assert abs(np.corrcoef(whole, other)[0, 1]) < 4 / np.sqrt(size)


def test_an_order_is_uniform():
    """Of places of a size that needs the network: by chi-square, over keys."""
    size, cells = 5000, 10
    found = np.stack([permuted(np.arange(40), size, "a", key) for key in range(1000)])
    for values in (found[:, 0], found[:, 17], (found[:, 1] - found[:, 0]) % size):
        counts = np.bincount(values * cells // size, minlength=cells)
        assert (((counts - 100) ** 2) / 100).sum() < 30  # 9 degrees of freedom: 4e-4


def test_an_order_of_any_size_costs_nothing():
    places = np.array([0, 1, 2**61])
    found = permuted(places, 2**62 - 5, "a")
    assert len(set(found.tolist())) == 3
    assert ((found >= 0) & (found < 2**62 - 5)).all()


@pytest.mark.parametrize("num_shards", [3, 8])
def test_one_reading_is_dealt_to_shards_that_take_turns(num_shards):
    reads = []

    def reading():
        for start in range(0, 1000, 60):
            reads.append(start)
            yield np.arange(start, min(start + 60, 1000), dtype=object)[:, np.newaxis]

    dealing = Dealing(reading(), num_shards, 10)
    assert [dealing.join(shard) for shard in range(num_shards)] == [True] * num_shards
    assert not dealing.join(0)  # who begins again reads again
    found = {shard: [] for shard in range(num_shards)}
    for _ in range(60):
        for shard, values in found.items():
            values += dealing.window(shard).ravel().tolist()
    assert found == {s: list(range(s, 1000, num_shards)) for s in range(num_shards)}
    assert len(reads) == 17


def test_shards_of_other_processes_are_not_waited_for():
    rows = (np.full((100, 1), "x", object) for _ in itertools.count())
    dealing = Dealing(rows, 4, 10)
    assert dealing.join(0)
    for _ in range(300):
        assert len(dealing.window(0)) == 10
    assert not dealing.join(1)  # given up
    assert sum(len(values) for values in dealing._waiting[0]) < 100
    assert list(dealing._waiting) == [0]
