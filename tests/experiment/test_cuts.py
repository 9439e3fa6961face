"""Texts that are cut are counted: of which feature, how many, and how long they are."""

import numpy as np
import pytest

from t5lite.data import ArrayData, Bytes
from t5lite.experiment.cuts import Cut, count_cuts
from t5lite.layers import ClassificationHeadSpec
from t5lite.models import Model, override, preset
from t5lite.objectives import CausalLM, Classification, Seq2Seq, bind

NANO = {"encoder_decoder": "t5_1_1_nano", "decoder": "gpt_nano", "encoder": "bert_nano"}


def counted(objective, topology, *, most=100, changes=None, **lengths):
    """Of 40 examples of 1 to 40 inputs and one target to 4."""
    spec = preset(NANO[topology])
    model = Model(override(spec, {"vocab": 384, **(changes or {})}))
    examples = [
        {
            "inputs": np.full(1 + i, 5, np.int32),
            "targets": np.full(1 + i % 4, 6, np.int32),
            "labels": np.array([i % 2], np.int32),
        }
        for i in range(40)
    ]
    data = ArrayData(examples, lengths=lengths, batch_size=4, vocab=Bytes())
    return count_cuts(data, bind(objective, model), split="train", most=most, seed=0)


@pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])
def test_each_feature_is_counted_whatever_the_topology(topology):
    cuts = counted(Seq2Seq(), topology, inputs=21, targets=4)
    # With EOS, inputs of 21 to 40 tokens and targets of 4 are too long.
    assert cuts.features == {"inputs": Cut(20, 41, 21), "targets": Cut(10, 5, 4)}
    assert (cuts.num_seen, cuts.total) == (40, 40)
    assert "of 40 examples, 20 lose the end of inputs (up to 41 tokens, room for 21)" in cuts.text()


def test_a_sample_says_so_and_nothing_says_nothing():
    cuts = counted(Seq2Seq(), "encoder_decoder", most=10, inputs=8, targets=99)
    assert cuts.text().startswith("of a sample of 10 of 40 examples,")
    whole = counted(Seq2Seq(), "encoder_decoder", inputs=41, targets=5)
    assert (whole.features, whole.text()) == ({}, "")


def test_labels_are_no_texts():
    heads = {"heads": [ClassificationHeadSpec(num_classes=2)]}
    cuts = counted(Classification(), "encoder", changes=heads, inputs=21)
    assert [*cuts.features] == ["inputs"]


def test_texts_that_are_divided_are_not_cut():
    assert counted(CausalLM(), "decoder", targets=8) is None
