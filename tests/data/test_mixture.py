"""Mixtures draw at their rates, in one order for any number of processes, and resume exactly."""

import itertools
import json

import numpy as np
import pytest
from small_data import LENGTHS, Copy, Plain, arrays, close, open_all, same, take

from t5lite.data import Part
from t5lite.data.array_data import ArrayData
from t5lite.data.batches import merge_states
from t5lite.data.files.columns import Class
from t5lite.data.files.file_data import FileData
from t5lite.data.mixture import MixtureData, mixing_rates
from t5lite.data.packed.writer import write_packed
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.errors import InputError
from t5lite.objectives import CausalLM, MaskedLM, PrefixLM, Seq2Seq, SpanCorruption


def some(count, first, **changes):
    return ArrayData(
        arrays(count, first), arrays(9, first + 500), lengths=LENGTHS, batch_size=4, **changes
    )


def mix(parts, **changes):
    given = {"lengths": LENGTHS, "batch_size": 16, "num_shards": 8, "window": 10}
    return MixtureData(parts, **(given | changes))


def shares(data, borders, count=120):
    """The share of unpacked rows whose first token is behind each border."""
    batches = data.train_batches(Plain(), seed=0)
    firsts = np.concatenate(
        [each["model_inputs"][:, 0] for each in itertools.islice(batches, count)]
    )
    batches.close()
    counts = np.histogram(firsts, [*borders, 10**6])[0]
    return counts / counts.sum(), len(firsts)


@pytest.mark.parametrize("pack", [True, False])
def test_the_number_of_processes_changes_nothing_and_a_run_continues(pack):
    data = mix({"a": some(170, 0), "b": some(99, 1000)}, rates={"a": 3, "b": 1.0})
    batches = {count: open_all(data, count) for count in (1, 2, 4)}
    first = take(batches[1], 12)
    for count in (2, 4):
        same(take(batches[count], 12), first)
    state = json.loads(json.dumps(merge_states(each.state_dict() for each in batches[2])))
    expected = take(batches[2], 9)
    continued = open_all(data, 4)
    for each in continued:
        each.load_state_dict(state)
    same(take(continued, 9), expected)
    for each in (*batches.values(), continued):
        close(each)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rates": [1, 2, 5]}, [1 / 8, 2 / 8, 5 / 8]),
        ({}, [0.1, 0.3, 0.6]),
        ({"temperature": 1e9}, [1 / 3, 1 / 3, 1 / 3]),
        ({"maximum": 40}, [20 / 100, 40 / 100, 40 / 100]),
    ],
)
def test_parts_are_drawn_at_their_rates(changes, expected):
    parts = [some(size, first) for size, first in ((20, 0), (60, 1000), (120, 2000))]
    found, count = shares(mix(parts, pack=False, **changes), [0, 1000, 2000])
    sigma = np.sqrt(np.array(expected) / count)
    assert (np.abs(found - expected) < 4 * sigma).all()


def test_rates_follow_the_formula():
    sizes = {"small": 100, "large": 10_000}
    rates = mixing_rates(sizes, temperature=2.0)
    assert rates["small"] / rates["large"] == pytest.approx(np.sqrt(1 / 100))
    assert sum(rates.values()) == pytest.approx(1)
    assert mixing_rates(sizes, maximum=300) == pytest.approx({"small": 1 / 4, "large": 3 / 4})
    huge = {"a": 10**300, "b": 10**290}
    assert mixing_rates(huge, temperature=0.5)["a"] == pytest.approx(1)  # no overflow


def test_rates_too_small_for_a_float_are_refused():
    with pytest.raises(InputError, match=r"temperature = 0\.001: the share of part 'b' is too"):
        mixing_rates({"a": 100, "b": 10}, temperature=0.001)
    for rates in ([1e300, 1e-300], [1e-320, 1e300]):
        with pytest.raises(InputError, match=r"MixtureData\.rates: the share of part '[01]'"):
            mix([some(3, 0), some(3, 9)], rates=rates).train_batches(Copy(), seed=0)
    assert mix([some(3, 0), some(3, 9)], rates=[1.7e308, 1.7e308])._rates == {"0": 0.5, "1": 0.5}


def test_mixtures_nest_and_know_their_sizes():
    inner = mix([some(20, 0), some(20, 1000)], rates=[3, 1])
    data = mix({"both": inner, "other": some(40, 2000)}, pack=False)
    assert data.num_examples("train") == 80
    found, count = shares(data, [0, 1000, 2000])
    assert np.abs(found - [3 / 8, 1 / 8, 4 / 8]).max() < 4 / np.sqrt(count)
    assert data.describe().splitlines()[0].startswith("50.0% both: ")


