"""Runs that train a part of their parameters open as whole models."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_models import description, save_model

import t5lite
from t5lite import interop
from t5lite.errors import InputError
from t5lite.models import Model, override
from t5lite.parallel import Layout, make_mesh
from t5lite.training import CheckpointError, Checkpoints, TrainState
from t5lite.training.restore import named
from t5lite.training.state import frozen_of
from t5lite.training.tuning import ByPath

SPEC = override(
    "t5_1_1_nano",
    {
        "vocab": 32,
        "embed": 8,
        "*.num_layers": 4,
        "*.blocks.*.attention.num_heads": 2,
        "*.blocks.*.attention.head_dim": 4,
        "decoder.blocks.*.cross_attention.num_heads": 2,
        "decoder.blocks.*.cross_attention.head_dim": 4,
        "*.blocks.*.mlp.hidden": 16,
    },
)
MODEL = Model(SPEC)
TUNINGS = {
    "by name": ByPath(include=["decoder/", "lm_head/"]),
    "by layer": ByPath(layers=(2, None)),
    "both": ByPath(exclude=["attention/", "norm"], layers=(1, 3)),
}


def drawn(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), MODEL.shapes())


def save(folder, tuning, params, *, ema=None):
    """Saves a state of a tuned run, and its description."""
    bound = tuning.bind(MODEL.axes(), MODEL.shapes())
    trained, frozen = bound.split(params)
    extra = {} if ema is None else {"ema": bound.split(ema)[0]}
    rng = jnp.zeros(2, "uint32")
    with Checkpoints().open(folder) as checkpointer:
        state = TrainState(jnp.int32(3), trained, frozen_of(frozen), {}, rng, extra)
        checkpointer.save(3, state, progress={})
    description(SPEC, tuning=tuning).write(folder)
    return folder


def assert_same(one, other):
    one, other = named(one), named(other)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("kind", TUNINGS)
def test_a_tuned_run_opens_as_a_whole_model(tmp_path, kind):
    params = drawn(1)
    save(tmp_path, TUNINGS[kind], params)
    opened = interop.open_model(tmp_path)
    assert opened.description.tuning == TUNINGS[kind]
    shapes = {name: leaf.shape for name, leaf in opened.shapes(MODEL).items()}
    assert shapes == {name: leaf.shape for name, leaf in named(MODEL.shapes()).items()}
    mesh = make_mesh(Layout({"fsdp": -1}))
    read = opened.params(MODEL, layout=Layout({"fsdp": -1}), mesh=mesh)
    assert_same(read, params)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(read))
    assert_same(t5lite.load(tmp_path).params, params)


def test_a_converted_run_holds_all_its_parameters(tmp_path):
    params = drawn(9)
    save(tmp_path / "run", TUNINGS["both"], params)
    opened = interop.open_model(tmp_path / "run")
    interop.save(tmp_path / "new", opened.description, params)
    assert_same(t5lite.load(tmp_path / "new").params, params)


def test_one_parameter_of_a_tuned_run_is_read_alone(tmp_path):
    params = named(drawn(2))
    save(tmp_path, TUNINGS["by layer"], drawn(2))
    name = next(name for name in params if name.startswith("encoder/layers/"))
    wanted = {name: jax.ShapeDtypeStruct(params[name].shape, jnp.bfloat16)}
    read = interop.open_model(tmp_path).read(wanted)
    np.testing.assert_array_equal(read[name], params[name].astype(jnp.bfloat16))


def test_the_average_is_of_the_trained_part(tmp_path):
    params, ema = drawn(3), drawn(4)
    save(tmp_path, TUNINGS["by name"], params, ema=ema)
    expected = {
        name: named(ema if name.startswith(("decoder/", "lm_head/")) else params)[name]
        for name in named(params)
    }
    assert_same(named(t5lite.load(tmp_path).params), expected)
    plain = interop.open_model(tmp_path, averaged=False)
    read = plain.params(MODEL, layout=Layout(), mesh=make_mesh(Layout()))
    assert_same(read, params)


def test_another_tuning_than_the_checkpoint_was_saved_with_is_refused(tmp_path):
    save(tmp_path, TUNINGS["by name"], drawn(5))
    description(SPEC, tuning=ByPath(include=["encoder/"])).write(tmp_path)
    with pytest.raises(
        InputError, match=r"model.json, or tuning.json beside it, does not describe the parameters"
    ):
        t5lite.load(tmp_path)


@pytest.fixture
def referring(tmp_path):
    """A run whose frozen parameters are those of another folder."""
    params, tuning = drawn(6), TUNINGS["both"]
    save_model(tmp_path / "base", SPEC, params)
    bound = tuning.bind(MODEL.axes(), MODEL.shapes())
    trained, frozen = bound.split(drawn(7))[0], bound.split(params)[1]
    checkpoints = Checkpoints(restore_from=str(tmp_path / "base"), frozen="refer")
    with checkpoints.open(tmp_path / "run") as checkpointer:
        rng = jnp.zeros(2, "uint32")
        references = {"teacher": {"x": np.ones(3, np.float32)}}
        state = TrainState(jnp.int32(3), trained, frozen_of(frozen, references), {}, rng, {})
        checkpointer.save(3, state, progress={})
    description(SPEC, tuning=tuning).write(tmp_path / "run")
    return tmp_path, bound.merge(trained, frozen)


def test_frozen_parameters_are_read_from_the_base(referring):
    folder, expected = referring
    assert_same(t5lite.load(folder / "run").params, expected)
    name = "encoder/layers/block_0/attention/query/kernel"
    wanted = {name: jax.ShapeDtypeStruct(named(expected)[name].shape, jnp.bfloat16)}
    read = interop.open_model(folder / "run").read(wanted)[name]
    np.testing.assert_array_equal(read, named(expected)[name].astype(jnp.bfloat16))


def test_a_damaged_step_is_named(tmp_path):
    save(tmp_path, TUNINGS["by name"], drawn(5))
    (tmp_path / "checkpoints/3/progress/metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"the checkpoint .*checkpoints/3 is damaged"):
        t5lite.load(tmp_path)


def test_a_base_that_has_changed_is_refused(referring):
    folder, _ = referring
    shutil.rmtree(folder / "base")
    with pytest.raises(InputError, match=r"frozen parameters of .*run.*there is no folder"):
        t5lite.load(folder / "run")
    save_model(folder / "base", SPEC, drawn(8))
    with pytest.raises(InputError, match=r"which has changed since\nrestore that folder"):
        t5lite.load(folder / "run")
