"""Every layout of `gin/partitioning` is one device's training, in less memory on each."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5lite
from t5lite import configuration
from t5lite.errors import InputError
from t5lite.layers import MoeSpec
from t5lite.models import Model, override
from t5lite.objectives import CausalLM, MaskedLM, Seq2Seq
from t5lite.optimizers import SGD
from t5lite.parallel import Layout, make_mesh
from t5lite.planning import hlo
from t5lite.training import Update, build

FOLDER = Path(t5lite.__file__).parent.parent / "gin" / "partitioning"
BATCH, LENGTH = 8, 8
TINY = {
    "vocab": 64,
    "embed": 16,
    "*.num_layers": 2,
    "*.blocks.*.attention.num_heads": 4,
    "*.blocks.*.attention.num_kv_heads": 4,
    "*.blocks.*.attention.head_dim": 4,
    "*.blocks.*.mlp.hidden": 32,
    "*.dropout_rate": 0.0,
}
CROSS = {f"decoder.blocks.*.cross_attention.{k}": 4 for k in ("num_heads", "head_dim")}
MODELS = {
    "encoder": override("bert_nano", TINY),
    "decoder": override("llama_nano", TINY),
    "encoder_decoder": override("t5_1_1_nano", TINY | CROSS),
}
OBJECTIVES = {"encoder": MaskedLM(), "decoder": CausalLM(), "encoder_decoder": Seq2Seq()}

# What each device has of an axis, by part of the state: one in so many.
ALL = dict.fromkeys(["vocab", "mlp", "heads", "joined_kv"], 2)
PROMISED = {
    "replicated": ({}, {}),
    "zero1": ({}, {"embed": 8}),
    "zero2": ({}, {"embed": 8}),
    "fsdp": ({"embed": 8},) * 2,
    "fsdp_2d": ({"embed": 8},) * 2,
    "tensor": (ALL,) * 2,
    "fsdp_tensor": ({"embed": 4} | ALL,) * 2,
    "sequence": ({"embed": 4},) * 2,
    "expert": ({"embed": 4, "experts": 2},) * 2,
    "multislice": ({"embed": 4},) * 2,
}


def layout_of(fragment):
    parsed = configuration.parse([str(FOLDER / f"{fragment}.gin")])
    return parsed.bindings_of(t5lite.train)["layout"]


def with_experts(spec):
    def block(block):
        return block.replace(mlp=MoeSpec(block.mlp, num_experts=4, top_k=1, capacity_factor=2.0))

    stacks = {name: getattr(spec, name) for name in ("encoder", "decoder")}
    return spec.replace(
        **{
            name: stack.replace(blocks=tuple(map(block, stack.blocks)))
            for name, stack in stacks.items()
            if stack is not None
        }
    )


@functools.cache
def batch_of(topology):
    rng = np.random.default_rng(0)

    def tokens():
        return rng.integers(3, 64, (BATCH, LENGTH)).astype(np.int32)

    weights = rng.integers(0, 2, (BATCH, LENGTH)).astype(np.float32)
    weights[:, 0] = 1  # rows weigh differently, and none nothing
    sides = topology.split("_")
    batch = {f"{side}_input_tokens": tokens() for side in sides}
    side = sides[-1]
    segments = {f"{side}_segment_ids": np.ones((BATCH, LENGTH), np.int32) for side in sides}
    batch |= {f"{side}_target_tokens": tokens(), f"{side}_loss_weights": weights}
    return batch | segments


def program_of(topology, layout, devices, *, experts=False, update=Update()):
    spec = MODELS[topology]
    batch = batch_of(topology)
    shapes = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch.items()}
    return build(
        Model(with_experts(spec) if experts else spec),
        OBJECTIVES[topology],
        SGD(0.5, momentum=0.9),
        shapes,
        layout=layout,
        mesh=make_mesh(layout, devices),
        update=update,
    )


def after_a_step(program, topology, params):
    state = program.init(0)
    state = state.replace(
        params=jax.tree.map(
            lambda value, like: jax.device_put(value, like.sharding), params, state.params
        )
    )
    placed = {
        name: jax.device_put(rows, program.batch[name].sharding)
        for name, rows in batch_of(topology).items()
    }
    return program.step(state, placed)


@functools.cache
def alone(topology, experts):
    program = program_of(topology, Layout(), jax.devices()[:1], experts=experts)
    params = jax.device_get(program.init(0).params)
    state, metrics = after_a_step(program, topology, params)
    return params, jax.device_get((state.params, metrics["loss"], metrics["gradient_norm"]))


def test_every_fragment_is_in_the_table():
    assert {path.stem for path in FOLDER.glob("*.gin")} == set(PROMISED)


@pytest.mark.parametrize("topology", MODELS)
@pytest.mark.parametrize("fragment", PROMISED)
@pytest.mark.light(
    "fsdp_tensor-encoder_decoder", "expert-decoder", "sequence-encoder", "zero1-decoder"
)
def test_a_layout_is_one_device_in_less_memory(fragment, topology):
    experts = fragment == "expert"
    layout = layout_of(fragment)
    program = program_of(topology, layout, jax.devices(), experts=experts)
    params, expected = alone(topology, experts)
    state, metrics = after_a_step(program, topology, params)
    actual = jax.device_get((state.params, metrics["loss"], metrics["gradient_norm"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), actual, expected
    )

    # The bytes on each device, of the arrays themselves.
    axes = program_axes(topology, experts)
    for tree, promised in zip((state.params, momentum(state)), PROMISED[fragment], strict=True):
        total = sum(
            leaf.size * 4 // math.prod(promised.get(name, 1) for name in set(names))
            for leaf, names in zip(jax.tree.leaves(tree), axes, strict=True)
        )
        held = dict.fromkeys(jax.devices(), 0)
        for leaf in jax.tree.leaves(tree):
            for shard in leaf.addressable_shards:
                held[shard.device] += shard.data.nbytes
        assert set(held.values()) == {total}


@pytest.mark.slow
def test_a_head_that_all_queries_share_is_on_every_device(monkeypatch):
    shared = TINY | {"*.blocks.*.attention.num_kv_heads": 1}
    monkeypatch.setitem(MODELS, "decoder", override("palm_8b", shared))
    params, expected = alone.__wrapped__("decoder", False)
    program = program_of("decoder", layout_of("fsdp_tensor"), jax.devices())
    state, metrics = after_a_step(program, "decoder", params)
    actual = jax.device_get((state.params, metrics["loss"], metrics["gradient_norm"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), actual, expected
    )
    attention = state.params["decoder"]["layers"]["block_0"]["attention"]
    shards = {name: attention[name]["kernel"].sharding.shard_shape for name in ("query", "key")}
    assert shards["query"]((2, 16, 4, 4)) == (2, 4, 2, 4)
    assert shards["key"]((2, 16, 1, 4)) == (2, 4, 1, 4)


def program_axes(topology, experts):
    spec = MODELS[topology]
    axes = Model(with_experts(spec) if experts else spec).axes()
    return [tuple(names) for names in jax.tree.leaves(axes)]


def momentum(state):
    (actual,) = [
        leaf.trace
        for leaf in jax.tree.leaves(state.opt_state, is_leaf=has_trace)
        if has_trace(leaf)
    ]
    return actual


def has_trace(leaf):
    return hasattr(leaf, "trace")


def test_experts_are_reached_all_to_all():
    program = program_of("decoder", layout_of("expert"), jax.devices(), experts=True)
    text = program.step.lower(program.state, program.batch).compile().as_text()
    assert " all-to-all(" in text


def test_a_sequence_is_sharded_along_its_length():
    program = program_of("decoder", layout_of("sequence"), jax.devices())
    shape = program.batch["decoder_input_tokens"]
    assert shape.sharding.shard_shape(shape.shape) == (BATCH // 4, LENGTH // 2)
    text = program.step.lower(program.state, program.batch).compile().as_text()
    assert f"f32[{BATCH // 4},{LENGTH // 2},16]" in text  # the residual stream of a device


def test_zero_2_has_parts_of_gradients():
    def temporaries(fragment):
        program = program_of("decoder", layout_of(fragment), jax.devices())
        compiled = program.step.lower(program.state, program.batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("zero2") < temporaries("zero1")


def test_only_the_named_axis_crosses_slices():
    layout = layout_of("multislice")
    mesh = make_mesh(layout)
    slices = np.vectorize(lambda device: device.id // 4)(mesh.devices).reshape(2, 4)
    assert (slices == [[0] * 4, [1] * 4]).all()
    both = make_mesh(Layout({"data": 4, "fsdp": 2}, slices={"data": 2}))
    ids = np.vectorize(lambda device: device.id // 4)(both.devices).reshape(4, 2)
    assert (ids == [[0, 0], [0, 0], [1, 1], [1, 1]]).all()


@pytest.mark.parametrize(
    ("mesh", "slices", "message"),
    [
        ({"data": 2, "fsdp": 4}, {"fsdp": 3}, "3 slices, which the 8 devices do not divide into"),
        ({"data": 2, "fsdp": 4}, {"data": 4}, r"slices\['data'\] = 4 does not divide .* size 2"),
        ({"data": 8}, {"dat": 2}, "'dat'; did you mean data"),
        ({"data": 8}, {"data": 0}, r"slices\['data'\] = 0"),
    ],
)
def test_slices_that_do_not_fit(mesh, slices, message):
    with pytest.raises(InputError, match=message):
        make_mesh(Layout(mesh, slices=slices))


def test_rules_that_hold_parameters_whole():
    with pytest.raises(InputError, match="'fdsp'; did you mean fsdp"):
        t5lite.parallel.parameter_rules(["fdsp"])


def test_options_are_for_their_platform_alone():
    layout = Layout(compiler_options={"tpu": {"xla_no_such_option": True}})
    run = t5lite.parallel.with_layout(lambda x: x + 1, layout, make_mesh(layout))
    assert run(jnp.int32(1)) == 2
    with pytest.raises(InputError, match="'cpus'"):
        Layout(compiler_options={"cpus": {}})


def test_gradients_are_reduce_scattered_per_layer():
    """Of what FSDP adds up, no device gets more than its part: but for the norms' few numbers."""
    for fragment in ("fsdp", "fsdp_2d"):
        program = program_of("encoder_decoder", layout_of(fragment), jax.devices())
        text = program.step.lower(program.state, program.batch).compile().as_text()
        actual = hlo.read(text).collectives
        num_params = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
        share = 7 / 8 * 4 * num_params
        assert 0.9 * share < actual["reduce-scatter"].bytes < 1.1 * share
        assert actual["all-reduce"].bytes < 0.25 * share
