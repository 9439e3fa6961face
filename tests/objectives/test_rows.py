"""Batches of language models, as SeqIO documents them, and the joining of inputs and targets."""

import numpy as np
import pytest

from t5lite.data.packing import pad
from t5lite.objectives import (
    Seq2Seq,
    decoder_batch,
    encoder_decoder_batch,
    join_pair,
    prefix_lm_batch,
    split_pair,
    with_segments,
)
from t5lite.rows import RowSpec

LENGTHS = {"inputs": 7, "targets": 7}

PAIRS = [
    {"inputs": np.array([7, 8, 5, 1]), "targets": np.array([3, 9, 1])},
    {"inputs": np.array([8, 4, 9, 3, 1]), "targets": np.array([4, 1])},
]


def packed_row(examples, length):
    row = {}
    for name in examples[0]:
        for suffix in ("", "_segment_ids"):
            row[name + suffix] = np.zeros((1, length), np.int32)
        at = 0
        for segment, example in enumerate(examples, 1):
            end = at + len(example[name])
            row[name][0, at:end] = example[name]
            row[name + "_segment_ids"][0, at:end] = segment
            at = end
    return row


def test_packed_prefix_lm_batch_is_seqios():
    """The first example that SeqIO documents for its PrefixLM converter."""
    batch = prefix_lm_batch(packed_row([join_pair(pair) for pair in PAIRS], 15))
    expected = {
        "decoder_target_tokens": [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
        "decoder_input_tokens": [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0],
        "decoder_loss_weights": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0],
        "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
        "decoder_causal_attention": [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
    }
    assert {name: rows[0].tolist() for name, rows in batch.items()} == expected
    floats = {name for name, rows in batch.items() if rows.dtype == np.float32}
    assert floats == {"decoder_loss_weights"}


def test_unpacked_prefix_lm_batch_is_seqios():
    """The second, with segment ids and lengths; there padding has the last target as input."""
    joined = join_pair({"inputs": np.array([9, 4, 6, 1]), "targets": np.array([3, 9, 1])})
    batch = prefix_lm_batch(pad([joined], Seq2Seq(topology="decoder").rows(LENGTHS)))
    assert {name: rows[0].tolist() for name, rows in batch.items()} == {
        "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        "decoder_lengths": 7,
        "decoder_target_tokens": [9, 4, 6, 1, 3, 9, 1, 0, 0, 0, 0, 0, 0, 0],
        "decoder_input_tokens": [0, 9, 4, 6, 1, 3, 9, 0, 0, 0, 0, 0, 0, 0],
        "decoder_loss_weights": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        "decoder_causal_attention": [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    }


def test_a_decoder_reads_its_targets_one_to_the_right_within_each_text():
    texts = [{"targets": np.array([3, 9, 1])}, {"targets": np.array([4, 1])}]
    batch = decoder_batch(packed_row(texts, 6))
    assert batch["decoder_target_tokens"].tolist() == [[3, 9, 1, 4, 1, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 3, 9, 0, 4, 0]]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1, 1, 1, 0]]
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0]]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_joined_pair_is_split_again(pair):
    for example in (pair, join_pair(pair)):
        inputs, targets = split_pair(example)
        assert inputs.tolist() == pair["inputs"].tolist()
        assert targets.tolist() == pair["targets"].tolist()


@pytest.mark.parametrize("start_id", [0, 2])
def test_the_start_token_stands_in_front_of_every_text(start_id):
    texts = [{"targets": np.array([7, 8, 1])}, {"targets": np.array([5, 1])}]
    packed = decoder_batch(packed_row(texts, 6), start_id=start_id)["decoder_input_tokens"]
    assert packed.tolist() == [[start_id, 7, 8, start_id, 5, 0]]
    rows = pad(texts, {"targets": RowSpec(4)})
    unpacked = decoder_batch(rows, start_id=start_id)["decoder_input_tokens"]
    assert unpacked.tolist() == [[start_id, 7, 8, 0], [start_id, 5, 0, 0]]
    joined = packed_row([join_pair(pair) for pair in PAIRS], 15)
    batch = prefix_lm_batch(joined, start_id=start_id)
    assert batch["decoder_input_tokens"][0, [0, 7]].tolist() == [start_id, start_id]
    assert batch["decoder_causal_attention"].tolist() == (
        prefix_lm_batch(joined)["decoder_causal_attention"].tolist()
    )


def test_segment_ids_say_which_ids_of_0_are_tokens():
    rows = {
        "targets": np.array([[0, 7, 0, 0], [0, 0, 0, 0]]),
        "targets_segment_ids": np.array([[1, 1, 1, 0], [0, 0, 0, 0]]),
    }
    batch = decoder_batch(rows, start_id=9)
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[9, 0, 7, 0], [0, 0, 0, 0]]


def test_unpacked_batches_of_seqios_converters_get_segment_ids_once():
    """They have no ids: what is up to the last token is one segment, zeros inside included."""
    rows = pad(
        [{n: v.astype(np.int32) for n, v in pair.items()} for pair in PAIRS],
        {name: RowSpec(length) for name, length in LENGTHS.items()},
    )
    ours = encoder_decoder_batch(rows)
    theirs = {name: array for name, array in ours.items() if name.endswith(("tokens", "weights"))}
    named = with_segments(theirs)
    assert named.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(named[name], array, err_msg=name)
        assert named[name].dtype == array.dtype
    inside = with_segments({"encoder_input_tokens": np.array([[5, 0, 6, 0]])})
    assert inside["encoder_segment_ids"].tolist() == [[1, 1, 1, 0]]
    packed = {"encoder_segment_ids": np.array([[1, 2]]), "encoder_positions": np.array([[0, 0]])}
    assert with_segments(packed).keys() == {"encoder_segment_ids"}
