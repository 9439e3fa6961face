"""A program is built from shapes, checks what it is given, and donates its state."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tiny_runs import (
    OBJECTIVE,
    SPEC,
    assert_close,
    assert_same,
    batches,
    make_program,
    place,
    start,
)

from t5lite.errors import InputError
from t5lite.models import ComputeSpec, Model, preset
from t5lite.objectives import Objective, Seq2Seq
from t5lite.optimizers import Adafactor
from t5lite.parallel import Layout, make_mesh
from t5lite.training import Update, build


def make(layout, *, model=SPEC, batch_size=8, length=16, num_devices=8, **options):
    tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    sides = ("encoder", "decoder")
    names = [f"{side}_{name}" for side in sides for name in ("input_tokens", "segment_ids")]
    names.append("decoder_target_tokens")
    shapes = dict.fromkeys(names, tokens)
    shapes["decoder_loss_weights"] = jax.ShapeDtypeStruct(tokens.shape, jnp.float32)
    return build(
        Model(model, options.pop("compute", ComputeSpec())),
        options.pop("objective", OBJECTIVE),
        Adafactor(0.01),
        shapes,
        layout=layout,
        mesh=make_mesh(layout, jax.devices()[:num_devices]),
        **options,
    )


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (Layout({"data": 8}), {"batch_size": 12}, r"batch size 12 .* 8 devices \(mesh axes data"),
        (Layout({"data": 4, "seq": 2}), {"length": 15}, "length size 15 .* 2 devices"),
        (
            Layout({"tensor": 8}),
            {"batch_size": 6, "update": Update(num_microbatches=4)},
            "Update.num_microbatches = 4: does not divide the batch size 6",
        ),
        (
            Layout({"fsdp": 8}),
            {"batch_size": 16, "update": Update(num_microbatches=4)},
            "batch size 4 .* 8 devices",
        ),
    ],
)
def test_batches_that_do_not_divide(layout, changes, message):
    with pytest.raises(InputError, match=message):
        make(layout, **changes)


def test_the_state_is_donated_and_keeps_its_place():
    program = make_program(("fsdp", 2), ("tensor", 4), optimizer="adafactor")
    before, batch = start(program), place(program, batches(1)[0])
    after, _ = program.step(before, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    assert not any(leaf.is_deleted() for leaf in batch.values())
    for leaf, expected in zip(*map(jax.tree.leaves, (after, program.state)), strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


def test_the_initialiser_draws_into_the_shards_and_by_the_seed():
    program = make_program(("fsdp", 8))
    sharded, other = program.init(3), program.init(4)
    table = sharded.params["token_embedding"]["embedding"]
    assert table.addressable_shards[0].data.shape == (32, 2)
    alone = make_program(num_devices=1).init(3)
    assert_close(sharded.params, alone.params, atol=1e-6)
    assert sharded.step == 0
    for draw in (
        lambda state: state.rng,
        lambda state: state.params["token_embedding"]["embedding"],
    ):
        assert not jnp.array_equal(draw(sharded), draw(other))


def test_it_starts_from_parameters_as_if_it_had_drawn_them():
    drawn = build_scalars().init(3)
    params = jax.tree.map(lambda leaf: 2 * leaf, drawn.params)
    kept, program = jax.device_get(params), build_scalars()
    state = program.start_from(params, 3)
    assert_same(state.params, kept)
    assert_same(state.extra["ema"], kept)
    assert_same(state.rng, drawn.rng)
    # An optimizer that keeps its parameters keeps these, and not the drawn ones.
    assert_same(state.opt_state, kept)
    assert state.extra["update_scale"] == 1
    for leaf, expected in zip(*map(jax.tree.leaves, (state, program.state)), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


class Scores:
    """A linear model of `[batch, length]` features; its labels belong to rows."""

    compute = ComputeSpec()

    def init(self, key):
        return {"weight": jax.random.normal(key, (4, 3))}

    def axes(self):
        return {"weight": PartitionSpec("embed", None)}


class Squares(Objective):
    token_arrays = ()

    def axes(self):
        rows = dict.fromkeys(("labels", "label_weights"), ("batch",))
        return rows | {"features": ("batch", "length")}

    def weights(self, batch):
        return {"square": jnp.sum(batch["label_weights"])}

    def loss(self, model, params, batch, *, frozen, rngs, train):
        off = batch["features"] @ params["weight"] - batch["labels"]
        return {"square": (jnp.sum(batch["label_weights"][:, None] * off**2), 1.0)}, {}


def anchored():
    """Keeps the parameters that it was made with, as some optimizers do."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.copy, params),
        lambda updates, state, params: (jax.tree.map(lambda g: -0.1 * g, updates), state),
    )


def build_scalars(*, num_devices=8, num_microbatches=1, model=Scores()):
    layout = Layout({"data": num_devices // 2, "seq": 2} if num_devices > 1 else {"data": 1})
    shapes = {"features": (8, 4), "labels": (8, 3), "label_weights": (8,)}
    return build(
        model,
        Squares(),
        anchored(),
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()},
        layout=layout,
        mesh=make_mesh(layout, jax.devices()[:num_devices]),
        update=Update(num_microbatches=num_microbatches, ema_decay=0.9),
    )


@pytest.mark.parametrize(("num_devices", "num_microbatches"), [(8, 1), (8, 2), (1, 4)])
def test_arrays_of_rows_are_sharded_and_divided_too(num_devices, num_microbatches):
    rng = np.random.default_rng(0)
    batch = {
        "features": rng.standard_normal((8, 4), np.float32),
        "labels": rng.standard_normal((8, 3), np.float32),  # which do not divide over seq
        "label_weights": np.arange(8, dtype=np.float32),
    }
    program = build_scalars(num_devices=num_devices, num_microbatches=num_microbatches)
    state = program.init(0)
    weight = np.asarray(state.params["weight"])
    after, metrics = program.step(state, place(program, batch))
    off = batch["features"] @ weight - batch["labels"]
    weighed = batch["label_weights"][:, None] * off / batch["label_weights"].sum()
    assert metrics["loss"] == pytest.approx((weighed * off).sum(), rel=1e-5)
    gradient = 2 * batch["features"].T @ weighed
    np.testing.assert_allclose(after.params["weight"], weight - 0.1 * gradient, rtol=1e-4)
    rows = program.batch["label_weights"].sharding.shard_shape((8,))
    assert rows == (8 // max(num_devices // 2, 1),)


def test_float16_wants_a_loss_scale():
    model = Scores()
    model.compute = types.SimpleNamespace(dtype="float16")
    with pytest.raises(InputError, match=r"^Update.loss_scale = None: .*LossScale\(\)"):
        build_scalars(model=model)


def test_a_published_size_lowers_from_shapes_alone():
    before = {id(array) for array in jax.live_arrays()}
    layout = Layout({"data": 2, "fsdp": 2, "tensor": 2})
    program = make(
        layout,
        model=preset("t5_1_1_base"),
        compute=ComputeSpec(dtype="bfloat16", remat="minimal"),
        objective=Seq2Seq(chunk_length=64),
        batch_size=64,
        length=128,
        update=Update(num_microbatches=2, ema_decay=0.999),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(program.state.params)) == 247_577_856
    lowered = program.step.lower(program.state, program.batch)
    state, metrics = lowered.out_info
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
        lambda leaf: leaf.shape, program.state
    )
    assert metrics["loss"].shape == ()
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in new) < 1e5
