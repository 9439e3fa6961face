"""`Opened` and `Description`: one contract for t5lite's, Hugging Face's and T5X's checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_models import save_model

from t5lite import interop
from t5lite.data import Bytes
from t5lite.data.input_format import InputFormat
from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.interop import Description, Opened
from t5lite.interop.description import FILES
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.interop.generation_defaults import GenerationDefaults
from t5lite.interop.origin import Origin
from t5lite.layers import ClassificationHeadSpec
from t5lite.models import Model, override
from t5lite.objectives import Prompts
from t5lite.parallel import Layout, make_mesh
from t5lite.training.restore import named
from t5lite.training.tuning import ByPath

KINDS = ("t5lite", "huggingface", "t5x")
SPEC = override(
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
MODEL, VOCABULARY = Model(SPEC), Bytes(num_sentinels=5)


def drawn(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), MODEL.shapes())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("opened")
    for kind in KINDS:
        save_model(root / kind, SPEC, drawn(1), kind=kind, step=12, vocabulary=VOCABULARY)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_opened_alike(folders, kind):
    opened = interop.open_model(folders / kind)
    assert isinstance(opened, Opened)
    assert opened.kind == kind
    assert opened.folder.startswith(str(folders / kind))
    assert opened.step == (None if kind == "huggingface" else 12)
    assert opened.spec == opened.description.spec == SPEC
    assert opened.vocabulary is opened.description.vocabulary
    assert (opened.vocabulary is None) == (kind == "t5x")
    assert opened.left_out() == []
    assert bool(opened.tensors) == (kind != "t5lite")
    assert dataclasses.replace(opened, description=Description(SPEC)).vocabulary is None
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in opened.shapes(MODEL).items()}
    params = named(drawn(1))
    assert shapes == {name: (leaf.shape, leaf.dtype) for name, leaf in params.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_some_parameters_are_read_into_their_shards(folders, kind):
    layout = Layout({"fsdp": 2, "tensor": 4})
    mesh = make_mesh(layout)
    opened, params = interop.open_model(folders / kind), named(drawn(1))
    name = "decoder/layers/block_0/mlp/up/kernel"
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    wanted = {name: jax.ShapeDtypeStruct(params[name].shape, jnp.bfloat16, sharding=rows)}
    (array,) = opened.read(wanted).values()
    assert array.sharding == rows
    np.testing.assert_array_equal(array, params[name].astype(jnp.bfloat16))
    whole = named(opened.params(MODEL, layout=layout, mesh=mesh, dtype="bfloat16"))
    assert whole.keys() == params.keys()
    assert {leaf.dtype.name for leaf in whole.values()} == {"bfloat16"}


def test_a_step_is_chosen(tmp_path):
    for step in (3, 7):
        save_model(tmp_path / f"{step}", SPEC, drawn(step), step=step)
    (tmp_path / "7/checkpoints/7").rename(tmp_path / "3/checkpoints/7")
    for step in (3, 7, None):
        assert interop.open_model(tmp_path / "3", step=step).step == (step or 7)
    with pytest.raises(InputError, match=r"step = 5: .* has no such checkpoint; it has 3, 7"):
        interop.open_model(tmp_path / "3", step=5)
    for step in (3, 7):
        save_model(tmp_path / f"t5x_{step}", SPEC, drawn(step), kind="t5x", step=step)
    (tmp_path / "t5x_7/checkpoint_7").rename(tmp_path / "t5x_3/checkpoint_7")
    assert interop.open_model(tmp_path / "t5x_3", step=3).step == 3
    with pytest.raises(InputError, match=r"step = 5: .* has no checkpoint_5"):
        interop.open_model(tmp_path / "t5x_3", step=5)


def test_a_hugging_face_folder_has_no_steps(folders):
    with pytest.raises(InputError, match=r"step = 1: .* Hugging Face folder, which has no steps"):
        interop.open_model(folders / "huggingface", step=1)


def test_a_description_is_written_and_read(tmp_path, folders):
    frame = Frame(after=(1,))
    description = Description(
        SPEC.replace(heads=(*SPEC.heads, ClassificationHeadSpec(num_classes=2))),
        VOCABULARY,
        labels={"labels": ["no", "yes"]},
        prompts=Prompts("inputs", frame, frame),
        inputs=InputFormat("{title}. {body}", length=64),
        generation=GenerationDefaults({"num_beams": 2}),
        embedding=EmbeddingDefaults({"query": "query: "}, max_length=8),
        origin=Origin(folders / "huggingface"),
        tuning=ByPath(include=["decoder/"]),
    )
    description.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    again = Description.read(tmp_path)
    for field in dataclasses.fields(Description):
        if field.name not in ("vocabulary", "origin"):
            assert getattr(again, field.name) == getattr(description, field.name), field.name
    assert again.vocabulary.fingerprint == VOCABULARY.fingerprint
    assert again.origin.config() == description.origin.config()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again.write(tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_an_old_folder_has_the_model_alone(tmp_path):
    Description(SPEC).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
    assert Description.read(tmp_path) == Description(SPEC, labels={})
