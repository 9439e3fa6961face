"""A packed cache holds what the objective would have made, and is read in one order by all."""

import dataclasses
import json
from pathlib import Path

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
)

from t5lite.data.array_data import ArrayData
from t5lite.data.batches import merge_states
from t5lite.data.mixture import MixtureData
from t5lite.data.packed import format as packed_files
from t5lite.data.packed.packed_data import PackedData
from t5lite.data.packed.writer import write_packed
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.opening import load_vocabulary
from t5lite.errors import InputError
from t5lite.objectives import (
    AnswerSpans,
    Classification,
    MaskedLM,
    Regression,
    Seq2Seq,
    TokenLabels,
)
from t5lite.rows import RowSpec


@dataclasses.dataclass(frozen=True)
class Shortened(Plain):
    """A dataclass, as real objectives are: `most` changes rows, `scale` the loss alone."""

    most: int = 5
    scale: float = 1.0
    loss_fields = ("scale",)

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            yield {name: value[: self.most] for name, value in example.items()}


class Valued(Plain):
    """One text and its number, one to a row."""

    features = ("inputs", "labels")
    packable = False

    def rows(self, lengths):
        labels = RowSpec(1, (2,), "float32", "per_example")
        return {"inputs": RowSpec(lengths["inputs"]), "labels": labels}

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            yield {"inputs": example["inputs"], "labels": np.array([0.25, 0.0])}

    def batch(self, rows):
        return {"model_" + name: value for name, value in rows.items()}


def cached(folder, data=None, objective=None, *, epochs=1, **changes):
    """Writes a cache and opens it."""
    write_packed(data or make(**changes), objective or Plain(), folder / "cache", epochs=epochs)
    return opened(folder)


def opened(folder, **changes):
    return PackedData(
        str(folder / "cache"), **({"lengths": LENGTHS, "batch_size": 16, "pack": True} | changes)
    )


def tokens_by_example(batches, count):
    """How often the tokens of each example occur in some batches."""
    taken = take(batches, count)
    inputs = np.concatenate([each["model_inputs"].ravel() for each in taken])
    return dict(zip(*np.unique(inputs[inputs > 0], return_counts=True), strict=True))


@pytest.mark.parametrize("pack", [True, False])
def test_a_pass_holds_every_example_once_and_validation_is_the_same(tmp_path, pack):
    data = make(pack=pack)
    cache = dataclasses.replace(cached(tmp_path, data), pack=pack)
    rows = cache._description["passes"]["train"][0]["rows"]
    batches = open_all(dataclasses.replace(cache, batch_size=rows), 1, Plain())
    expected = {i + 1: 1 + i % 13 for i in range(300)}
    assert tokens_by_example(batches, 1) == expected  # the first epoch
    assert tokens_by_example(batches, 1) == expected  # the second
    assert batches[0].epoch == 2
    close(batches)
    validation = cache.validation_batches(Plain())
    tokens = np.concatenate([each["model_inputs"].ravel() for each in validation])
    expected = [1001 + i for i in range(45) for _ in range(1 + i % 13)]
    assert sorted(tokens[tokens > 0]) == expected
    assert (validation.num_examples, validation.share) == (45, 1)
    limited = cache.validation_batches(Plain(), max_batches=1)
    same(list(limited), list(validation)[:1])
    assert 0 < limited.share < 1
    assert cache.num_examples("train") == 300
    assert cache.batch_shapes(Plain()) == data.batch_shapes(Plain())
    shown = cache.examples(Plain(), split="validation", count=99, seed=0)
    assert sorted(int(each["inputs"][0]) for each in shown) == list(range(1001, 1046))
    assert all(each["inputs"].size == 1 + (each["inputs"][0] - 1001) % 13 for each in shown)


