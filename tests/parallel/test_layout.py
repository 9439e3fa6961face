"""Layouts: which mesh they make, and what their tables do with names."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t5lite.errors import InputError
from t5lite.models import PRESETS, Model, preset
from t5lite.optimizers import Adafactor, AdamW
from t5lite.parallel import ACTIVATIONS, MESH_AXES, PARAMETERS, Layout, make_mesh, shardings
from t5lite.planning import Slice
from t5lite.training import initial_state, state_axes, transformation


def shape(mesh, devices=None):
    arranged = make_mesh(Layout(mesh), devices)
    return {axis: size for axis, size in arranged.shape.items() if size > 1}


def test_sizes_of_a_mesh():
    assert make_mesh(Layout()).axis_names == MESH_AXES
    assert shape({"data": -1}) == {"data": 8}
    assert shape({"tensor": 2, "data": -1}) == {"data": 4, "tensor": 2}
    assert shape({"fsdp": 2, "tensor": 4}) == {"fsdp": 2, "tensor": 4}
    assert shape({"fsdp": -1}, jax.devices()[:3]) == {"fsdp": 3}
    assert shape({}, jax.devices()[:1]) == {}
    mesh = make_mesh(Layout({"data": 2, "tensor": 2}), jax.devices()[4:])
    assert list(mesh.devices.flat) == jax.devices()[4:]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"data": 3}, "3.* does not multiply to the 8 devices"),
        ({"data": 3, "tensor": -1}, "8 devices"),
        ({"data": 16}, "8 devices"),
        ({"data": 4}, "8 devices"),
        ({}, "8 devices"),
    ],
)
def test_meshes_that_do_not_fit(mesh, message):
    with pytest.raises(InputError, match=message):
        make_mesh(Layout(mesh))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mesh": {"dat": 8}}, "'dat'; did you mean data"),
        ({"mesh": {"data": 0}}, r"mesh\['data'\] = 0"),
        ({"mesh": {"data": 2.0}}, r"mesh\['data'\] = 2.0"),
        ({"mesh": {"data": -1, "fsdp": -1}}, "only one axis"),
        ({"parameters": (("embed", "fdsp"),)}, "'fdsp'; did you mean fsdp"),
        ({"optimizer": (("embed", "tensr"),)}, "'tensr'; did you mean tensor"),
        ({"activations": (("batch", ("data", "model")),)}, "'model'"),
    ],
)
def test_layouts_that_make_no_sense(arguments, message):
    with pytest.raises(InputError, match=message):
        Layout(**arguments)


def spec(*names, rules=PARAMETERS):
    return shardings(PartitionSpec(*names), rules, make_mesh(Layout())).spec


def test_names_become_mesh_axes():
    assert spec("vocab", "embed") == PartitionSpec("tensor", "fsdp")
    assert spec("layers", "embed", "heads", "kv") == PartitionSpec(None, "fsdp", "tensor", None)
    assert spec(None, "mlp") == PartitionSpec(None, "tensor")
    assert spec() == PartitionSpec()
    assert spec("batch", "length", rules=ACTIVATIONS) == PartitionSpec(
        ("data", "fsdp", "expert"), "seq"
    )


def test_of_two_names_for_one_mesh_axis_the_first_rule_wins():
    assert spec("heads", "vocab") == PartitionSpec(None, "tensor")
    assert spec("vocab", "heads") == PartitionSpec("tensor", None)
    rules = (("mlp", "tensor"), ("embed", "tensor"), ("embed", "fsdp"))
    assert spec("embed", "mlp", rules=rules) == PartitionSpec("fsdp", "tensor")
    assert spec("embed", rules=rules) == PartitionSpec("tensor")


def test_a_tree_keeps_its_structure():
    tree = {"a": [PartitionSpec("embed"), {"b": PartitionSpec()}]}
    placed = shardings(tree, PARAMETERS, make_mesh(Layout()))
    assert jax.tree.structure(placed) == jax.tree.structure({"a": [0, {"b": 0}]})


def test_an_axis_that_no_rule_mentions():
    with pytest.raises(InputError, match="'embedd'; did you mean embed"):
        spec("layers", "embedd")


# Of a family's sizes one: they differ in numbers alone.
@pytest.mark.parametrize("name", {spec.family: name for name, spec in PRESETS.items()}.values())
def test_every_axis_of_every_preset_has_a_rule(name, monkeypatch):
    model = Model(preset(name))
    shardings(model.axes(), PARAMETERS, make_mesh(Layout()))  # raises for a name without

    names = set()
    monkeypatch.setattr(nn, "with_logical_constraint", lambda x, axes, **_: names.update(axes) or x)
    tokens = jnp.zeros((1, 4), jnp.int32)
    batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}

    def forward(params, batch):
        hidden, _ = model.hidden(params, batch)
        return model.logits(params, hidden) if "lm" in model.heads else hidden

    jax.eval_shape(forward, model.shapes(), batch)
    assert names >= {"batch", "length", "embed", "heads", "mlp", "vocab"}
    assert names - {None} <= {rule for rule, _ in ACTIVATIONS}


@pytest.mark.parametrize("optimizer", [Adafactor(0.01, beta1=0.9), AdamW(0.01)], ids=type)
@pytest.mark.parametrize("name", ["t5_base", "t5_1_1_base"])
def test_every_axis_of_an_optimizers_state_has_a_rule_and_fits_its_array(name, optimizer):
    model = Model(preset(name))
    optimizer = transformation(optimizer, model.axes(), model.shapes())
    key = jax.random.key(0)
    state = jax.eval_shape(lambda params: initial_state(params, optimizer, rng=key), model.shapes())
    named = state_axes(state, model.axes(), optimizer)
    placed = shardings(named, PARAMETERS, make_mesh(Layout({"fsdp": 4, "tensor": 2})))
    split = [
        sharding.shard_shape(leaf.shape) != leaf.shape  # raises where it does not fit
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
        if leaf.size >= 2**20
    ]
    # Whatever is large is spread.
    assert split
    assert all(split)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_mesh_axis_shorter_than_the_sides_of_a_slice_is_a_part_of_one():
    mesh = make_mesh(Layout({"fsdp": -1, "tensor": 4}), Slice.parse("v5p:8x8x16").devices())
    groups = mesh.devices.reshape(256, 4)
    for group in groups:
        places = np.array([device.coords for device in group])
        assert (np.abs(np.diff(places, axis=0)).sum(axis=1) == 1).all()  # neighbours, one by one
