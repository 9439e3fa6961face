"""Heads of models that we train, as transformers' classes: same outputs, names of labels kept.

What no class has a place for is told before training, with what to set. (Heads of files that
transformers wrote, both ways and of every family: `parity_cases/heads.py`.)
"""

import importlib.util
import json
import warnings

import jax
import numpy as np
import pytest
from saved_models import save_model
from small_folders import add_tokenizer, leaves

import t5lite
from t5lite.data import load_vocabulary
from t5lite.errors import InputError
from t5lite.interop import huggingface
from t5lite.layers import (
    ClassificationHeadSpec,
    EmbeddingHeadSpec,
    RegressionHeadSpec,
    SpansHeadSpec,
    TokenLabelsHeadSpec,
)
from t5lite.models import Model, override, preset

installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
live = pytest.mark.skipif(not installed, reason="pip install 't5lite[parity]' for transformers")
ONE = jax.devices()[:1]
NAMES = ["sad", "fair", "glad"]
TINY = {
    "bert": ("bert_nano", {"vocab": 60, "encoder.num_layers": 2}),
    "gpt2": ("gpt_nano", {"vocab": 60, "decoder.num_layers": 2}),
    "llama": ("llama_nano", {"vocab": 60, "decoder.num_layers": 2}),
}
LAST = {"pooling": "last", "use_bias": False}
FIRST = {"pooling": "first", "pooler": True}
HEADS = {
    "bert-classes": ClassificationHeadSpec(num_classes=3, **FIRST),
    "bert-numbers": RegressionHeadSpec(num_targets=2, **FIRST),
    "bert-tags": TokenLabelsHeadSpec(num_labels=3, dropout_rate=0.1),
    "bert-spans": SpansHeadSpec(),
    "gpt2-classes": ClassificationHeadSpec(num_classes=3, dropout_rate=0.1, **LAST),
    "gpt2-tags": TokenLabelsHeadSpec(num_labels=3),
    "llama-classes": ClassificationHeadSpec(num_classes=3, **LAST),
    "llama-numbers": RegressionHeadSpec(**LAST),
    "llama-spans": SpansHeadSpec(),
}
TEXTS = ["a cat sat", "no", "the dog by the river"]


def model_of(family, head, seed=0):
    """Returns the spec of a tiny model with a head, and random parameters."""
    name, changes = TINY[family]
    spec = override(name, changes).replace(heads=(head,))
    rng = np.random.default_rng(seed)
    shapes = Model(spec).shapes()
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    return spec, params


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A tokenizer of letters, saved and opened as a run's is."""
    root = tmp_path_factory.mktemp("tokenizer")
    huggingface.vocabularies.read_vocabulary(add_tokenizer(root / "hf")).save(root / "own")
    return load_vocabulary(root / "own")


def saved(folder, case, vocabulary, labels=None):
    spec, params = model_of(case.partition("-")[0], HEADS[case])
    labels = {} if labels is None else labels
    save_model(folder, spec, params, kind="huggingface", vocabulary=vocabulary, labels=labels)
    return spec, params


@pytest.mark.parametrize("case", HEADS)
def test_written_and_read_is_the_same_head(case, tmp_path, vocabulary):
    named = "tags" in case or "classes" in case
    labels = {"labels": NAMES} if named else {}
    spec, params = saved(tmp_path / "hf", case, vocabulary, labels)
    again = t5lite.load(tmp_path / "hf", devices=ONE)
    dropped = spec.heads[0]  # a rate that a class has no field for is of training alone
    if hasattr(dropped, "dropout_rate"):
        dropped = dropped.replace(dropout_rate=again.spec.heads[0].dropout_rate)
    assert again.spec.heads == (dropped,)
    assert leaves(again.params) == leaves(params)
    assert again.labels == labels
    config = json.loads((tmp_path / "hf/config.json").read_text())
    if named:
        assert config["id2label"] == {str(index): name for index, name in enumerate(NAMES)}
        assert config["label2id"] == {name: index for index, name in enumerate(NAMES)}
    assert config["pad_token_id"] == vocabulary.pad_id


