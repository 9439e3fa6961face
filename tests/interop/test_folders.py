"""Folders of the three layouts: which layout each has; what is written comes back bit for bit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_models import save_model
from small_folders import REFERENCES, add_tokenizer, copied, leaves

import t5lite
from t5lite import interop
from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.interop import huggingface, kind_of
from t5lite.layers import (
    ClassificationHeadSpec,
    EmbeddingHeadSpec,
    RelativeBiasSpec,
    RotarySpec,
)
from t5lite.main import main
from t5lite.models import override
from t5lite.parallel import Layout

ONE = jax.devices()[:1]
KINDS = ("t5lite", "huggingface", "t5x")
MESH = Layout(mesh={"fsdp": 2, "tensor": 4})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A T5 that all three layouts can express, on axes that eight devices can share."""
    spec = override(
        "t5_1_1_nano",
        {
            "vocab": 384,
            "embed": 16,
            "*.num_layers": 2,
            "*.blocks.*.attention.num_heads": 4,
            "*.blocks.*.attention.head_dim": 6,
            "decoder.blocks.*.cross_attention.num_heads": 4,
            "decoder.blocks.*.cross_attention.head_dim": 6,
            "*.blocks.*.mlp.hidden": 24,
        },
    )
    rng = np.random.default_rng(0)
    shapes = t5lite.models.Model(spec).shapes()
    return spec, jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    spec, params = small
    vocabulary = Bytes(num_sentinels=5)
    for kind in KINDS:
        save_model(root / kind, spec, params, kind=kind, step=12, vocabulary=vocabulary)
    return root


# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_what_it_is(small, folders, kind):
    spec, params = small
    loaded = t5lite.load(folders / kind, devices=ONE)
    assert kind_of(folders / kind)[0] == kind
    assert leaves(loaded.params) == leaves(params)
    assert loaded.step == (None if kind == "huggingface" else 12)
    assert (loaded.vocabulary is None) == (kind == "t5x")
    # T5X's checkpoints do not say activations and buckets; what it infers are T5 v1.1's.
    assert loaded.spec == spec


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_of_devices(small, folders, kind):
    spread = t5lite.load(str(folders / kind), layout=MESH, dtype="bfloat16")
    query = spread.params["encoder"]["layers"]["block_0"]["attention"]["query"]["kernel"]
    assert query.sharding.shard_shape(query.shape) == (2, 8, 1, 6)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small[1])
    assert leaves(spread.params) == leaves(rounded)
    assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(spread.params)} == {8}


def test_dtypes():
    folder = REFERENCES / "llama"
    stored = t5lite.load(folder, devices=ONE)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stored.params)} == {"bfloat16"}
    wide = t5lite.load(folder, devices=ONE, dtype=jnp.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide.params)} == {"float32"}
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored.params)
    assert leaves(widened) == leaves(wide.params)
    for dtype in "int8", "bananas", 7, jnp.int32:
        with pytest.raises(InputError, match=r"dtype = .*: must be one of float32, bfloat16, flo"):
            t5lite.load(folder, dtype=dtype)


def test_a_vocabulary_of_ones_own(folders):
    own = Bytes(num_sentinels=3)
    for kind in KINDS:
        assert interop.open_model(folders / kind, vocabulary=own).vocabulary is own
        with pytest.raises(InputError, match=r"vocabulary has 509 ids .* only 384 embeddings"):
            t5lite.load(folders / kind, vocabulary=Bytes(num_sentinels=250), devices=ONE)


def test_a_spec_is_for_t5x_alone(small, folders):
    spec = override(small[0], {"*.position_bias.max_distance": 64})
    assert t5lite.load(folders / "t5x", spec=spec, devices=ONE).spec == spec
    for kind in "t5lite", "huggingface":
        with pytest.raises(InputError, match=r"spec = .*is for T5X checkpoints alone, and .*"):
            t5lite.load(folders / kind, spec=spec)


def test_hugging_face_alone(folders):
    loaded = t5lite.load(folders / "huggingface", layout=Layout(), devices=ONE, dtype="float16")
    assert loaded.params["token_embedding"]["embedding"].dtype == jnp.float16
    assert (loaded.model.spec, loaded.vocabulary.size) == (loaded.spec, 264)
    with pytest.raises(InputError, match=r"cannot read .*config.json: No such file"):
        huggingface.open_model(folders / "t5lite")


def test_folders_inside_a_run(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "t5lite", run)
    shutil.copytree(folders / "huggingface", run / "hub")
    shutil.copytree(folders / "t5x", run / "deeper" / "t5x")
    for folder, kind in (
        ("", "t5lite"),
        ("checkpoints", "t5lite"),
        ("checkpoints/12", "t5lite"),
        ("hub", "huggingface"),
        ("deeper/t5x", "t5x"),
        ("deeper/t5x/checkpoint_12", "t5x"),
    ):
        assert kind_of(run / folder)[0] == kind, folder