def test_the_number_of_processes_changes_nothing_and_a_run_continues(tmp_path):
    cache = cached(tmp_path, objective=Copy(), epochs=2)
    batches = {count: open_all(cache, count) for count in (1, 2, 4)}
    first = take(batches[1], 40)  # across the epochs
    for count in (2, 4):
        same(take(batches[count], 40), first)
    for taken in (0, 7, 15, 30):
        started, continued = open_all(cache, 2), open_all(cache, 4)
        take(started, taken)
        state = json.loads(json.dumps(merge_states(each.state_dict() for each in started)))
        for each in continued:
            each.load_state_dict(state)
        same(take(continued, 5), first[taken : taken + 5])
        close(started + continued)
    parts = [cache.validation_batches(Copy(), shards=each) for each in shards_of_all(cache, 4)]
    same(take(parts, 100), list(cache.validation_batches(Copy())))
    shards = [cache.shards_of(rows) for rows in SCATTERED]
    scattered = [cache.train_batches(Copy(), seed=5, shards=each) for each in shards]
    for expected in first:
        same([as_one(cache, SCATTERED, map(next, scattered))], [expected])
    parts = [cache.validation_batches(Copy(), shards=each) for each in shards]
    for *found, expected in zip(*parts, cache.validation_batches(Copy()), strict=True):
        same([as_one(cache, SCATTERED, found)], [expected])
    for each in (*batches.values(), scattered):
        close(each)


def test_passes_take_turns_with_orders_of_their_own(tmp_path):
    cache = cached(tmp_path, objective=Copy(), epochs=2, pack=False)
    cache = dataclasses.replace(cache, pack=False)
    sizes = [each["rows"] for each in cache._description["passes"]["train"]]
    assert sizes[0] != sizes[1]  # chance of their own
    (batches,) = open_all(dataclasses.replace(cache, batch_size=1), 1)
    assert batches.epoch == 0
    epochs = [
        np.concatenate([next(batches)["model_targets"] for _ in range(size)])
        for size in (*sizes, *sizes)
    ]
    next(batches)
    assert batches.epoch == 4 + 1 / sizes[0]
    batches.close()

    def ordered(rows):
        return sorted(map(tuple, rows.tolist()))

    assert ordered(epochs[0]) == ordered(epochs[2]) != ordered(epochs[1]) == ordered(epochs[3])
    assert (epochs[0] != epochs[2]).any()


def test_values_keep_their_type_and_tokens_the_smallest(tmp_path):
    data = ArrayData(arrays(60), arrays(5), lengths={"inputs": 16}, batch_size=4)
    cache = cached(tmp_path, data, Valued())
    cache = dataclasses.replace(cache, lengths={"inputs": 16})
    folder = tmp_path / "cache" / "train-0"
    assert np.load(folder / "inputs.npy").dtype == np.uint8
    batches = cache.train_batches(Valued(), seed=0)
    batch = next(batches)
    batches.close()
    assert batch["model_inputs"].dtype == np.int32
    np.testing.assert_array_equal(batch["model_labels"], np.full((16, 1, 2), np.float32([0.25, 0])))
    assert batch["model_labels"].dtype == np.float32
    (shown,) = cache.examples(Valued(), split="train", count=1, seed=0)
    assert shown["labels"].tolist() == [0.25, 0.0]


def test_a_mixture_is_cached_at_its_rates(tmp_path):
    parts = [ArrayData(arrays(n, k), lengths=LENGTHS, batch_size=4) for n, k in ((90, 0), (9, 500))]
    mixture = MixtureData(parts, rates=[1, 1], lengths=LENGTHS, batch_size=16)
    cache = cached(tmp_path, mixture)
    rows = cache._description["passes"]["train"][0]["rows"]
    batches = open_all(dataclasses.replace(cache, batch_size=rows), 1, Plain())
    seen = tokens_by_example(batches, 1)
    close(batches)
    assert seen.keys() >= set(range(1, 91))
    often = np.mean([seen[k] / (1 + (k - 501) % 13) for k in range(501, 510)])
    assert often == pytest.approx(10, rel=0.35)
    with pytest.raises(InputError, match="holds rows, which cannot be mixed"):
        MixtureData([cache], rates=[1], lengths=LENGTHS, batch_size=16).train_batches(
            Plain(), seed=0
        )


def test_the_passes_over_a_mixture_have_draws_of_their_own(tmp_path):
    parts = [ArrayData(arrays(60, k), lengths=LENGTHS, batch_size=4) for k in (0, 500)]
    cached(tmp_path, MixtureData(parts, lengths=LENGTHS, batch_size=16, pack=False), epochs=2)
    first, second = (
        np.load(tmp_path / "cache" / f"train-{k}" / "inputs.npy")[:100, 0] > 500 for k in (0, 1)
    )
    assert 20 < np.sum(first != second) < 80


