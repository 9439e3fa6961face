"""Any checkpoint folder opens without configuration and TensorFlow, and answers the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5lite
from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.inference.gaps import encode
from t5lite.interop import locate
from t5lite.layers import ClassificationHeadSpec, LMHeadSpec
from t5lite.models import ComputeSpec, Model, override, save_spec
from t5lite.parallel import Layout
from t5lite.training import Checkpoints, TrainState

VOCABULARY = Bytes(num_sentinels=5)
SPEC = override(
    "t5_1_1_nano",
    {
        "vocab": 384,  # more than the vocabulary's 264
        "embed": 16,
        "*.num_layers": 2,
        "*.blocks.*.attention.num_heads": 4,
        "*.blocks.*.attention.head_dim": 4,
        "decoder.blocks.*.cross_attention.num_heads": 4,
        "decoder.blocks.*.cross_attention.head_dim": 4,
        "*.blocks.*.mlp.hidden": 24,
    },
)
TEXTS = ["a cat", "a <extra_id_0> sat", "o", "déjà vu"]
FEW = {"max_new_tokens": 12}
QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast


def params_of(seed):
    """Random parameters, large enough that answers differ by text."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32),
        Model(SPEC).shapes(),
    )


def save(folder, steps, *, ema=None, spec=SPEC, vocabulary=VOCABULARY):
    """Saves parameters by step, as a training run would."""
    with Checkpoints().open(folder) as checkpointer:
        for step, params in steps.items():
            extra = {} if ema is None else {"ema": ema}
            moments = {"mean": jnp.zeros(3)}
            state = TrainState(jnp.int32(step), params, {}, moments, jnp.zeros(2, "uint32"), extra)
            checkpointer.save(step, state, progress={})
    save_spec(folder / "model.json", spec)
    if vocabulary is not None:
        vocabulary.save(folder / "vocabulary")
    return folder


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), {3: params_of(3), 7: params_of(7)})


@pytest.fixture(scope="module")
def loaded(model_dir):
    return t5lite.load(model_dir, layout=Layout(compiler_options={"cpu": QUICK}))


@pytest.fixture
def traces(monkeypatch):
    """The shapes that decoding was compiled for since the test began."""
    shapes, start = [], Model.start

    def counted(self, params, batch, *, max_length, draft_length):
        shapes.append((*batch["encoder_input_tokens"].shape, max_length))
        return start(self, params, batch, max_length=max_length, draft_length=draft_length)

    monkeypatch.setattr(Model, "start", counted)
    return shapes


# --- what is opened -----------------------------------------------------------------------------


def test_every_folder_of_a_run(model_dir, loaded):
    assert (loaded.step, loaded.spec, loaded.vocabulary.size) == (7, SPEC, VOCABULARY.size)
    assert same(loaded.params, params_of(7))
    for folder, step in ("checkpoints", 7), ("checkpoints/3", 3), ("checkpoints/7", 7):
        again = t5lite.load(str(model_dir / folder))
        assert (again.step, again.folder.name) == (step, str(step))
        assert same(again.params, params_of(step))
        assert again.vocabulary.fingerprint == VOCABULARY.fingerprint


def test_a_step_folder_that_was_copied_out(model_dir, tmp_path):
    alone = tmp_path / "mine"
    shutil.copytree(model_dir / "checkpoints/3", alone)
    with pytest.raises(InputError, match=r"no model.json in .*mine"):
        t5lite.load(alone)
    shutil.copy(model_dir / "model.json", alone)
    again = t5lite.load(alone)
    assert (again.step, again.vocabulary, locate(alone).home) == (3, None, locate(alone)[0])
    with pytest.raises(InputError, match=r"no tokenizer in .*mine.*load\(folder, vocab"):
        again.generate(["a"])
    assert t5lite.load(alone, vocabulary=VOCABULARY).vocabulary is VOCABULARY


def test_averaged_parameters_come_first(tmp_path):
    save(tmp_path, {1: params_of(1)}, ema=params_of(2))
    assert same(t5lite.load(tmp_path).params, params_of(2))


