"""Batches of arrays: the same with any number of processes, and after any interruption."""

import dataclasses
import gc
import itertools
import json
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from small_data import (
    LENGTHS,
    SCATTERED,
    Copy,
    Plain,
    arrays,
    as_one,
    close,
    make,
    open_all,
    same,
    shards_of_all,
    take,
    validation_of_all,
)

from t5lite.data import batches as data_batches
from t5lite.data import validation as data_validation
from t5lite.data.array_data import ArrayData
from t5lite.data.batches import joint_state, merge_states
from t5lite.data.mixture import MixtureData
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.errors import InputError
from t5lite.objectives import SpanCorruption
from t5lite.rows import RowSpec


def different(left, right):
    return any((a[name] != b[name]).any() for a, b in zip(left, right, strict=True) for name in a)


@pytest.mark.parametrize("pack", [True, False])
def test_the_number_of_processes_changes_nothing(pack):
    data = make(pack=pack)
    batches = {count: open_all(data, count) for count in (1, 2, 4, 8)}
    first = take(batches[1], 25)
    assert first[0]["model_inputs"].shape == (16, 16)
    for count in (2, 4, 8):
        same(take(batches[count], 25), first)
    for each in batches.values():
        close(each)


@pytest.mark.parametrize("pack", [True, False])
def test_processes_may_hold_any_whole_shards(pack):
    data = make(pack=pack)
    shards = [data.shards_of(rows) for rows in SCATTERED]
    assert shards == [(0, 7), (1, 2), (2, 3, 6), (4, 5)]
    (whole,) = open_all(data, 1)
    started = [data.train_batches(Copy(), seed=5, shards=each) for each in shards]
    for _ in range(9):
        same([as_one(data, SCATTERED, map(next, started))], [next(whole)])
    state = json.loads(json.dumps(merge_states(each.state_dict() for each in started)))
    assert state == whole.state_dict()
    continued = [data.train_batches(Copy(), seed=5, shards=each) for each in reversed(shards)]
    for each in continued:
        each.load_state_dict(state)
    for _ in range(3):
        same([as_one(data, SCATTERED[::-1], map(next, continued))], [next(whole)])
    close([whole, *started, *continued])
    parts = validation_of_all(data, Copy(), shards)
    for *found, expected in zip(*parts, data.validation_batches(Copy()), strict=True):
        same([as_one(data, SCATTERED, found)], [expected])


def test_processes_that_read_one_shard_differently_are_refused():
    states = [make().train_batches(Copy(), seed=0).state_dict() for _ in range(2)]
    states[1]["shards"]["3"] = {"elsewhere": 1}
    with pytest.raises(InputError, match="that read shard 3 of the data differ in their position"):
        merge_states(states)


@pytest.mark.parametrize(
    ("rows", "num_shards"),
    [((0, 1, 2), 16), ((3, 4), 16), ((0, 1, 8, 10), 16), ((4, 5, 6, 7), 4), ((0, 4, 5, 6), 16)],
)
def test_rows_that_are_not_whole_shards_are_refused_with_the_number_that_fits(rows, num_shards):
    data = make(num_shards=2)
    with pytest.raises(InputError, match=f"whole shards of 8 rows; set num_shards to {num_shards}"):
        data.shards_of(rows)
    fitting = dataclasses.replace(data, num_shards=num_shards)
    assert len(fitting.shards_of(rows)) * 16 // num_shards == len(rows)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_run_continues_with_another_number_of_processes(seed, pack):
    rng = np.random.default_rng(seed)
    data = make(pack=pack, window=int(rng.integers(1, 50)), block_rows=int(rng.integers(1, 9)))
    before, after = (int(2 ** rng.integers(0, 4)) for _ in range(2))
    started = open_all(data, before)
    take(started, int(rng.integers(0, 40)))
    state = json.loads(json.dumps(merge_states(each.state_dict() for each in started)))
    expected = take(started, 12)
    continued = open_all(data, after)
    for each in continued:
        each.load_state_dict(state)
    same(take(continued, 12), expected)
    for one, other in zip(started, started, strict=True):
        one.load_state_dict(state)  # back, while the thread is ahead
        assert other.padding_share == 1
    same(take(started, 12), expected)
    close(started + continued)


def test_the_state_is_that_of_the_delivered_batch_and_small():
    data = make(prefetch=4)
    batches = data.train_batches(Copy(), seed=0)
    before = batches.state_dict()
    next(batches)
    after = batches.state_dict()
    time.sleep(0.1)  # the thread is far ahead by now
    assert batches.state_dict() == after != before
    assert len(json.dumps(after)) < 1000
    fresh = data.train_batches(Copy(), seed=0)
    fresh.load_state_dict(after)
    assert fresh.state_dict() == after
    same([next(fresh)], [next(batches)])
    close([batches, fresh])