@pytest.mark.parametrize(
    ("objective", "features"),
    [
        (Classification(topology="encoder"), {"inputs": [5, 6], "labels": [-1]}),
        (AnswerSpans(topology="encoder"), {"inputs": [5, 6], "labels": [-1, -1]}),
        (TokenLabels(topology="encoder"), {"inputs": [5, 6, 7], "labels": [3, -1, -1]}),
        (Regression(topology="encoder", num_targets=16), {"inputs": [5], "labels": [0.0] * 16}),
        (MaskedLM(), {"targets": range(5, 17)}),
        (Seq2Seq(topology="decoder"), {"inputs": [5, 6], "targets": [7]}),
        (Seq2Seq(), {"inputs": [5, 6], "targets": [7, 8, 9]}),
    ],
)
def test_an_example_comes_back_as_it_was_prepared(tmp_path, objective, features):
    example = {name: np.array(values) for name, values in features.items()}
    lengths = {"inputs": 16, "targets": 16}
    data = ArrayData([example], lengths=lengths, batch_size=4, pack=False, vocab=Bytes())
    cache = cached(tmp_path, data, objective)
    cache = dataclasses.replace(cache, lengths=lengths, pack=False)
    (shown,) = cache.examples(objective, split="train", count=1, seed=0)
    (expected,) = data.examples(objective, split="train", count=1, seed=0)
    same([shown], [expected])
    objective.show(shown, Bytes())


def test_fields_that_are_new_and_off_do_not_matter(tmp_path):
    data = ArrayData(arrays(20), lengths=LENGTHS, batch_size=4)
    objective = Seq2Seq()
    cache = cached(tmp_path, data, objective)
    path = tmp_path / "cache" / "packed.json"
    description = json.loads(path.read_text())
    assert description["objective"] == {"class": "Seq2Seq", "topology": "encoder_decoder"}
    description["objective"]["once_had"] = None
    path.write_text(json.dumps(description))
    assert dataclasses.replace(cache).examples(objective, split="train", count=1, seed=0)
    with pytest.raises(InputError, match=r"objective = .*add_eos"):
        dataclasses.replace(cache).examples(
            Seq2Seq(add_eos={"inputs": False}), split="train", count=1, seed=0
        )


def test_equal_data_give_equal_caches_and_a_state_belongs_to_its_cache(tmp_path):
    one, two, other = (
        cached(tmp_path / name, window=window, vocab=Bytes())
        for name, window in (("a", 10), ("b", 10), ("c", 11))
    )
    batches = one.train_batches(Plain(), seed=0)
    next(batches)
    state = batches.state_dict()
    batches.close()
    same_rows = two.train_batches(Plain(), seed=0)
    same_rows.load_state_dict(state)
    with pytest.raises(InputError, match=r"`sources.*` was .* in the checkpoint and is"):
        other.train_batches(Plain(), seed=0).load_state_dict(state)
    assert one.vocabulary().fingerprint == Bytes().fingerprint
    assert load_vocabulary(tmp_path / "a" / "cache" / "vocabulary").size == Bytes().size


def test_what_differs_from_the_cache_is_named(tmp_path):
    cached(tmp_path, make(vocab=Bytes()), Shortened())
    for changes, objective, message in (
        ({}, Plain(), r"objective = .*'Plain'.* made with .*'Shortened'"),
        ({}, Shortened(most=4), r"objective = {'most': 4}: .* made with {'most': 5}"),
        ({"lengths": {**LENGTHS, "inputs": 20}}, Shortened(), r"lengths = {'inputs': 20}: .* 16"),
        ({"pack": False}, Shortened(), "pack = False: .* made with True"),
        ({"vocab": Bytes(7)}, Shortened(), "vocab = .*another vocabulary .*sha256"),
    ):
        cache = opened(tmp_path, **changes)
        for read in (
            lambda data, objective: data.train_batches(objective, seed=0),
            lambda data, objective: data.validation_batches(objective),
        ):
            with pytest.raises(InputError, match=message):
                read(cache, objective)
    opened(tmp_path, vocab=Bytes()).train_batches(Shortened(scale=2.0), seed=0).close()


