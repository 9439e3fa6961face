"""Folders of sentence-transformers: what their library makes of them, here too, or a refusal.

The oracle is that library, which needs torch; pooling is also compared with NumPy.
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_models import save_model

import t5lite
from t5lite.errors import InputError
from t5lite.layers import EmbeddingHeadSpec, pool

installed = all(
    importlib.util.find_spec(name) for name in ("torch", "transformers", "sentence_transformers")
)
live = pytest.mark.skipif(not installed, reason="pip install sentence-transformers")
pytestmark = pytest.mark.filterwarnings("default")  # those of other libraries are not ours
tokenizers = pytest.importorskip("tokenizers")

ONE = jax.devices()[:1]
TEXTS = ["the River runs", "a cat", "The cat sat on the mat near the old Stone bridge", "the"]
LONG = " ".join(["the river"] * 9)
MODES = {
    "cls": "first",
    "lasttoken": "last",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
    "weightedmean": "weighted_mean",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    import torch
    import transformers

    words = sorted({*" ".join(TEXTS).split(), *" ".join(TEXTS).lower().split(), "query", ":"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = {piece: number for number, piece in enumerate([*special, *words])}
    created = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    created.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    created.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    created.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    folder = tmp_path_factory.mktemp("source")
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=created, **names)
    whole.model_max_length = 30
    whole.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 40, "initializer_range": 0.3}
    config = transformers.BertConfig(vocab_size=len(ids), **sizes)
    transformers.BertModel(config).eval().save_pretrained(folder)
    return folder


def theirs(source, folder, *modules, options=None, **transformer):
    """Writes a folder by their library, and returns what it opens again."""
    from sentence_transformers import SentenceTransformer, models

    first = models.Transformer(str(source), **transformer)
    created = SentenceTransformer(modules=[first, *modules], device="cpu", **(options or {}))
    created.save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def compare(library, folder, texts=TEXTS, **options):
    expected = library.encode(texts, show_progress_bar=False)
    ours = t5lite.load(folder, devices=ONE)
    np.testing.assert_allclose(ours.embed(texts, **options), expected, atol=2e-5)
    return ours


@live
@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("max", "cls"), ("mean", "max")])
@pytest.mark.parametrize("normalized", [True, False])
def test_pooling(source, tmp_path, modes, normalized):
    from sentence_transformers import models

    more = [models.Normalize()] if normalized else []
    library = theirs(source, tmp_path / "theirs", models.Pooling(16, modes), *more)
    ours = compare(library, tmp_path / "theirs")
    assert ours.spec.heads[-1] == EmbeddingHeadSpec(
        pooling="+".join(MODES[mode] for mode in modes), normalized=normalized
    )


@live
@pytest.mark.parametrize("activation", ["Tanh", "Identity", "ReLU", "GELU", "SiLU", "Sigmoid"])
def test_dense_layers_are_followed_kept_and_written(source, tmp_path, activation):
    import torch
    from sentence_transformers import SentenceTransformer, models

    torch.manual_seed(1)
    function = getattr(torch.nn, activation)()
    layers = [
        models.Dense(32, 12, bias=activation != "ReLU", activation_function=function),
        models.Dense(12, 8, activation_function=function),
    ]
    pooling = models.Pooling(16, ("mean", "max"))
    library = theirs(source, tmp_path / "theirs", pooling, *layers, models.Normalize())
    ours = compare(library, tmp_path / "theirs")
    expected = ours.embed(TEXTS)
    for kind in ("t5lite", "huggingface"):
        description = {"vocabulary": ours.vocabulary, "embedding": ours.embedding}
        save_model(tmp_path / kind, ours.model, ours.params, kind=kind, **description)
        again = t5lite.load(tmp_path / kind, devices=ONE)
        np.testing.assert_allclose(again.embed(TEXTS), expected, atol=1e-6)
    reloaded = SentenceTransformer(str(tmp_path / "huggingface"), device="cpu")
    np.testing.assert_allclose(reloaded.encode(TEXTS, show_progress_bar=False), expected, atol=2e-5)


@live
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("included", [True, False])
def test_prompts(source, tmp_path, mode, included):
    from sentence_transformers import SentenceTransformer, models

    prompts = {"query": "query : the ", "document": ""}
    pooling = models.Pooling(16, mode, include_prompt=included)
    options = {"prompts": prompts, "default_prompt_name": "query"}
    library = theirs(source, tmp_path / "theirs", pooling, options=options)
    ours = compare(library, tmp_path / "theirs")
    for name in prompts:
        expected = library.encode(TEXTS, prompt_name=name, show_progress_bar=False)
        actual = ours.embed(TEXTS, prompt_name=name)
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    expected = library.encode(TEXTS, prompt="cat ", show_progress_bar=False)
    np.testing.assert_allclose(ours.embed(TEXTS, prompt="cat "), expected, atol=2e-5)
    with pytest.raises(InputError, match="unknown prompt_name 'querys'; did you mean query"):
        ours.embed(TEXTS, prompt_name="querys")
    with pytest.raises(InputError, match="prompt and prompt_name: a text has one prompt"):
        ours.embed(TEXTS, prompt_name="query", prompt="a")
    for kind in ("t5lite", "huggingface"):
        description = {"vocabulary": ours.vocabulary, "embedding": ours.embedding}
        save_model(tmp_path / kind, ours.model, ours.params, kind=kind, **description)
        again = t5lite.load(tmp_path / kind, devices=ONE)
        np.testing.assert_allclose(again.embed(TEXTS), ours.embed(TEXTS), atol=1e-6)
        assert again.embedding == ours.embedding
    reloaded = SentenceTransformer(str(tmp_path / "huggingface"), device="cpu")
    actual = reloaded.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(actual, ours.embed(TEXTS), atol=2e-5)


@live
@pytest.mark.parametrize("limit", [12, None])
def test_lengths_and_lower_case(source, tmp_path, limit):
    from sentence_transformers import models

    library = theirs(source, tmp_path / "theirs", models.Pooling(16), max_seq_length=limit)
    compare(library, tmp_path / "theirs", [*TEXTS[:2], LONG, LONG * 3], truncate=True)
    ours = t5lite.load(tmp_path / "theirs", devices=ONE)
    with pytest.raises(InputError, match=f"the model takes {limit or 30}; shorten it, or set"):
        ours.embed([LONG * 3])
    library = theirs(source, tmp_path / "lower", models.Pooling(16), do_lower_case=True)
    ours = compare(library, tmp_path / "lower")
    np.testing.assert_array_equal(ours.embed(["The RIVER"]), ours.embed(["the river"]))


@live
def test_an_older_layout(source, tmp_path):
    from sentence_transformers import SentenceTransformer, models

    root = tmp_path / "theirs"
    library = theirs(source, root, models.Pooling(16), max_seq_length=12, do_lower_case=True)
    expected = library.encode([*TEXTS, LONG], show_progress_bar=False)
    (root / "0_Transformer").mkdir()
    for path in [*root.iterdir()]:
        if path.is_file() and path.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            path.rename(root / "0_Transformer" / path.name)
    modules = json.loads((root / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (root / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False}
    pooling |= {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    (root / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    library = SentenceTransformer(str(root), device="cpu")
    compare(library, root, [*TEXTS, LONG], truncate=True)
    actual = t5lite.load(root, devices=ONE).embed([*TEXTS, LONG], truncate=True)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@live
def test_unknown_modules_are_refused(source, tmp_path):
    from sentence_transformers import models

    root = tmp_path / "theirs"
    theirs(source, root, models.Pooling(16), models.LayerNorm(16))
    ours = t5lite.load(root, devices=ONE)
    with pytest.raises(
        InputError, match="modules Transformer, Pooling, LayerNorm, which is not kn"
    ):
        ours.embed(TEXTS)
    theirs(source, root, models.Pooling(16), models.Dense(16, 16, use_residual=True))
    ours = t5lite.load(root, devices=ONE)
    with pytest.raises(InputError, match="a Dense layer with use_residual = True, which is not"):
        ours.embed(TEXTS)
    theirs(source, root, models.Pooling(16), options={"truncate_dim": 4})
    settings = root / "config_sentence_transformers.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "truncate_dim": 4}))
    ours = t5lite.load(root, devices=ONE)
    with pytest.raises(InputError, match="says truncate_dim = 4, which is not known"):
        ours.embed(TEXTS)


@pytest.mark.parametrize("pooling", MODES.values())
def test_pooling_by_name(pooling):
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(2, 5, 3)).astype(np.float32)
    valid = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], bool)
    actual = np.asarray(pool(jnp.asarray(hidden), jnp.asarray(valid), pooling))
    for row in range(2):
        own, places = hidden[row, valid[row]], np.flatnonzero(valid[row]) + 1
        expected = {
            "first": own[0],
            "last": own[-1],
            "max": own.max(axis=0),
            "mean": own.mean(axis=0),
            "mean_sqrt_length": own.sum(axis=0) / np.sqrt(len(own)),
            "weighted_mean": (own * places[:, None]).sum(axis=0) / places.sum(),
        }[pooling]
        np.testing.assert_allclose(actual[row], expected, rtol=1e-5, atol=1e-6)