def test_files_and_arrays_mix(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "question,answer\n" + "".join(f"is {i}?,yes\n" for i in range(60))
    )
    files = FileData(
        str(tmp_path / "*.csv"),
        features={"inputs": "{question}", "targets": "{answer}"},
        vocab=Bytes(),
        lengths=LENGTHS,
        batch_size=4,
    )
    data = mix({"files": files, "arrays": some(60, 0, vocab=Bytes())}, num_shards=2, pack=False)
    batches = {count: open_all(data, count, Plain()) for count in (1, 2)}
    first = take(batches[1], 6)
    same(take(batches[2], 6), first)
    texts = [Bytes().decode(row) for each in first for row in each["model_targets"]]
    assert 0.3 < texts.count("yes") / len(texts) < 0.7
    for each in batches.values():
        close(each)


def test_validation_reads_every_part_that_has_one_once():
    bare = ArrayData(arrays(5, 3000), lengths=LENGTHS, batch_size=4)
    data = mix([some(20, 0), bare, some(20, 1000)], pack=False)
    rows = np.concatenate([each["model_inputs"] for each in data.validation_batches(Plain())])
    firsts = [int(row[0]) for row in rows if row.any()]
    assert sorted(firsts) == [*range(501, 510), *range(1501, 1510)]
    assert len(set(firsts[:6]) & set(range(1501, 1510))) == 3  # in proportion
    with pytest.raises(InputError, match="no examples in split 'validation'"):
        mix([bare]).validation_batches(Plain())


def test_only_a_missing_validation_split_is_passed_over(tmp_path):
    class Damaged(ArrayData):
        def components(self, split, objective):
            if split == "validation":
                raise InputError("its file is damaged")
            return super().components(split, objective)

    damaged = Damaged(arrays(5), lengths=LENGTHS, batch_size=4)
    data = mix([some(20, 0), damaged])
    with pytest.raises(InputError, match="part '1': its file is damaged"):
        data.validation_batches(Plain())
    with pytest.raises(InputError, match="part '1': its file is damaged"):
        write_packed(data, Plain(), tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def labelled(path, kinds, **changes):
    """A file of texts, so many of each kind, none of them for validation."""
    lines = [f"{kind} {i},{kind}\n" for kind in kinds for i in range(20)]
    path.write_text("".join(["inputs,kind\n", *lines]))
    options = {"vocab": Bytes(), "lengths": LENGTHS, "batch_size": 4, "validation_share": 0.0}
    features = {"inputs": "{inputs}", "targets": Class("kind", **changes)}
    return FileData(str(path), features=features, **options)


def test_classes_have_the_same_numbers_in_all_parts(tmp_path):
    one = labelled(tmp_path / "a.csv", "abc")
    for kinds, message in (("bc", "class 0 of 'targets' is 'b', and 'a' in"), ("ab", "None, and")):
        other = labelled(tmp_path / "b.csv", kinds)
        with pytest.raises(InputError, match=f"part 'y': .*{message}.* the same Class.classes"):
            mix({"x": one, "y": other}).train_batches(Plain(), seed=0)
    other = labelled(tmp_path / "b.csv", "bc", classes=["a", "b", "c"])
    data = mix({"x": one, "y": other, "z": some(9, 0, vocab=Bytes())})
    data.train_batches(Plain(), seed=0).close()
    assert data.class_counts("train") == {"targets": {"a": 20, "b": 40, "c": 40}}
    assert data.num_examples("validation") == 9  # of the arrays
    assert data.class_counts("validation") == {}
    with pytest.raises(InputError, match="no rows in split 'validation'"):
        mix([one, one]).validation_batches(Plain())


def test_class_counts_add_up():
    class Counted(ArrayData):
        def class_counts(self, split):
            return {"labels": {"yes": len(self.train), split: 1}}

    parts = [Counted(arrays(n), lengths=LENGTHS, batch_size=4) for n in (2, 3)]
    assert mix(parts).class_counts("train") == {"labels": {"yes": 5, "train": 2}}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"a": 0, "b": 1}, r"rates\['a'\] is 0: must be finite and above 0"),
        ({"a": 1, "b": -2.0}, r"rates\['b'\] is -2.0"),
        ({"a": 1, "b": float("nan")}, r"rates\['b'\] is nan"),
        ({"a": 1, "b": float("inf")}, r"rates\['b'\] is inf"),
        ({"a": 1}, r"rates\['b'\] is None: every part needs a number"),
        ({"a": 1, "b": 1, "bb": 1}, "'bb'.*did you mean b"),
        ({"a": True, "b": 1}, r"rates\['a'\] is True"),
    ],
)
def test_rates_that_cannot_be_are_refused_by_name(rates, message):
    with pytest.raises(InputError, match=message):
        mix({"a": some(3, 0), "b": some(3, 9)}, rates=rates)


