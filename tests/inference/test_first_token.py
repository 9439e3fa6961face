"""What a decoder reads first is what its tokenizer adds, once: generating, scoring and training.

Continuations and losses are those of transformers for `tokenizer(text)`, which needs torch.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest
from saved_models import save_model

import t5lite
from t5lite.data import HuggingFaceTokenizer
from t5lite.data.packing import pad
from t5lite.errors import InputError
from t5lite.inference.inside import attention_maps
from t5lite.inference.scoring import Scorer
from t5lite.models import load_spec, save_spec
from t5lite.objectives import CausalLM, Seq2Seq, bind
from t5lite.objectives.rows import decoder_batch, prefix_lm_batch
from t5lite.rows import RowSpec

installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
live = pytest.mark.skipif(not installed, reason="pip install 't5lite[parity]' for transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["the river runs", "a cat", "one two three four"]
SPELLED = "<s>the river"


def tokenizer_of(*, begins):
    words = sorted({*" ".join(TEXTS).split()})
    ids = {piece: number for number, piece in enumerate(["<s>", "</s>", "<unk>", *words])}
    created = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, "<unk>"))
    created.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    created.add_special_tokens(["<s>", "</s>", "<unk>"])
    template = "<s> $A" if begins else "$A"
    processor = tokenizers.processors.TemplateProcessing(template, None, [("<s>", 0)])
    created.post_processor = processor
    return created


def folder_of(root, family, *, begins, **config):
    import torch
    import transformers

    created = tokenizer_of(begins=begins)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=created, **names)
    whole.save_pretrained(root)
    torch.manual_seed(0)
    size = {"vocab_size": created.get_vocab_size(), "initializer_range": 0.5}
    if family == "gpt2":
        size |= {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size | config))
    else:
        size |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
        size |= {"num_attention_heads": 2, "max_position_embeddings": 32}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size | config))
    model.eval().save_pretrained(root)
    return transformers.AutoTokenizer.from_pretrained(root), model


CASES = {
    "gpt2": ("gpt2", False, {"bos_token_id": 0, "eos_token_id": 1}),
    "gpt2 with BOS": ("gpt2", True, {"bos_token_id": 0, "eos_token_id": 1}),
    "llama": ("llama", True, {"bos_token_id": 0, "eos_token_id": 1}),
    "llama without BOS": ("llama", False, {"bos_token_id": 0, "eos_token_id": 1}),
    "llama of another config": ("llama", True, {"bos_token_id": 4, "eos_token_id": 1}),
    "llama of none": ("llama", True, {"bos_token_id": None, "eos_token_id": 1}),
}


@live
@pytest.mark.parametrize("name", CASES)
def test_continuations_and_losses_are_those_of_transformers(name, tmp_path):
    import torch

    family, begins, config = CASES[name]
    theirs, model = folder_of(tmp_path, family, begins=begins, **config)
    ours = t5lite.load(tmp_path, devices=jax.devices()[:1])
    assert ours.spec.start_id == (0 if begins else None)
    answers = ours.answers(TEXTS, max_new_tokens=6)
    scores = ours.score(TEXTS)
    for text, (answer,), score in zip(TEXTS, answers, scores, strict=True):
        ids = torch.tensor([theirs(text)["input_ids"]])
        with torch.no_grad():
            generated = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
            )
            loss = float(model(ids, labels=ids).loss)
        assert answer.tokens.tolist() == generated[0, ids.shape[1] :].tolist()
        assert score.num_tokens == ids.shape[1] - 1
        skipped = Scorer(ours).read(text).skipped
        assert skipped == (0 if begins else len(text.split()[0]))
        np.testing.assert_allclose(score.log_probability / -score.num_tokens, loss, rtol=1e-4)
        data = bind(CausalLM(), ours.model)
        example = {"targets": np.array(ours.vocabulary.encode(text), np.int32)}
        row = pad([example], {"targets": RowSpec(example["targets"].size)})
        batch = {key: jax.numpy.asarray(value) for key, value in data.batch(row).items()}
        _, metrics = data.loss(ours.model, ours.params, batch)
        total, count = metrics["loss"]
        assert count == score.num_tokens
        np.testing.assert_allclose(total / count, loss, rtol=1e-4)
    maps = attention_maps(ours, TEXTS[0])
    np.testing.assert_allclose(maps.losses, -scores[0].token_log_probabilities, atol=1e-4)
    assert maps.tokens["decoder"] == theirs.convert_ids_to_tokens(theirs(TEXTS[0])["input_ids"])


@live
def test_a_start_that_a_text_spells_is_read_once(tmp_path):
    for begins in (True, False):
        folder = tmp_path / str(begins)
        folder_of(folder, "llama", begins=begins, bos_token_id=0, eos_token_id=1)
        ours = t5lite.load(folder, devices=jax.devices()[:1])
        plain = SPELLED.removeprefix("<s>")
        output, same = ours.answers([SPELLED, plain], max_new_tokens=4)
        if begins:
            assert output[0].tokens.tolist() == same[0].tokens.tolist()
        ids = attention_maps(ours, SPELLED).tokens["decoder"]
        assert ids == ["<s>", *plain.split()]
        for objective, columns in (
            (CausalLM(), {"targets": SPELLED}),
            (Seq2Seq(), {"inputs": SPELLED, "targets": "a cat"}),
        ):
            fitted = bind(objective, ours.model)
            encoded = {name: np.int32(ours.vocabulary.encode(x)) for name, x in columns.items()}
            rows = fitted.prepare(
                iter([encoded]),
                lengths=dict.fromkeys(columns, 9),
                vocabulary=ours.vocabulary,
                rng=np.random.default_rng(0),
            )
            row = pad(list(rows), fitted.rows(dict.fromkeys(columns, 9)))
            read = fitted.batch(row)["decoder_input_tokens"][0].tolist()
            assert read[:3] == [0, *ours.vocabulary.encode(plain)]
    with pytest.raises(InputError, match="single token: the model reads nothing before it"):
        ours.score(["cat"])


@live
def test_a_model_without_a_start_token_is_trained_saved_and_written(tmp_path):
    folder_of(tmp_path / "gpt2", "gpt2", begins=False, bos_token_id=0, eos_token_id=1)
    ours = t5lite.load(tmp_path / "gpt2", devices=jax.devices()[:1])
    save_spec(tmp_path / "model.json", ours.spec)
    assert load_spec(tmp_path / "model.json") == ours.spec
    for kind in ("t5lite", "huggingface"):
        save_model(tmp_path / kind, ours.model, ours.params, kind=kind, vocabulary=ours.vocabulary)
        again = t5lite.load(tmp_path / kind, devices=jax.devices()[:1])
        assert again.spec.start_id is None
        assert again.generate(TEXTS, max_new_tokens=5) == ours.generate(TEXTS, max_new_tokens=5)
    config = json.loads((tmp_path / "huggingface" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)


def test_without_a_start_token_each_position_predicts_the_next():
    rows = {
        "targets": np.array([[5, 6, 7, 8, 9, 0]], np.int32),
        "targets_segment_ids": np.array([[1, 1, 1, 2, 2, 0]], np.int32),
        "prefix": np.array([[1, 1, 0, 1, 0, 0]], np.int32),
    }
    batch = decoder_batch(rows, start_id=None)
    assert batch["decoder_input_tokens"].tolist() == [[5, 6, 7, 8, 9, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[6, 7, 0, 9, 0, 0]]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 0, 1, 0, 0]]
    both = prefix_lm_batch(rows, start_id=None)
    assert both["decoder_loss_weights"].tolist() == [[0, 1, 0, 1, 0, 0]]
    assert both["decoder_causal_attention"].tolist() == [[1, 1, 0, 1, 0, 0]]


def test_a_start_token_other_than_bos_is_not_part_of_the_text(tmp_path):
    """Of a run whose start token is id 0, a text that begins with id 0 loses nothing."""
    vocabulary = HuggingFaceTokenizer.from_json(tokenizer_of(begins=False).to_str(), "words")
    rows = CausalLM().prepare(
        iter([{"targets": np.array([0, 5, 6], np.int32)}]),
        lengths={"targets": 9},
        vocabulary=vocabulary,
        rng=np.random.default_rng(0),
    )
    assert [row["targets"].tolist() for row in rows] == [[0, 5, 6, 1]]