@pytest.mark.parametrize("kind", KINDS[1:])
def test_progress_counts_bytes(folders, kind):
    seen = []
    loaded = t5lite.load(
        folders / kind, devices=ONE, progress=lambda done, of: seen.append((done, of))
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)
    assert len(seen) > 10


# --- what is no checkpoint ----------------------------------------------------------------------


def test_a_folder_of_something_else(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(InputError, match="no checkpoint in") as info:
        t5lite.load(tmp_path)
    heading, *layouts = str(info.value).splitlines()
    assert heading.endswith("7.txt and 2 more; needed are")
    assert [line.split(":")[0].strip() for line in layouts] == ["t5lite", "Hugging Face", "T5X"]
    for needed in "model.json", "config.json", "model.safetensors", "checkpoint_N":
        assert needed in str(info.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: root / "nowhere", "no folder '.*nowhere'; give a model_dir, a Hugging Face"),
        (lambda root: "nowhere", r"no folder 'nowhere'; .* or ORGANISATION/NAME of the Hugging"),
        (lambda root: "./no/where", r"no folder './no/where'; give"),
        (lambda root: root / "hf/config.json", "config.json is a file; give its folder"),
        (
            lambda root: root / "hf/model.safetensors",
            "model.safetensors is a file; give its folder",
        ),
    ],
)
def test_paths_that_are_wrong(tmp_path, make, expected):
    copied("llama", tmp_path / "hf")
    with pytest.raises(InputError, match=expected):
        t5lite.load(make(tmp_path))


def test_a_run_without_a_checkpoint_yet(folders, tmp_path):
    shutil.copy(folders / "t5lite/model.json", tmp_path)
    with pytest.raises(InputError, match=r"no checkpoint in .*\n.*give a model_dir"):
        t5lite.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "gemma9"}, r"config.json: unknown model_type 'gemma9'; known: albert, .*"),
        ({"model_type": None, "architectures": None}, "names no model_type"),
        ({"model_type": 3}, "names no model_type"),
    ],
)
def test_configs_of_nothing_known(tmp_path, changes, expected):
    folder = copied("llama", tmp_path / "hf", **changes)
    with pytest.raises(InputError, match=expected) as info:
        t5lite.load(folder)
    if "gemma9" in expected:  # all of them
        assert all(f" {name}" in str(info.value) for name in huggingface.MODULES)


def test_a_damaged_config(tmp_path):
    folder = copied("llama", tmp_path / "hf")
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(InputError, match=r"config.json is damaged.*copy it again"):
        t5lite.load(folder)


# --- saving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same_bit_for_bit(small, tmp_path, kind):
    """Of bfloat16, with one parameter in float32; float32 alone see above."""
    spec, params = small
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    params["encoder"]["final_norm"] = small[1]["encoder"]["final_norm"]
    save_model(tmp_path / "one", spec, params, kind=kind)
    loaded = t5lite.load(tmp_path / "one", devices=ONE)
    assert loaded.spec == spec
    assert leaves(loaded.params) == leaves(params)


@pytest.mark.parametrize("name", ["bert", "gemma2"])
def test_a_reference_survives_all_that_can_hold_it(tmp_path, name):
    loaded = t5lite.load(REFERENCES / name, devices=ONE)
    for kind in "t5lite", "huggingface":
        save_model(tmp_path / kind, loaded.model, loaded.params, kind=kind)
        again = t5lite.load(tmp_path / kind, devices=ONE)
        assert again.spec == loaded.spec
        assert leaves(again.params) == leaves(loaded.params)