@live
@pytest.mark.parametrize("case", HEADS)
def test_transformers_says_what_we_say(case, tmp_path, vocabulary):
    import torch
    import transformers

    spec, params = saved(tmp_path / "hf", case, vocabulary)
    name = json.loads((tmp_path / "hf/config.json").read_text())["architectures"][0]
    theirs, problems = getattr(transformers, name).from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(problems.values()), problems
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    frame = vocabulary.frame
    for row, text in zip(ids, TEXTS, strict=True):  # as in training
        framed = [*frame.before, *vocabulary.encode(text), *frame.after]
        assert row[: len(framed)].tolist() == framed
    model = Model(spec)
    side = "encoder" if spec.encoder is not None else "decoder"
    ours = {f"{side}_input_tokens": ids.astype(np.int32), f"{side}_segment_ids": mask}
    ours = {key: np.asarray(value, np.int32) for key, value in ours.items()}
    hidden, _ = model.hidden(params, ours)
    said = np.asarray(model.output(params, spec.heads[0].kind, hidden, mask > 0))
    with torch.no_grad():
        expected = theirs.eval()(**batch)
    if "spans" in case:
        logits = torch.stack([expected.start_logits, expected.end_logits], dim=-1).numpy()
    else:
        logits = expected.logits.numpy()
    valid = mask > 0 if logits.shape[:2] == mask.shape else slice(None)
    assert np.abs(logits[valid]).max() > 0.05
    np.testing.assert_allclose(said[valid], logits[valid], atol=5e-5, rtol=0)


@live
@pytest.mark.parametrize("case", ["bert-classes", "gpt2-classes", "llama-classes"])
def test_a_pipeline_gives_the_names(case, tmp_path, vocabulary):
    import transformers

    saved(tmp_path / "hf", case, vocabulary, {"labels": NAMES})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classify = transformers.pipeline("text-classification", str(tmp_path / "hf"), top_k=None)
        said = classify(TEXTS)
    loaded = t5lite.load(tmp_path / "hf", devices=ONE)
    for theirs, ours in zip(said, loaded.predict(TEXTS), strict=True):
        assert {each["label"] for each in theirs} == set(NAMES)
        assert theirs[0]["label"] == ours.label
        assert abs(theirs[0]["score"] - ours.probability) < 1e-5


def test_sentence_embeddings_come_back(tmp_path, vocabulary):
    for family, pooling in (("bert", "mean"), ("bert", "first"), ("llama", "last")):
        head = EmbeddingHeadSpec(pooling=pooling, normalized=pooling != "first")
        spec, params = model_of(family, head)
        folder = tmp_path / f"{family}-{pooling}"
        save_model(folder, spec, params, kind="huggingface", vocabulary=vocabulary)
        again = t5lite.load(folder, devices=ONE)
        assert again.spec.heads == (head,)
        assert leaves(again.params) == leaves(params)


# --- what is told before training ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("bert_base", ClassificationHeadSpec(), "set pooling = 'first', pooler = True before"),
        ("distilbert_base", ClassificationHeadSpec(**FIRST), "set pooler_activation = 'relu' bef"),
        ("electra_base_discriminator", RegressionHeadSpec(**FIRST), "pooler_activation = 'gelu'"),
        ("gpt2", ClassificationHeadSpec(), "set pooling = 'last', use_bias = False before"),
        ("llama2_7b", RegressionHeadSpec(**FIRST), "pooling = 'last', pooler = False, use_bias"),
        ("t5_1_1_base", ClassificationHeadSpec(), "no class of 't5' with such a head"),
        ("gemma_2b", SpansHeadSpec(), "no class of 'gemma' with such a head"),
    ],
)
def test_a_head_that_could_not_be_written_is_told(name, head, expected):
    spec = preset(name).replace(heads=(head,))
    note = huggingface.export_note(spec)
    assert expected in note
    assert note.startswith(type(head).__name__)
    with pytest.raises(InputError):
        huggingface.describe(spec)


def test_advice_of_a_note_is_enough():
    """Whatever pooled head a family may have, what a note says to set makes it one that can."""
    fixed = 0
    for name in ("bert_base", "roberta_base", "distilbert_base", "albert_base_v2", "gpt2"):
        for kind in ClassificationHeadSpec, RegressionHeadSpec:
            for pooling in ("first", "mean", "last"):
                head = kind(pooling=pooling)
                note = huggingface.export_note(preset(name).replace(heads=(head,)))
                fields = note.partition("set ")[2].partition(" before")[0]
                changes = eval(f"dict({fields})")
                spec = preset(name).replace(heads=(head.replace(**changes),))
                assert huggingface.export_note(spec) is None
                huggingface.describe(spec)
                fixed += 1
    assert fixed == 30


def test_no_note_where_there_is_nothing_to_tell():
    for name in ("bert_base", "gpt2", "t5_1_1_base"):
        assert huggingface.export_note(preset(name)) is None
    own = preset("bert_base").replace(family="mine", heads=(ClassificationHeadSpec(),))
    assert huggingface.export_note(own) is None
