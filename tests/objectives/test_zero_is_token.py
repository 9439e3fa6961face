"""Vocabularies whose id 0 is a token, as GPT-2's `!`: it trains and counts, packed and unpacked."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.data.array_data import ArrayData
from t5lite.data.packed.packed_data import PackedData
from t5lite.data.packed.writer import write_packed
from t5lite.data.vocabularies.tokenizer_files import HuggingFaceTokenizer
from t5lite.errors import InputError
from t5lite.layers import ClassificationHeadSpec, EmbeddingHeadSpec
from t5lite.models import Model, override
from t5lite.objectives import (
    AnswerSpans,
    CausalLM,
    Classification,
    Contrastive,
    MaskedLM,
    PrefixLM,
    Seq2Seq,
    bind,
)

tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["!", "!!", "Stop! Go!", "a!!!", "!b", "!!!!!", "no marks", "what! a! day!"]
LENGTHS = {"inputs": 24, "targets": 20}
TINY = {"embed": 16, "*.num_layers": 1, "vocab": 300}


@pytest.fixture(scope="module")
def vocabulary():
    """Byte-level BPE, as GPT-2's, with a mask."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=257,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<mask>"])
    found = HuggingFaceTokenizer.from_json(tokenizer.to_str(), "bytes")
    assert found.encode("!a!") == [0, 64, 0]
    return found


def data_of(vocabulary, **options):
    examples = [
        {
            "inputs": np.array(vocabulary.encode(text), np.int32),
            "targets": np.array(vocabulary.encode(text[::-1]), np.int32),
            "labels": np.array([index % 3]),
        }
        for index, text in enumerate(TEXTS)
    ]
    return ArrayData(
        examples, examples, vocab=vocabulary, lengths=LENGTHS, batch_size=8, num_shards=1, **options
    )