def test_nothing_half_written_is_ever_seen(tmp_path):
    with pytest.raises(OSError, match="on fire"):
        cached(tmp_path, make(), Copy(fail_at=77))
    assert not list(tmp_path.iterdir())
    cached(tmp_path)
    with pytest.raises(InputError, match=r"output = .*cache.*: exists; delete it"):
        cached(tmp_path)
    with pytest.raises(InputError, match="epochs = 0"):
        cached(tmp_path, epochs=0)
    with pytest.raises(InputError, match=r"gs://.* must be on a local disk"):
        write_packed(make(), Plain(), "gs://bucket/cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_packed(make(), Plain(), tmp_path / "file" / "cache")


def test_damaged_caches_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no packed cache .*packed\.json"):
        opened(tmp_path).describe()
    data = make()
    without_validation = ArrayData(data.train, lengths=LENGTHS, batch_size=16)
    cached(tmp_path, without_validation)
    with pytest.raises(InputError, match="no split 'validation'"):
        opened(tmp_path).validation_batches(Plain())
    column = tmp_path / "cache" / "train-0" / "inputs.npy"
    content = column.read_bytes()
    for broken in (content[:100], b""):
        column.write_bytes(broken)
        with pytest.raises(InputError, match=r"inputs\.npy is damaged"):
            opened(tmp_path).train_batches(Plain(), seed=0)
    np.save(column, np.zeros((3, 16), np.uint8))
    with pytest.raises(InputError, match=r"shape \(3, 16\), described as"):
        opened(tmp_path).train_batches(Plain(), seed=0)
    description = tmp_path / "cache" / packed_files.DESCRIPTION
    kept = json.loads(description.read_text())
    cut = json.dumps({"format": 2, "rows": {}})
    for text, message in (
        ("{", "damaged"),
        (cut, "lacks .*'passes'"),
        (json.dumps(kept | {"format": 9}), "format 9"),
    ):
        description.write_text(text)
        with pytest.raises(InputError, match=message):
            opened(tmp_path).describe()


def test_the_description_says_what_it_holds(tmp_path):
    text = cached(tmp_path, epochs=3).describe()
    assert "rows" in text
    assert "3 passes" in text
    assert "300 examples to train on" in text
    assert "PackedData" in (Path(tmp_path) / "cache" / "use.gin").read_text()
    for pack in (True, False):
        cached(tmp_path / str(pack), make(pack=pack))
        text = (tmp_path / str(pack) / "cache" / "use.gin").read_text()
        assert f"  pack = {pack}\n" in text


def test_two_writers_are_not_in_each_others_way(tmp_path):
    with (
        packed_files.whole_folder(tmp_path / "a" / "cache") as one,
        packed_files.whole_folder(tmp_path / "a" / "cache") as other,
    ):
        assert one != other


def test_a_cache_belongs_to_what_a_decoder_reads_first(tmp_path):
    # Whose start token `prepare` leaves out of texts.
    data = ArrayData(arrays(20), lengths=LENGTHS, batch_size=4)
    first = Seq2Seq(start_id=0)
    cache = cached(tmp_path, data, first)
    cache.train_batches(first, seed=0).close()
    with pytest.raises(InputError, match=r"start_id = 2: the cache .* was made with 0"):
        cache.train_batches(Seq2Seq(start_id=2), seed=0)
    path = tmp_path / "cache" / "packed.json"
    description = json.loads(path.read_text())
    del description["start_id"]  # an earlier version did not note it
    path.write_text(json.dumps(description))
    opened(tmp_path).train_batches(first, seed=0).close()


def test_a_position_belongs_to_what_a_decoder_reads_first():
    data = ArrayData(arrays(20), lengths=LENGTHS, batch_size=4)
    batches = data.train_batches(Seq2Seq(start_id=0), seed=0)
    state = batches.state_dict()
    batches.close()
    with pytest.raises(InputError, match="`start_id` was 0 in the checkpoint and is 2 now"):
        data.train_batches(Seq2Seq(start_id=2), seed=0).load_state_dict(state)
    del state["data"]["start_id"]  # of an earlier version
    data.train_batches(Seq2Seq(start_id=2), seed=0).load_state_dict(state)
