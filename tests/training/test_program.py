"""A program is built from shapes, checks what it is given, and donates its state."""

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import OBJECTIVE, SPEC, assert_close, batches, make_program, place, start

from t5lite.errors import InputError
from t5lite.models import ComputeSpec, Model, preset
from t5lite.objectives import Seq2Seq
from t5lite.optimizers import Adafactor
from t5lite.parallel import Layout, make_mesh
from t5lite.training import Update, build


def make(layout, *, model=SPEC, batch_size=8, length=16, num_devices=8, **options):
    tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
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
            "batch size 6 does not divide into Update.num_microbatches = 4",
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
