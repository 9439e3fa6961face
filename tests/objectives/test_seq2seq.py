"""Supervised pairs: one EOS at each end, whatever they come with."""

import types

import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.objectives import Seq2Seq

EOS = 9  # not T5's, so that a hard-coded 1 would show
LENGTHS = {"inputs": 5, "targets": 3}
ENDED = Frame(after=(EOS,))
WORDS = types.SimpleNamespace(pad_id=0, eos_id=EOS, frame=ENDED, target_frame=ENDED)


def prepare(*examples, lengths=None, vocabulary=None, objective=None):
    examples = [{name: np.array(ids, np.int64) for name, ids in each.items()} for each in examples]
    return [
        {name: tokens.tolist() for name, tokens in example.items()}
        for example in (objective or Seq2Seq()).prepare(
            iter(examples),
            lengths=lengths or LENGTHS,
            vocabulary=vocabulary or WORDS,
            rng=np.random.default_rng(0),
        )
    ]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], [EOS]),
        ([EOS], [EOS]),
        ([4, 5], [4, 5, EOS]),
        ([4, 5, EOS], [4, 5, EOS]),
        ([4, EOS, 5], [4, EOS, 5, EOS]),
        ([4, 5, 6, 7], [4, 5, 6, 7, EOS]),
        ([4, 5, 6, 7, EOS], [4, 5, 6, 7, EOS]),
        ([4, 5, 6, 7, 8], [4, 5, 6, 7, EOS]),
        ([4, 5, 6, 7, 8, EOS], [4, 5, 6, 7, EOS]),
        ([4, 5, 0, 0], [4, 5, EOS]),
        ([4, 5, EOS, 0], [4, 5, EOS]),
    ],
)
def test_ends_in_one_eos_and_fits(tokens, expected):
    (example,) = prepare({"inputs": np.array(tokens, np.int64), "targets": np.array([3])})
    assert example == {"inputs": expected, "targets": [3, EOS]}


def test_targets_have_their_own_length_and_the_arrays_are_int32():
    (example,) = Seq2Seq().prepare(
        iter([{"inputs": np.arange(2, 4), "targets": np.arange(2, 8), "other": np.zeros(3)}]),
        lengths=LENGTHS,
        vocabulary=None,
        rng=np.random.default_rng(0),
    )
    assert example["targets"].tolist() == [2, 3, 1]  # without a vocabulary EOS is T5's 1
    assert set(example) == {"inputs", "targets"}
    assert all(tokens.dtype == np.int32 for tokens in example.values())


def test_an_empty_target_is_eos_and_without_one_it_has_no_weight():
    examples = [{"inputs": [4], "targets": t} for t in ([], [0, 0], [EOS], [5])]
    empty, whole = {"inputs": [4, EOS], "targets": [EOS]}, {"inputs": [4, EOS], "targets": [5, EOS]}
    assert prepare(*examples) == [empty, empty, empty, whole]
    bare = Seq2Seq(add_eos={"targets": False})
    kept = [empty, whole | {"targets": [5]}]  # EOS is an answer that the task itself gave
    assert prepare(*examples, objective=bare) == kept


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        ([4, 5], [4, 5]),
        ([4, 5, EOS], [4, 5, EOS]),
        ([4, 5, 6, 7, EOS], [4, 5, 6, 7, EOS]),
        ([4, 5, 6, 7, 8, EOS], [4, 5, 6, 7, 8]),
        ([4, EOS, 0, 0], [4, EOS]),
        ([], []),
        ([0, 0], []),
    ],
)
def test_features_of_a_task_end_as_it_says(given, cut):
    """`append_eos_after_trim` is as it was, and what `append_eos` has added can be cut off."""
    task = Seq2Seq().for_features({"inputs": False, "targets": True, "others": True})
    (example,) = prepare({"inputs": given, "targets": [3]}, objective=task)
    assert example == {"inputs": cut, "targets": [3, EOS]}
    (example,) = prepare(
        {"inputs": given, "targets": [3]}, objective=Seq2Seq().for_features({"inputs": True})
    )
    assert example["inputs"] == (cut if EOS in given else [*cut, EOS])
    chosen = Seq2Seq(add_eos={"inputs": False})
    assert chosen.for_features({"inputs": True}) is chosen


def test_examples_are_taken_one_by_one():
    def endless():
        while True:
            yield {"inputs": np.array([4]), "targets": np.array([5])}

    found = Seq2Seq().prepare(
        endless(), lengths=LENGTHS, vocabulary=None, rng=np.random.default_rng(0)
    )
    assert next(found)["targets"].tolist() == [5, 1]


def test_missing_features_and_lengths_are_named():
    with pytest.raises(InputError, match=r"needs the feature 'inputs'.*\['targets'\]"):
        prepare({"targets": np.array([5])})
    with pytest.raises(InputError, match="has no 'targets'"):
        prepare(lengths={"inputs": 5})
    with pytest.raises(InputError, match=r"\['targets'\] is 1"):
        prepare(lengths={"inputs": 5, "targets": 1})
    with pytest.raises(InputError, match=r"unknown feature in Seq2Seq.add_eos 'target'"):
        Seq2Seq(add_eos={"target": True})