def test_parts_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="parts is empty"):
        mix([])
    with pytest.raises(InputError, match="part '0' is str"):
        mix(["python_docs"])
    with pytest.raises(InputError, match="temperature = 0"):
        mix([some(3, 0)], temperature=0)
    with pytest.raises(InputError, match="maximum = 0"):
        mix([some(3, 0)], maximum=0)
    two = mix([some(3, 0, vocab=Bytes(5)), some(3, 0, vocab=Bytes(6))], rates=[1, 1])
    for read in (two.vocabulary, lambda: two.train_batches(Copy(), seed=0)):
        with pytest.raises(InputError, match="part '1' has another vocabulary"):
            read()
    empty = ArrayData([], lengths=LENGTHS, batch_size=4)
    with pytest.raises(InputError, match="part '1' has 0 examples"):
        mix([some(3, 0), empty]).train_batches(Copy(), seed=0)

    class Secretive(ArrayData):
        def num_examples(self, split):
            return None

    unknown = Secretive(arrays(3), lengths=LENGTHS, batch_size=4)
    with pytest.raises(
        InputError, match=r"part '1' has an unknown number .* give MixtureData.rates"
    ):
        mix([some(3, 0), unknown]).train_batches(Copy(), seed=0)
    assert mix([some(3, 0), unknown]).num_examples("train") is None
    with pytest.raises(InputError, match=r"part '0' has the objective .* with \(\) after"):
        mix([Part(some(3, 0), CausalLM)])


# Parts with objectives of their own.


def texts(count, low, seed=0):
    rng = np.random.default_rng(seed)
    return [{"targets": rng.integers(low, low + 90, 60).astype(np.int32)} for _ in range(count)]


def supervised(count):
    return [{"inputs": np.arange(40, 50), "targets": np.full(3, 39)} for _ in range(count)]


def of_parts():
    """UL2's mixture of denoisers over one text, and a supervised task."""
    sizes = {"lengths": {"inputs": 40, "targets": 40}, "batch_size": 8}
    source = ArrayData(texts(60, 100), texts(20, 100, 1), vocab=Bytes(), **sizes)
    task = ArrayData(supervised(60), supervised(20), vocab=Bytes(), **sizes)
    parts = {
        "short": source,
        "long": Part(source, SpanCorruption(mean_noise_span_length=8.0, noise_density=0.3)),
        "prefix": Part(source, PrefixLM()),
        "task": Part(task, Seq2Seq()),
    }
    return MixtureData(parts, rates=dict.fromkeys(parts, 1), **sizes)


@pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])
def test_parts_have_objectives_of_their_own(topology):
    data, objective = of_parts(), SpanCorruption(topology=topology)
    assert data.validation_parts(objective) == ["short", "long", "prefix", "task"]
    stream = data.train_batches(objective, seed=0)
    batches = [next(stream) for _ in range(8)]
    state = stream.state_dict()
    later = next(stream)
    stream.close()
    tokens = np.concatenate([batch["decoder_target_tokens"].ravel() for batch in batches])
    assert (tokens == 39).sum() > 10  # the task's answers
    again = data.train_batches(objective, seed=0)
    again.load_state_dict(state)
    for name, rows in next(again).items():
        np.testing.assert_array_equal(rows, later[name])
    again.close()

    def weighed(part):
        batches = list(data.validation_batches(objective, part=part))
        answers = sum(int((batch["decoder_target_tokens"] == 39).sum()) for batch in batches)
        assert bool(answers) == (part in ("task", None))
        return sum(int(batch["decoder_loss_weights"].sum()) for batch in batches)

    parts = {part: weighed(part) for part in data.validation_parts(objective)}
    assert weighed(None) == sum(parts.values())
    assert parts["long"] != parts["short"]


def test_a_part_that_makes_other_rows_is_refused():
    sizes = {"lengths": {"targets": 24}, "batch_size": 8}
    part = Part(ArrayData(texts(5, 9), **sizes), CausalLM())
    data = MixtureData({"mine": part}, rates={"mine": 1}, **sizes)
    with pytest.raises(InputError, match=r"part 'mine': CausalLM makes the rows .*the same rows"):
        data.train_batches(MaskedLM(topology="decoder"), seed=0)