@functools.cache
def model_and_params(preset, *heads):
    model = Model(override(preset, TINY | ({"heads": heads} if heads else {})))
    return model, jax.jit(model.init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def loss_and_weight(objective, model, params, batch):
    terms, _ = objective.loss(model, params, batch)
    loss = sum(coefficient * found for found, coefficient in terms.values())
    return loss, next(iter(objective.weights(batch).values()), jnp.float32(1))


def total(objective, model, params, data):
    """The loss of all validation batches together, and how many tokens or texts have one."""
    found = [
        loss_and_weight(objective, model, params, batch)
        for batch in data.validation_batches(objective)
    ]
    return np.sum(np.array(found), axis=0)


LANGUAGE_MODELS = {
    "causal": (CausalLM(), "gpt_nano"),
    "prefix": (PrefixLM(), "gpt_nano"),
    "pairs of a decoder": (Seq2Seq(), "gpt_nano"),
    "pairs": (Seq2Seq(), "t5_1_1_nano"),
    "masked": (MaskedLM(mask_rate=0.5), "bert_nano"),
    "masked, few": (MaskedLM(mask_rate=0.5, max_predictions_per_row=20), "bert_nano"),
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.light("causal", "pairs")
def test_packed_loss_equals_unpacked_loss(vocabulary, name):
    objective, preset = LANGUAGE_MODELS[name]
    model, params = model_and_params(preset)
    objective = bind(objective, model)
    packed, padded = (
        total(objective, model, params, data_of(vocabulary, pack=pack)) for pack in (True, False)
    )
    np.testing.assert_allclose(packed, padded, rtol=1e-5)
    if name in ("causal", "pairs", "pairs of a decoder"):
        assert padded[1] == sum(map(len, TEXTS)) + len(TEXTS)


@pytest.mark.parametrize("pack", [True, False])
def test_tokens_of_id_0_are_predicted(vocabulary, pack):
    data = data_of(vocabulary, pack=pack)
    texts = sum(text.count("!") for text in TEXTS)
    for objective in (CausalLM(), Seq2Seq(), Seq2Seq(topology="decoder")):
        zeros = 0
        for batch in data.validation_batches(objective):
            asked = batch["decoder_loss_weights"] > 0
            zeros += np.sum(asked & (batch["decoder_target_tokens"] == 0))
        assert zeros == texts
    objective, asked, zeros = MaskedLM(mask_rate=0.999), 0, 0
    for batch in data.validation_batches(objective):
        assert batch["encoder_target_tokens"].min() == 0
        asked += batch["encoder_loss_weights"].sum()
        zeros += ((batch["encoder_target_tokens"] == 0) * batch["encoder_loss_weights"]).sum()
    assert (asked, zeros) == (sum(map(len, TEXTS)), texts)


@pytest.mark.parametrize(
    ("objective", "head"),
    [
        (Classification(), ClassificationHeadSpec(num_classes=3)),
        (Contrastive(), EmbeddingHeadSpec()),
    ],
)
def test_heads_say_what_they_say_where_all_ids_are_one_higher(vocabulary, objective, head):
    model, params = model_and_params("bert_nano", head)
    objective = bind(objective, model)
    found = total(objective, model, params, data_of(vocabulary))
    shifted = HuggingFaceTokenizer.from_json(vocabulary.to_json(), "bytes", offset=1)
    assert (vocabulary.pad_id, shifted.pad_id) == (-1, 0)
    moved = jax.tree.map(lambda x: jnp.roll(x, 1, 0) if x.shape[0] == TINY["vocab"] else x, params)
    expected = total(objective, model, moved, data_of(shifted))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rows_that_fill_a_batch_have_no_weight(vocabulary):
    objective = Classification()
    data = dataclasses.replace(data_of(vocabulary), batch_size=16)
    (batch,) = data.validation_batches(objective)
    assert batch["label_weights"].tolist() == [1] * 8 + [0] * 8
    sizes = sorted(len(text) + 1 for text in TEXTS)
    for found in (batch["encoder_segment_ids"], objective.valid(batch)):
        assert sorted(found.sum(axis=1).tolist()) == [0] * 8 + sizes
        assert not found[8:].any()


def test_a_batch_has_the_shapes_that_are_promised(vocabulary):
    data = data_of(vocabulary, pack=False)
    for objective in (CausalLM(), Seq2Seq(), MaskedLM(), Classification(), Contrastive()):
        batch = next(iter(data.validation_batches(objective)))
        shapes = data.batch_shapes(objective)
        found = {name: (rows.shape, rows.dtype) for name, rows in batch.items()}
        assert found == {name: (each.shape, each.dtype) for name, each in shapes.items()}
        assert any(name.endswith("_segment_ids") for name in found)


@pytest.mark.parametrize("pack", [True, False])
def test_a_cache_gives_back_texts_whole(vocabulary, pack, tmp_path):
    for objective in (CausalLM(), Classification()):
        data = data_of(vocabulary, pack=pack)
        folder = tmp_path / type(objective).__name__
        described = write_packed(data, objective, folder)
        cache = PackedData(str(folder), lengths=LENGTHS, batch_size=8, pack=pack)
        (one,), (other,) = (each.validation_batches(objective) for each in (cache, data))
        assert one.keys() == other.keys()
        if not pack:  # the order and what shares a row are each's own
            rows = [
                zip(*map(np.ndarray.tolist, each.values()), strict=True) for each in (one, other)
            ]
            assert sorted(rows[0]) == sorted(rows[1])
        name = "targets" if isinstance(objective, CausalLM) else "inputs"
        texts = [text[::-1] if name == "targets" else text for text in TEXTS]
        found = cache.examples(objective, split="train", count=99, seed=0)
        assert sorted(each[name].tolist() for each in found) == sorted(
            [*vocabulary.encode(text), vocabulary.eos_id] for text in texts
        )
        tokens = sum(len(text) + 1 for text in TEXTS)
        assert described["passes"]["train"][0]["tokens"][name] == tokens


def test_texts_are_shown_with_tokens_of_id_0(vocabulary):
    text = np.array(vocabulary.encode("!a!"))
    example = {"inputs": text, "targets": text, "predicted": np.array([True, False, False])}
    assert MaskedLM().show(example, vocabulary) == ["«!»a!"]
    labels = {"inputs": np.array([0, 64, 0]), "labels": np.array([0, 1])}
    assert AnswerSpans().show(labels, vocabulary) == ["«!a»!"]


@pytest.mark.parametrize("pack", [True, False])
def test_the_models_start_token_stands_in_front_of_every_text(vocabulary, pack):
    model = types.SimpleNamespace(topology="decoder", heads={"lm": None}, start_id=7)
    data = data_of(vocabulary, pack=pack)
    for objective in (CausalLM(), Seq2Seq(), PrefixLM()):
        fitted = bind(objective, model)
        assert (objective.start_id, fitted.start_id) == (0, 7)
        for batch in data.validation_batches(fitted):
            tokens, segments = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
            starts = (np.diff(segments, axis=1, prepend=0) != 0) & (segments > 0)
            assert (tokens[starts] == 7).all()
            assert np.count_nonzero(tokens == 7) == starts.sum() > 0
    model.topology = "encoder_decoder"
    (batch,) = data.validation_batches(bind(Seq2Seq(), model))
    assert (batch["decoder_input_tokens"][:, 0] == 7 * (batch["decoder_segment_ids"][:, 0])).all()


def test_rows_are_cached_for_the_start_token_that_they_leave_out(vocabulary, tmp_path):
    """Texts of an objective that prompts are framed without it; those of the others are not."""
    data = data_of(vocabulary)
    for objective in (CausalLM(), Classification()):
        folder = str(tmp_path / type(objective).__name__)
        write_packed(data, objective, folder)
        cache = PackedData(folder, lengths=LENGTHS, batch_size=8)
        assert next(iter(cache.validation_batches(objective)))
        other = dataclasses.replace(objective, start_id=5)
        if objective.head == "lm":
            with pytest.raises(InputError, match=r"start_id = 5: the cache .* was made with 0"):
                cache.validation_batches(other)
        else:
            assert next(iter(cache.validation_batches(other)))