def read_to(batches, epochs):
    """Batches up to the first one with which so many epochs are complete."""
    taken = []
    while batches.epoch < epochs:
        taken.append(next(batches)["model_inputs"])
    batches.close()
    return np.concatenate(taken)


@pytest.mark.parametrize(("batch_size", "num_shards"), [(64, None), (16, 8), (6, 1)])
@pytest.mark.parametrize("count", [1, 3, 40, 100, 374])
def test_epochs_are_exact_to_a_batch(count, batch_size, num_shards):
    """For any rows, batch and shards: each row once an epoch, and at most a batch beyond."""
    data = ArrayData(
        arrays(count), lengths=LENGTHS, batch_size=batch_size, num_shards=num_shards, pack=False
    )
    for epochs in (1, 2.5, 3):
        batches = data.train_batches(Plain(), seed=0)
        rows = read_to(batches, epochs)
        assert len(rows) == -(-int(count * epochs) // batch_size) * batch_size
        assert batches.epoch == pytest.approx(len(rows) / count)
        seen = np.bincount(rows[:, 0], minlength=count + 1)[1:]
        assert seen.min() >= int(epochs)
        assert seen.max() <= -(-len(rows) // count)


def test_epochs_of_packed_rows_count_examples():
    data = ArrayData(arrays(3000), lengths=LENGTHS, batch_size=16, num_shards=8)
    batches = data.train_batches(Plain(), seed=0)
    tokens = read_to(batches, 2)
    often = np.bincount(tokens[tokens > 0], minlength=3001)[1:] / (1 + np.arange(3000) % 13)
    # Some shards are a little ahead of others, which packed larger examples.
    assert often.sum() == pytest.approx(6000, abs=60)
    assert (often == 2).mean() > 0.9


def test_epochs_count_rows_of_which_nothing_is_made():
    """They are read, whatever comes of them."""

    class Half(Plain):
        def prepare(self, examples, **_):
            return (example for example in examples if example["inputs"][0] % 2)

    data = ArrayData(arrays(400), lengths=LENGTHS, batch_size=8, pack=False, block_rows=1)
    batches = data.train_batches(Half(), seed=0)
    rows = read_to(batches, 3)
    assert len(rows) == pytest.approx(600, abs=16)
    assert batches.vanished == pytest.approx(600, abs=16)


def test_texts_that_are_joined_have_not_vanished():
    documents = [{"targets": np.arange(10, 20, dtype=np.int32)}] * 400
    lengths = {"inputs": 60, "targets": 30}
    data = ArrayData(documents, lengths=lengths, batch_size=8, vocab=Bytes())
    batches = data.train_batches(SpanCorruption(), seed=0)
    next(batches)
    assert batches.vanished == 0
    batches.close()


def test_an_epoch_of_a_mixture_is_all_examples_of_its_parts_together():
    parts = [ArrayData(arrays(n, k), lengths=LENGTHS, batch_size=4) for n, k in ((90, 0), (9, 500))]
    common = {"lengths": LENGTHS, "batch_size": 9, "num_shards": 3, "pack": False}
    for rates in (None, [1, 1]):
        batches = MixtureData(parts, rates=rates, **common).train_batches(Plain(), seed=0)
        assert len(read_to(batches, 2)) == 2 * 99
        assert batches.epoch == 2


@pytest.mark.parametrize("pack", [True, False])
def test_progress_in_the_epoch_grows_evenly_and_is_kept(pack):
    data = make(pack=pack, block_rows=1, window=8)
    batches = data.train_batches(Copy(), seed=0)
    seen = []
    for _ in range(60):
        next(batches)
        seen.append(batches.epoch)
    steps = np.diff(seen)
    assert (steps >= 0).all()
    assert steps.max() < 0.5
    assert seen[-1] == pytest.approx(len(seen) * seen[19] / 20, rel=0.3)
    fresh = data.train_batches(Copy(), seed=0)
    fresh.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    assert fresh.epoch == batches.epoch
    close([batches, fresh])


def test_order_depends_on_seed_and_epoch():
    data = make(pack=False, window=1000)
    one, same_seed, other = (data.train_batches(Plain(), seed=seed) for seed in (0, 0, 1))
    first, again, third = (take([each], 20) for each in (one, same_seed, other))
    same(first, again)
    assert different(first, third)
    epochs = np.concatenate([each["model_inputs"][:, 0] for each in take([one], 200)])
    orders = epochs[0::16][: 37 * 4].reshape(-1, 37)  # shard 0 has every eighth of 300
    assert len({tuple(order) for order in orders}) == len(orders)
    close([one, same_seed, other])


def test_a_failure_in_the_thread_reaches_next():
    batches = make().train_batches(Copy(fail_at=77), seed=0)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is on fire"):
            list(batches)
    batches.close()


@pytest.mark.parametrize(
    "end", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), None], ids=repr
)
def test_a_thread_that_ends_in_any_way_ends_the_run(end, monkeypatch):
    if end is None:
        monkeypatch.setattr(data_batches, "_produce", lambda *_, **options: iter(()))
    batches = make().train_batches(Copy(fail_at=77, error=end), seed=0)
    raised = []

    def read():
        with pytest.raises(
            RuntimeError, match=re.escape(repr(end)) if end else "must be endless"
        ) as failure:
            list(batches)
        raised.append(failure)

    reader = threading.Thread(target=read, daemon=True)  # which may hang
    reader.start()
    reader.join(60)
    assert raised
    batches.close()