def test_sharded_parameters_are_saved(small, folders, tmp_path):
    spread = t5lite.load(folders / "huggingface", layout=MESH)
    for kind in KINDS:
        save_model(tmp_path / kind, spread.model, spread.params, kind=kind)
        again = t5lite.load(tmp_path / kind, devices=ONE)
        assert leaves(again.params) == leaves(small[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_holds_something(small, tmp_path, kind):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something already; give a folder that is new or"):
        save_model(tmp_path, *small, kind=kind)
    with pytest.raises(InputError, match=r"notes.txt' cannot be written: it is a file"):
        save_model(tmp_path / "notes.txt", *small, kind=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "empty", *small, kind=kind)
    assert kind_of(tmp_path / "empty")[0] == kind


def test_an_unknown_kind(small, tmp_path):
    with pytest.raises(InputError, match=r"unknown kind 'hugging_face'; did you mean huggingface"):
        save_model(tmp_path / "new", *small, kind="hugging_face")


def blocks(spec, side, change):
    stack = getattr(spec, side)
    changed = tuple(block.replace(**change(block)) for block in stack.blocks)
    return {side: stack.replace(blocks=changed)}


def attention(spec, **changes):
    return blocks(spec, "decoder", lambda b: {"attention": b.attention.replace(**changes)})


# Specs that transformers' class of the name does not support, and the fields concerned.
UNSAYABLE = {
    "epsilon of one norm": (
        "t5_1_1",
        lambda spec: {
            "encoder": spec.encoder.replace(final_norm=spec.encoder.final_norm.replace(epsilon=0.1))
        },
        {"encoder.final_norm.epsilon"},
    ),
    "epsilon of blocks, and a scale": (
        "t5_1_1",
        lambda spec: (
            blocks(spec, "decoder", lambda block: {"norm": block.norm.replace(epsilon=0.1)})
            | {"encoder": spec.encoder.replace(embedding_scale=3.0)}
        ),
        {"decoder.blocks.0.norm.epsilon", "encoder.embedding_scale"},
    ),
    "more fields than fit on a screen": (
        "t5_1_1",
        lambda spec: {
            side: getattr(spec, side).replace(
                blocks=tuple(
                    block.replace(norm=block.norm.replace(epsilon=0.1 / (layer + 2)))
                    for layer, block in enumerate(getattr(spec, side).every_block)
                ),
                embedding_scale=2.0,
            )
            for side in ("encoder", "decoder")
        },
        {
            *(f"encoder.blocks.{layer}.norm.epsilon" for layer in (1, 2)),
            *(f"decoder.blocks.{layer}.norm.epsilon" for layer in (1, 2, 3)),
            *(f"{side}.embedding_scale" for side in ("encoder", "decoder")),
            *(f"{side}.final_norm.epsilon" for side in ("encoder", "decoder")),
        },
    ),
    "rotary positions": (
        "gpt2",
        lambda spec: attention(spec, rotary=RotarySpec()),
        {"decoder.blocks.0.attention.rotary"},
    ),
    "windows": (
        "llama",
        lambda spec: attention(spec, window=4),
        {"decoder.blocks.0.attention.window"},
    ),
    "relative positions": (
        "llama",
        lambda spec: {"decoder": spec.decoder.replace(position_bias=RelativeBiasSpec())},
        {"decoder.position_bias"},
    ),
    "a head": (
        "gpt2",
        lambda spec: {"heads": (ClassificationHeadSpec(pooler=True, use_bias=False),)},
        {"heads.0.pooling", "heads.0.pooler"},
    ),
}


@pytest.mark.parametrize("case", UNSAYABLE)
def test_what_a_family_cannot_express(tmp_path, case):
    name, changes, fields = UNSAYABLE[case]
    spec = huggingface.open_model(REFERENCES / name).spec
    spec = spec.replace(**changes(spec))
    with pytest.raises(InputError, match=rf"^ModelSpec.family = '{spec.family}': ") as info:
        save_model(tmp_path / "new", spec, {}, kind="huggingface")
    lines = str(info.value).splitlines()[1:]
    assert all(" would become " in line for line in lines)
    assert {line.split(":")[0].strip() for line in lines} == fields
    assert not (tmp_path / "new").exists()


def test_families_that_are_not_theirs(small, tmp_path):
    spec = small[0].replace(family="encoder_decoder")
    llama = huggingface.open_model(REFERENCES / "llama").spec
    with pytest.raises(
        InputError, match=r"family = 'encoder_decoder': .* supported: albert, .*umt5"
    ):
        save_model(tmp_path / "new", spec, small[1], kind="huggingface")
    with pytest.raises(InputError, match="T5X"):
        save_model(tmp_path / "new", llama, small[1], kind="t5x")
    assert list(tmp_path.iterdir()) == []
    save_model(tmp_path / "new", spec, small[1])  # ours holds any
    assert t5lite.load(tmp_path / "new", devices=ONE).spec == spec


def test_what_is_written_beside_the_tensors(tmp_path):
    loaded = t5lite.load(
        add_tokenizer(copied("bert_base_model", tmp_path / "old")), devices=ONE, dtype="bfloat16"
    )
    spec = loaded.spec.replace(heads=(*loaded.spec.heads, EmbeddingHeadSpec(pooling="first")))
    new = tmp_path / "new"
    save_model(new, spec, loaded.params, kind="huggingface", vocabulary=loaded.vocabulary)
    config = json.loads((new / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"], config["eos_token_id"]) == (
        "bfloat16",
        "bfloat16",
        3,
    )
    again = t5lite.load(new, devices=ONE)
    assert again.spec == spec
    for text in "a cat", "", "the end":
        assert again.vocabulary.encode(text) == loaded.vocabulary.encode(text)
        assert again.vocabulary.frame([7]) == [2, 7, 3]


# --- from the command line ----------------------------------------------------------------------


def test_generate_opens_a_hugging_face_folder(tmp_path, capsys):
    folder = add_tokenizer(copied("llama", tmp_path / "llama"), ends=())
    command = ["generate", f"--model_dir={folder}", "--max_new_tokens=4", "a cat"]
    assert main(command) == 0
    expected = t5lite.load(folder).generate(["a cat"], max_new_tokens=4)
    assert capsys.readouterr().out == " ".join(expected[0].split()) + "\n"
