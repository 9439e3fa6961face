"""BERT's masking: how much, with what, whole words, and never what frames a text."""

import types

import jax
import numpy as np
import pytest
from objective_texts import BertWords, T5Words, batches, packed, prepare, random_texts

from t5lite.data.packing import pack
from t5lite.errors import InputError
from t5lite.models import Model, override
from t5lite.objectives import MaskedLM
from t5lite.objectives.words import word_starts

BERT, T5 = BertWords(), T5Words()
LENGTHS = {"targets": 24}


def documents(texts):
    return [{"targets": text} for text in texts]


def found(objective, texts, vocabulary=BERT, seed=0):
    return prepare(objective, documents(texts), lengths=LENGTHS, vocabulary=vocabulary, seed=seed)


@pytest.mark.parametrize(("vocabulary", "before"), [(BERT, [2]), (T5, [])])
def test_pieces_are_framed_and_no_token_is_lost(vocabulary, before):
    texts = random_texts(60)
    tokens = []
    for example in found(MaskedLM(), texts, vocabulary):
        inputs, targets = example["inputs"], example["targets"]
        assert inputs.dtype == targets.dtype == np.int32
        assert inputs.size == targets.size <= 24
        assert inputs[: len(before)].tolist() == before
        assert inputs[-1] == vocabulary.eos_id
        assert np.count_nonzero(inputs == vocabulary.eos_id) == 1
        predicted = example["predicted"]
        assert predicted.dtype == bool
        assert not predicted[: len(before)].any()
        assert not predicted[-1]
        np.testing.assert_array_equal(inputs[~predicted], targets[~predicted])
        tokens += targets[len(before) : -1].tolist()
    assert tokens == np.concatenate(texts).tolist()


@pytest.mark.parametrize(("vocabulary", "mask"), [(BERT, 5), (T5, 59)])
def test_of_15_percent_80_are_masked_10_replaced_and_10_kept(vocabulary, mask):
    texts = [np.random.default_rng(seed).integers(6, 58, 22) for seed in range(4000)]
    examples = found(MaskedLM(), texts, vocabulary)
    inputs = np.concatenate([example["inputs"] for example in examples])
    targets = np.concatenate([example["targets"] for example in examples])
    whole = 22 * len(texts)
    asked = np.concatenate([example["predicted"] for example in examples])
    assert asked.sum() == 3 * len(texts)  # round(0.15 * 22)
    seen, true = inputs[asked], targets[asked]
    masked, kept = seen == mask, seen == true
    replaced = ~masked & ~kept
    # One of 52 or 55 ordinary ids is the true one, and looks kept.
    for share, expected in ((masked, 0.8), (replaced, 0.098), (kept, 0.102)):
        assert abs(share.mean() - expected) < 5 * np.sqrt(expected / asked.sum())
    special = {0, 58, 59, vocabulary.eos_id, vocabulary.bos_id, vocabulary.unk_id}
    others = set(seen[replaced].tolist())
    assert not others & special
    assert len(others) > 50  # all the ordinary ids
    assert abs(asked.sum() / whole - 0.15) < 0.02


@pytest.mark.parametrize("vocabulary", [BERT, T5])
def test_whole_words_are_asked_for_wholly(vocabulary):
    texts = [text for text in random_texts(300) if text.size <= 22]
    counts = []
    for example, text in zip(
        found(MaskedLM(whole_word=True), texts, vocabulary), texts, strict=True
    ):
        asked = example["predicted"][(vocabulary.bos_id is not None) : -1]
        goes_on = text % 3 == 0
        goes_on[0] = False
        assert (asked[1:] == asked[:-1])[goes_on[1:]].all()
        words = np.split(asked, np.flatnonzero(~goes_on)[1:])
        counts.append(asked.sum())
        most = max(1, round(0.15 * text.size))
        assert 1 <= asked.sum() <= max(most, max(len(word) for word in words))
    assert np.mean(counts) > 1.5


def test_words_that_nobody_can_tell_are_refused_as_a_whole():
    class Bare(BertWords):
        def piece(self, token_id):
            return f"w{token_id}"

    with pytest.raises(InputError, match=r"whole_word = True: no piece .* set it to False"):
        found(MaskedLM(whole_word=True), random_texts(1), Bare())


def test_words_of_byte_level_vocabularies_begin_at_their_space():
    class ByteLevel(BertWords):
        def piece(self, token_id):
            return f"w{token_id}" if token_id % 3 == 0 else f"Ġw{token_id}"

    starts = word_starts(ByteLevel())
    assert starts.tolist() == [token_id % 3 != 0 for token_id in range(60)]


