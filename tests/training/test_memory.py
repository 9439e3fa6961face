"""What takes less memory does, by the compiler's own count, and computes the same."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.models import ComputeSpec, Model, override
from t5lite.models.remat import POLICIES
from t5lite.objectives import Seq2Seq
from t5lite.optimizers import Adafactor, AdamW, AdamWScale
from t5lite.parallel import Layout, make_mesh
from t5lite.planning import Slice, compile_step
from t5lite.training import Update, build

SPEC = override(
    "t5_1_1_nano",
    {
        "vocab": 64,
        "embed": 32,
        "*.num_layers": 4,
        "*.blocks.*.attention.num_heads": 4,
        "*.blocks.*.attention.head_dim": 8,
        "decoder.blocks.*.cross_attention.num_heads": 4,
        "decoder.blocks.*.cross_attention.head_dim": 8,
        "*.blocks.*.mlp.hidden": 64,
        "*.dropout_rate": 0.0,
    },
)
LENGTH = 64


def program(
    *,
    remat="none",
    update=Update(),
    batch_size=8,
    optimizer=AdamW(0.01, epsilon=1e-4),
    layout=Layout({"data": 1}),
    devices=None,
    spec=SPEC,
):
    tokens = jax.ShapeDtypeStruct((batch_size, LENGTH), jnp.int32)
    sides = ("encoder", "decoder")
    names = [f"{side}_{name}" for side in sides for name in ("input_tokens", "segment_ids")]
    rows = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    shapes = dict.fromkeys(["decoder_target_tokens", *names], tokens) | {
        **{f"{side}_lengths": rows for side in sides},
        "decoder_loss_weights": jax.ShapeDtypeStruct((batch_size, LENGTH), jnp.float32),
    }
    return build(
        Model(spec, ComputeSpec(remat=remat)),
        Seq2Seq(),
        optimizer,
        shapes,
        layout=layout,
        mesh=make_mesh(layout, devices or jax.devices()[:1]),
        update=update,
    )


def temporaries(built):
    return compile_step(built)[0].memory.temporaries


def batch_of(built):
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(2, 64, shape.shape).astype(shape.dtype)
        if np.issubdtype(shape.dtype, np.integer)
        else np.ones(shape.shape, shape.dtype)
        for name, shape in built.batch.items()
    }
    return {name: jax.device_put(rows, built.batch[name].sharding) for name, rows in arrays.items()}


def steps_of(built, count=1):
    state, batch = built.init(0), batch_of(built)
    for _ in range(count):
        state, metrics = built.step(state, batch)
    return state, metrics


@functools.cache
def of_policy(remat):
    built = program(remat=remat)
    compiled, step = compile_step(built)
    state, metrics = step(built.init(0), batch_of(built))
    return compiled.memory.temporaries, jax.device_get((state.params, metrics["gradient_norm"]))


# The host's memory is memory like any other to a CPU: what `offload` spares is seen on a TPU.
@pytest.mark.parametrize("remat", [name for name in POLICIES if name not in ("none", "offload")])
@pytest.mark.light("full")
def test_a_policy_computes_the_same_in_less_memory(remat):
    memory, actual = of_policy(remat)
    most, expected = of_policy("none")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )
    assert memory < most


@pytest.mark.slow
def test_fewer_saved_activations_need_less_memory():
    order = ["save_dots", "save_attended", "minimal", "save_qkv", "full"]
    sizes = [of_policy(name)[0] for name in order]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.7 * of_policy("none")[0]
    assert of_policy("full")[0] <= of_policy("save_attention")[0] < of_policy("save_attended")[0]
    assert of_policy("full")[0] <= of_policy("save_out")[0] < of_policy("minimal")[0]


@pytest.mark.slow
def test_microbatches_need_memory_for_one_of_them():
    sizes = {
        count: temporaries(program(update=Update(num_microbatches=count), batch_size=16))
        for count in (1, 2, 4, 8)
    }
    # Beside activations there are gradients: those of one microbatch, and their sum.
    model = Model(SPEC)
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.shapes()))
    assert sizes[2] < 0.65 * sizes[1]
    assert sizes[4] < 0.65 * sizes[2]
    assert sizes[8] < sizes[4]
    assert sizes[8] < sizes[1] / 8 + 3 * gradients


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [AdamW, AdamWScale, functools.partial(Adafactor, beta1=0.9)], ids=str
)
def test_moments_in_bfloat16_take_half_and_learn_alike(optimizer):
    full, half = (
        program(optimizer=optimizer(0.01, mu_dtype=dtype)) for dtype in ("float32", "bfloat16")
    )

    def moments(built):
        return sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(built.state.opt_state)
            if leaf.ndim
        )

    params = 4 * sum(leaf.size for leaf in jax.tree.leaves(full.state.params))
    assert moments(full) - moments(half) == params // 2
    losses = []
    for built in (full, half):
        _, metrics = steps_of(built, 5)
        losses.append(float(metrics["loss"]))
    first = float(steps_of(full)[1]["loss"])
    assert losses[0] < first - 0.1
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 1}, {"fsdp": 8}])
def test_an_optimizer_in_host_memory_is_the_same(mesh):
    layouts = [Layout(mesh), Layout(mesh, optimizer_memory="pinned_host")]
    devices = jax.devices()[: 8 if "fsdp" in mesh else 1]
    near, far = (program(layout=layout, devices=devices) for layout in layouts)
    expected, _ = steps_of(near, 2)
    actual, _ = steps_of(far, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), actual, expected
    )
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(actual.opt_state) if leaf.ndim}
    assert kinds == {"pinned_host"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(actual.params)} == {"device"}


def test_a_memory_that_devices_lack_is_named():
    with pytest.raises(InputError, match=r"^Layout.optimizer_memory = 'host': must be 'device' or"):
        Layout(optimizer_memory="host")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@needs_libtpu
@pytest.mark.slow
def test_on_a_tpu_offloaded_state_is_in_host_memory():
    on = Slice.parse("v5e:2x2")
    layout = Layout({"fsdp": 4})
    spec = override(SPEC, {"embed": 256, "*.blocks.*.mlp.hidden": 512})

    def memory(**options):
        built = program(**({"layout": layout, "devices": on.devices(), "spec": spec} | options))
        return built, compile_step(built)[0].memory

    built, plain = memory()
    assert plain.host == 0
    _, kept = memory(layout=dataclasses.replace(layout, optimizer_memory="pinned_host"))
    moments = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * 4
        for leaf in jax.tree.leaves(built.state.opt_state)
        if leaf.ndim
    )
    # Off the device between steps, that is: within one XLA brings them all, so its peak stays.
    assert kept.host >= moments
    _, offloaded = memory(remat="offload")
    assert offloaded.host > 0