def test_repr_is_short(loaded, model_dir):
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    lines = repr(loaded).splitlines()
    assert lines[0] == f"Loaded(t5, {count:,} parameters, step 7,"
    assert lines[1].strip() == f"'{model_dir}/checkpoints/7')"


@pytest.mark.slow
def test_neither_tensorflow_nor_gin_is_imported(model_dir):
    code = (
        "import sys, t5lite\n"
        f"loaded = t5lite.load({str(model_dir)!r})\n"
        "assert len(loaded.generate(['a', 'b'], max_new_tokens=2)) == 2\n"
        "found = {'tensorflow', 'seqio', 'grain', 'gin'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    root = str(Path(t5lite.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# --- answers ------------------------------------------------------------------------------------


def test_an_answer_depends_on_its_text_alone(loaded):
    together = loaded.generate(TEXTS, **FEW)
    assert len(together) == len(TEXTS)
    assert len(set(together)) > 1
    assert loaded.generate(TEXTS, **FEW) == together
    longer = "words that pad the others further"
    assert loaded.generate([*TEXTS, longer], **FEW)[:-1] == together
    assert [loaded.generate([text], **FEW)[0] for text in TEXTS] == together
    assert loaded.generate(TEXTS, **FEW, batch_size=2) == together


def test_greedy_answers_are_those_of_the_whole_model(loaded):
    ids = VOCABULARY.frame(encode("a cat", VOCABULARY))
    logits_of = jax.jit(
        lambda params, batch: loaded.model.logits(params, loaded.model.hidden(params, batch)[0])
    )
    given, expected = np.zeros((1, 12), np.int32), []
    for column in range(12):
        batch = {"encoder_input_tokens": jnp.array([ids]), "decoder_input_tokens": given}
        logits = logits_of(loaded.params, batch)[0, column, : VOCABULARY.size]
        expected.append(int(np.argmax(logits)))
        if column < 11:
            given[0, column + 1] = expected[-1]
    assert loaded.generate(["a cat"], **FEW) == [VOCABULARY.decode(expected)]


@pytest.mark.slow
def test_sizes_share_their_compilation(loaded, traces):
    loaded.generate(["x"], **FEW)
    loaded.generate(["x"], **FEW, temperature=1.0)
    traces.clear()
    for length in range(1, 16):  # 16 with EOS
        loaded.generate(["y" * length] * (1 + length % 8), **FEW)
        loaded.generate(["y" * length], **FEW, temperature=0.1 * (length + 1), seed=length)
    assert traces == []
    for length in range(64, 128, 9):
        loaded.generate(["x" * length, "y"], **FEW)
    assert traces == [(8, 128, 16)]  # rows are a multiple of the devices


def test_draws(loaded):
    def drawn(seed, batch_size=8):
        texts = ["a"] * 16
        return loaded.generate(texts, **FEW, temperature=1.0, seed=seed, batch_size=batch_size)

    first = drawn(0)
    assert first == drawn(0) == drawn(0, batch_size=16) != drawn(1)
    assert len(set(first)) > 8


def test_ids_of_the_padded_embedding_are_never_written(loaded, monkeypatch):
    heard = []
    monkeypatch.setattr(loaded.vocabulary, "decode", lambda ids: heard.extend(ids) or "")
    loaded.generate(["a"] * 8, **FEW, temperature=50.0)
    assert 200 < max(heard) < VOCABULARY.size


@pytest.mark.parametrize("options", [{}, {"draft": "prompt"}], ids=["plain", "speculative"])
def test_a_stream_is_the_answer_in_pieces(loaded, options):
    pieces = list(loaded.stream("a cat", **FEW, **options))
    assert len(pieces) > 1
    assert ["".join(pieces)] == loaded.generate(["a cat"], **FEW)


def test_any_layout_and_compute(model_dir, loaded):
    layout = Layout(mesh={"data": 2, "tensor": 2, "fsdp": 2}, compiler_options={"cpu": QUICK})
    spread = t5lite.load(model_dir, layout=layout, compute=ComputeSpec(scan=False))
    query = spread.params["encoder"]["layers"]["block_0"]["attention"]["query"]["kernel"]
    assert query.sharding.shard_shape(query.shape) != query.shape
    assert spread.generate(TEXTS, **FEW) == loaded.generate(TEXTS, **FEW)


def test_fill_returns_the_texts(loaded):
    whole, gapped = loaded.generate(["no gap", "a <extra_id_0>"], **FEW, fill=True)
    assert whole == "no gap"
    assert gapped.startswith("a ")


# --- what people get wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "options", "expected"),
    [
        ([], {}, "texts is empty"),
        ("a text", {}, r"texts is one string; put it in a list: \[text\]"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens = 0: must be a whole number"),
        (["a"], {"batch_size": 1.5}, "batch_size = 1.5: must be a whole number"),
        (["a"], {"temperature": -1.0}, "temperature = -1.0: must be 0"),
        (["a"], {"temperature": float("nan")}, "temperature = nan: must be 0"),
        (["<extra_id_9>"], {}, "<extra_id_9> in a text"),
    ],
)
def test_bad_requests(loaded, texts, options, expected):
    with pytest.raises(InputError, match=expected):
        loaded.generate(texts, **options)


def test_fill_needs_sentinels(model_dir):
    loaded = t5lite.load(model_dir, vocabulary=Bytes(num_sentinels=0))
    with pytest.raises(InputError, match="fill needs sentinels"):
        loaded.generate(["a"], fill=True)


def test_bad_folders(tmp_path, model_dir):
    with pytest.raises(InputError, match=r"there is no folder '.*nowhere'; give a model_dir"):
        t5lite.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no checkpoint in"):
        t5lite.load(tmp_path)
    with pytest.raises(InputError, match=r"the vocabulary has 509 ids .* only 384 embeddings"):
        t5lite.load(model_dir, vocabulary=Bytes(num_sentinels=250))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"*.num_layers": 3}, r"saved float32\[2, 16, 4, 4\], expected float32\[3, 16, 4, 4\]"),
        ({"heads": [LMHeadSpec(tied=True)]}, "missing in the model: lm_head/"),
    ],
)
def test_parameters_of_another_model(tmp_path, changes, expected):
    save(tmp_path, {1: params_of(1)}, spec=override(SPEC, changes))
    with pytest.raises(InputError, match=r"model.json does not describe the parameters in") as info:
        t5lite.load(tmp_path)
    assert info.match(expected)
    assert len(str(info.value).splitlines()) <= 4