def test_tokens_are_drawn_anew_by_the_generator_alone():
    text = random_texts(1, longest=400) * 2
    one, again, other = (
        [example["predicted"].tolist() for example in found(MaskedLM(), text, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    assert one[: len(one) // 2] != one[len(one) // 2 :]


def test_batches_name_what_is_asked_for_and_fillers_have_no_weight():
    examples = found(MaskedLM(), random_texts(5, longest=20))
    batch = batches(MaskedLM(), examples, LENGTHS)
    assert {name: rows.shape for name, rows in batch.items()} == dict.fromkeys(
        [f"encoder_{n}" for n in ("input_tokens", "target_tokens", "loss_weights", "segment_ids")],
        (7, 24),
    ) | {"encoder_lengths": (7,)}
    assert batch["encoder_loss_weights"].dtype == np.float32
    assert (batch["encoder_loss_weights"] == (batch["encoder_target_tokens"] > 0)).all()
    assert not any(rows[5:].any() for rows in batch.values())
    rows = packed(MaskedLM(), examples, LENGTHS)
    assert rows["encoder_segment_ids"].max() > 1
    assert rows["encoder_loss_weights"].sum() == batch["encoder_loss_weights"].sum()


def test_logits_of_asked_tokens_alone_give_the_same_loss_and_gradient():
    model = Model(override("bert_nano", {"vocab": 60, "embed": 16, "*.num_layers": 1}))
    params = jax.jit(model.init)(jax.random.key(0))
    rows = pack(found(MaskedLM(), random_texts(9, longest=20)), MaskedLM().rows(LENGTHS))
    assert rows["predicted"].sum(axis=1).max() <= 8

    def loss_and_gradient(objective):
        batch = objective.batch(rows)

        @jax.value_and_grad
        def mean(params):
            terms, _ = objective.loss(model, params, batch)
            weights = objective.weights(batch)
            return sum(c * s / weights[name] for name, (s, c) in terms.items())

        return batch, jax.jit(mean)(params)

    for factor in (None, "AVERAGE_PER_SEQUENCE"):
        options = {"z_loss": 0.1, "loss_normalizing_factor": factor}
        whole, expected = loss_and_gradient(MaskedLM(**options))
        few, actual = loss_and_gradient(MaskedLM(**options, max_predictions_per_row=8))
        assert few["encoder_target_tokens"].shape == (len(rows["targets"]), 8)
        assert few["encoder_loss_weights"].sum() == whole["encoder_loss_weights"].sum()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected
        )


def test_what_a_row_has_beyond_the_most_predictions_is_not_asked_for():
    (tokens, text) = np.full((1, 6), 7), np.array([[6, 8, 9, 6, 10, 11]])
    rows = {"inputs": tokens, "targets": text, "predicted": text > 6, "inputs_segment_ids": tokens}
    batch = MaskedLM(max_predictions_per_row=3).batch(rows)
    assert batch["encoder_target_tokens"].tolist() == [[8, 9, 10]]
    assert batch["encoder_target_positions"].tolist() == [[1, 2, 4]]
    assert batch["encoder_target_positions"].dtype == np.int32
    with pytest.raises(InputError, match=r"max_predictions_per_row is 25: .* at most .* 24"):
        MaskedLM(max_predictions_per_row=25).rows(LENGTHS)


def test_a_text_is_shown_with_what_is_asked_for_marked():
    example = {"inputs": np.array([2, 7, 5, 5, 9, 3]), "targets": np.array([2, 7, 8, 20, 9, 3])}
    example["predicted"] = np.array([False, False, True, True, False, False])
    assert MaskedLM().show(example, BERT) == ["w2 w7 «w8 w20» w9"]


def test_without_a_mask_it_is_refused():
    nothing = types.SimpleNamespace(mask_id=None, num_sentinels=0, size=9)
    with pytest.raises(InputError, match="neither a mask token nor sentinels"):
        found(MaskedLM(), [], nothing)
    with pytest.raises(InputError, match="needs a vocabulary"):
        found(MaskedLM(), [], None)


@pytest.mark.parametrize("rate", [0.0, 1.0, "0.15"])
def test_bad_rates_are_refused(rate):
    with pytest.raises(InputError, match="mask_rate"):
        MaskedLM(mask_rate=rate)