@pytest.mark.slow
def test_closing_and_collecting_end_the_thread():
    def threads():
        return [each for each in threading.enumerate() if each.name == "t5lite-batches"]

    gc.collect()
    before = len(threads())
    batches = make().train_batches(Copy(), seed=0)
    assert len(threads()) == before  # none before it is needed
    next(batches)
    assert len(threads()) == before + 1
    state = batches.state_dict()
    batches.close()
    assert len(threads()) == before
    assert batches.state_dict() == state
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)
    batches = make().train_batches(Copy(), seed=0)
    next(batches)
    del batches
    gc.collect()
    assert len(threads()) == before


def test_needs_neither_tensorflow_nor_jax_and_exits_with_the_thread_running():
    program = """
import sys
import numpy as np
from t5lite.data import ArrayData
from t5lite.rows import HostHalf

class Plain(HostHalf):
    features = ("targets",)
    def prepare(self, examples, *, lengths, vocabulary, rng):
        return examples
    def batch(self, rows):
        return rows

data = ArrayData([{"targets": np.ones(3, int)}] * 9, lengths={"targets": 5}, batch_size=4)
batches = data.train_batches(Plain(), seed=0)
assert next(batches)["targets"].shape == (4, 5)
assert not {"tensorflow", "seqio", "jax"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("pack", [True, False])
def test_shapes_are_those_of_real_batches(pack):
    data = make(pack=pack)
    batches = data.train_batches(Copy(), seed=0)
    for batch in (next(batches), next(iter(data.validation_batches(Copy())))):
        shapes = data.batch_shapes(Copy())
        assert shapes.keys() == batch.keys()
        for name, value in batch.items():
            assert (shapes[name].shape, shapes[name].dtype) == (value.shape, value.dtype)
    batches.close()


def test_padding_share_is_what_it_says():
    batches = make(lengths={"inputs": 13, "targets": 7}, pack=False).train_batches(Plain(), seed=0)
    ones = [next(batches) for _ in range(10)]
    tokens = sum(np.count_nonzero(each[f"model_{name}"]) for each in ones for name in LENGTHS)
    assert batches.padding_share == pytest.approx(1 - tokens / (10 * 16 * 20))
    batches.close()


@pytest.mark.parametrize("pack", [True, False])
def test_validation_sees_everything_once_and_again(pack):
    data = make(pack=pack)
    validation = data.validation_batches(Plain())
    batches = list(validation)
    assert validation.num_examples == 45
    assert validation.share == 1
    same(list(validation), batches)
    same(list(data.validation_batches(Plain())), batches)
    tokens = np.concatenate([each["model_inputs"] for each in batches])
    found, counts = np.unique(tokens[tokens > 0], return_counts=True)
    assert found.tolist() == list(range(1001, 1046))
    assert counts.tolist() == [1 + i % 13 for i in range(45)]
    assert all(each["weights"].shape == (16, 8) for each in batches)
    assert not batches[-1]["weights"][-1].any()  # 45 examples do not fill the last batch


def test_limited_validation_is_a_random_sample_and_always_the_same():
    data = ArrayData(arrays(5), arrays(374), lengths=LENGTHS, batch_size=16, pack=False)
    validation = data.validation_batches(Plain(), max_batches=10)
    rows = [np.concatenate([each["model_inputs"] for each in validation]) for _ in range(2)]
    np.testing.assert_array_equal(*rows)
    chosen = rows[0][:, 0]
    assert len(set(chosen.tolist())) == 160
    assert round(validation.share * validation.num_examples) == 160
    assert abs(chosen.mean() - 187) < 3 * 374 / np.sqrt(12 * 160)
    assert abs(np.corrcoef(chosen, np.arange(160))[0, 1]) < 0.25
    same(list(data.validation_batches(Plain()))[:10], list(validation))


def test_what_is_small_is_prepared_once(monkeypatch):
    prepared = []

    class Watched(Plain):
        def prepare(self, examples, **_):
            for example in examples:
                prepared.append(1)
                yield example

    for room, times in ((2**20, 1), (2**12, 2)):
        monkeypatch.setattr(data_validation, "_CACHED_BYTES", room)
        validation = make().validation_batches(Watched())
        same(list(validation), list(validation))
        assert len(prepared) == 45 * times
        prepared.clear()


@pytest.mark.parametrize("count", [1, 5, 45])
@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_validation_is_dealt_to_the_processes(process_count, count):
    """Each prepares its own shards, and some may have none."""
    prepared = []

    class Watched(Valued):
        def prepare(self, examples, **arguments):
            for example in super().prepare(examples, **arguments):
                prepared.append(1)
                yield example

    data = dataclasses.replace(make(), validation=arrays(count, 1000), block_rows=1)
    parts = validation_of_all(data, Watched(), shards_of_all(data, process_count))
    prepared.clear()
    found = take(parts, 100)
    # Types, which whoever has no row learns from the first one, are read besides.
    assert len(prepared) <= count + 3 * process_count
    same(found, list(data.validation_batches(Watched())))
    assert all(each["labels"].dtype == np.float32 for each in found)


class Valued(Copy):
    """Examples with a number, besides."""

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            yield {**example, "labels": np.float32([example["inputs"][0] / 7])}

    def rows(self, lengths):
        return super().rows(lengths) | {"labels": RowSpec(1, (1,), "float32", "per_example")}

    def batch(self, rows):
        return {**rows}


def test_examples_are_drawn_from_everywhere():
    data = ArrayData(arrays(5000), lengths=LENGTHS, batch_size=16)
    drawn = np.array(ids(data.examples(Plain(), split="train", count=60, seed=0)))
    assert len(set(drawn.tolist())) == 60
    assert np.bincount(drawn // 1001, minlength=5).min() > 3


def test_sorted_data_give_well_mixed_batches():
    rows = [{"inputs": np.array([1 + i // 500]), "targets": np.ones(2, int)} for i in range(2000)]
    data = ArrayData(rows, lengths=LENGTHS, batch_size=32, pack=False)
    batches = data.train_batches(Plain(), seed=0)
    for batch in itertools.islice(batches, 40):
        counts = np.bincount(batch["model_inputs"][:, 0], minlength=5)[1:]
        assert counts.max() < 20
    batches.close()


def test_examples_are_prepared_ones_of_the_split():
    data = make()
    shown = data.examples(Plain(), split="validation", count=5, seed=0)
    assert all(1001 <= example["inputs"][0] <= 1045 for example in shown)
    same(shown, data.examples(Plain(), split="validation", count=5, seed=0))
    assert len(data.examples(Plain(), split="validation", count=500, seed=0)) == 45
    assert ids(shown) != ids(data.examples(Plain(), split="validation", count=5, seed=1))


def ids(examples):
    return [int(example["inputs"][0]) for example in examples]


def test_a_state_of_other_data_is_refused_with_the_difference():
    batches = make().train_batches(Copy(), seed=0)
    state = batches.state_dict()
    for changes, message in (
        ({"num_shards": 4}, "`num_shards` was 8 in the checkpoint and is 4 now"),
        ({"window": 11}, "`window` was 10 in the checkpoint and is 11 now"),
        ({"pack": False}, "`pack` was True in the checkpoint and is False now"),
        (
            {"lengths": {"inputs": 20, "targets": 8}},
            "`lengths.inputs` was 16 in the checkpoint and is 20 now",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make(**changes).train_batches(Copy(), seed=0).load_state_dict(state)
    with pytest.raises(InputError, match="`seed` was 0 in the checkpoint and is 3 now"):
        make().train_batches(Copy(), seed=3).load_state_dict(state)
    make(batch_size=32).train_batches(Copy(), seed=0).load_state_dict(state)  # same shards
    half = make().train_batches(Copy(), seed=0, shards=range(4)).state_dict()
    with pytest.raises(InputError, match=r"lacks shards \[4, 5, 6, 7\]"):
        batches.load_state_dict(half)
    with pytest.raises(InputError, match="do not belong"):
        merge_states([half, make(window=3).train_batches(Copy(), seed=0).state_dict()])


@dataclasses.dataclass
class Noise(Copy):
    density: float = 0.15
    words: object = Plain.prepare
    scale: float = 1.0
    loss_fields = ("scale",)


@dataclasses.dataclass
class _Newer(Noise):
    flag: bool = False


Newer = type("Noise", (_Newer,), {"__qualname__": "Noise"})


def test_a_position_belongs_to_an_objective_and_a_vocabulary():
    data = make(vocab=Bytes())
    state = json.loads(json.dumps(data.train_batches(Noise(), seed=0).state_dict()))

    def resume(objective, data=data, state=state):
        data.train_batches(objective, seed=0).load_state_dict(state)

    resume(Noise(scale=2.0))  # of the loss alone
    with pytest.raises(InputError, match=r"`objective.density` was 0.15 in the checkpoint and is"):
        resume(Noise(0.5))
    resume(Newer())  # a flag that the checkpoint's version did not have yet, off
    with pytest.raises(
        InputError, match=r"`objective.flag` was None in the checkpoint and is True"
    ):
        resume(Newer(flag=True))
    with pytest.raises(InputError, match=r"`objective.class` was 'Noise' in the .* is 'Copy' now"):
        resume(Copy())
    with pytest.raises(InputError, match="`vocabulary` was '"):
        resume(Noise(), make())
    old = {**state, "format": 1, "data": {**state["data"]}}
    del old["data"]["objective"], old["data"]["vocabulary"]
    old["shards"] = {
        shard: {"block": rows["block"][:3], "rows": 0, "part": 0.0}
        for shard, rows in state["shards"].items()
    }
    with pytest.warns(UserWarning, match="of an earlier version"):
        resume(Noise(0.5), state=old)  # it knew neither
    with pytest.raises(InputError, match="its format is 4"):
        resume(Noise(), state={**state, "format": 4})


def test_many_hosts_exchange_their_positions_and_a_digest_of_the_rest():
    data = make()
    started = open_all(data, 4)
    take(started, 3)
    states, sizes = [each.state_dict() for each in started], []

    def gather(mine):
        sizes.append(len(json.dumps(mine)))
        digests = [joint_state(each, lambda own: [own] * 2) and each for each in states]
        return [{**each, "data": mine["data"]} for each in digests]

    assert joint_state(states[1], gather) == merge_states(states)
    assert sizes[0] < len(json.dumps(states[1])) - 200
    close(started)


def test_a_position_of_ones_own_batches_is_the_same_on_all_processes():
    mine = {"number": 3}
    assert joint_state(mine, lambda own: [own] * 2) == mine
    with pytest.raises(InputError, match="the processes' data states differ"):
        joint_state(mine, lambda own: [own, {"number": 4}])


def test_a_state_of_other_arrays_is_refused():
    state = make().train_batches(Copy(), seed=5).state_dict()
    data = make()
    for train in (data.train[:-1], [*data.train[:-1], {**data.train[-1], "targets": [4]}]):
        changed = dataclasses.replace(data, train=train).train_batches(Copy(), seed=5)
        with pytest.raises(
            InputError, match=r"`sources_content.*` was .* in the checkpoint and is"
        ):
            changed.load_state_dict(state)


def test_bad_numbers_and_names_are_said():
    with pytest.raises(InputError, match="batch_size 16 is not a multiple of num_shards 5"):
        make(num_shards=5)
    with pytest.raises(InputError, match="batch_size is 0"):
        make(batch_size=0)
    with pytest.raises(InputError, match=r"lengths\['inputs'\] is 2.5"):
        make(lengths={"inputs": 2.5})
    with pytest.raises(InputError, match="has no 'targets'"):
        make(lengths={"inputs": 9}).train_batches(Copy(), seed=0)
    with pytest.raises(InputError, match="no examples in split 'validation'; it has train"):
        ArrayData(arrays(3), lengths=LENGTHS, batch_size=2).validation_batches(Copy())
    with pytest.raises(InputError, match="no examples in split 'tset'"):
        make().examples(Copy(), split="tset", count=1, seed=0)


@pytest.mark.parametrize(
    ("batch_size", "num_shards"), [(128, 128), (48, 16), (7, 1), (96, 32), (3072, 1024)]
)
def test_the_default_number_of_shards_depends_on_the_batch_alone(batch_size, num_shards):
    data = make(batch_size=batch_size, num_shards=None, window=None)
    state = data.train_batches(Copy(), seed=0).state_dict()
    assert len(state["shards"]) == num_shards
    # The memory that all of them take together stays.
    assert state["data"]["window"] == min(1024, 65536 // num_shards)