# --- decoders -----------------------------------------------------------------------------------


def decoder(**changes):
    small = {
        "vocab": 384,
        "embed": 16,
        "decoder.num_layers": 1,
        "decoder.blocks.*.attention.num_heads": 2,
        "decoder.blocks.*.attention.head_dim": 8,
        "decoder.blocks.*.mlp.hidden": 24,
        "decoder.position_embedding.max_length": 48,
    }
    return override("gpt_nano", small | changes)


def save_decoder(folder, spec):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32),
        Model(spec).shapes(),
    )
    return save(folder, {1: params}, spec=spec)


def test_prompts_may_fill_all_positions(tmp_path):
    """40 bytes of prompt behind the start token, and 8 more, of which the last is never read."""
    model = t5lite.load(save_decoder(tmp_path, decoder()))
    ((answer,),) = model.answers(["a" * 40], max_new_tokens=8, min_new_tokens=8)
    assert len(answer.tokens) == 8
    with pytest.raises(InputError, match="a text of 40 tokens, and 9 new ones: the model takes 48"):
        model.answers(["a" * 40], max_new_tokens=9)
    with pytest.raises(InputError, match="a text of 40 tokens, and 9 new ones: the model takes 48"):
        model.answers(["a" * 40], max_new_tokens=8, draft="prompt", draft_length=1)
    cut = model.answers(["b" * 9 + "a" * 36], max_new_tokens=12, truncate=True)
    assert cut[0][0].text == model.answers(["a" * 36], max_new_tokens=12)[0][0].text


def test_a_decoder_without_a_head_for_tokens_cannot_write(tmp_path):
    spec = decoder(heads=[ClassificationHeadSpec()])
    model = t5lite.load(save_decoder(tmp_path, spec))
    with pytest.raises(InputError, match=r"without a head for tokens.* it has classification"):
        model.generate(["a"])
