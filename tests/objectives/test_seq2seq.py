"""Supervised pairs: one EOS at each end, whatever they come with."""

import types

import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.objectives import Seq2Seq

EOS = 9  # not T5's, so that a hard-coded 1 would show
LENGTHS = {"inputs": 5, "targets": 3}


def prepare(*examples, lengths=None, vocabulary=None):
    return [
        {name: tokens.tolist() for name, tokens in example.items()}
        for example in Seq2Seq().prepare(
            iter(examples),
            lengths=lengths or LENGTHS,
            vocabulary=vocabulary or types.SimpleNamespace(eos_id=EOS),
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


def test_examples_without_targets_are_dropped_and_empty_answers_stay():
    none, padding, answer = np.array([], int), np.array([0, 0]), np.array([EOS])
    examples = [{"inputs": np.array([4]), "targets": t} for t in (none, padding, answer)]
    assert prepare(*examples) == [{"inputs": [4, EOS], "targets": [EOS]}]


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
