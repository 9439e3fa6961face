"""Frozen layers of a scanned stack: no gradients, and below all trained ones no backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models import ComputeSpec, Model, override
from t5lite.objectives import CausalLM
from t5lite.training import ByPath, Everything
from t5lite.training.state import TrainState
from t5lite.training.step import loss_gradients

NUM_LAYERS, BATCH, LENGTH = 4, 4, 32
SPEC = override(
    "gpt_nano",
    {
        "vocab": 64,
        "embed": 64,
        "decoder.num_layers": NUM_LAYERS,
        "decoder.dropout_rate": 0.1,
        "decoder.blocks.*.attention.head_dim": 16,
        "decoder.blocks.*.mlp.hidden": 256,
    },
)
LOWER, UPPER = (
    ByPath(include="decoder/layers", layers=layers) for layers in ((0, 2), (2, NUM_LAYERS))
)
ALL = ByPath(include="decoder/layers")


@functools.cache
def gradients(tuning, *, scan=True, remat="none"):
    """Returns the gradients of the trained parameters and the compiled program."""
    model = Model(SPEC, ComputeSpec(scan=scan, remat=remat))
    bound = tuning.bind(model.axes(), model.shapes())
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 1, SPEC.vocab, jnp.int32)
    batch = {
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": tokens,
        "decoder_segment_ids": jnp.ones_like(tokens),
        "decoder_loss_weights": jnp.ones(tokens.shape, jnp.float32),
    }

    def fn(trained, frozen):
        state = TrainState(
            step=jnp.int32(0),
            params=trained,
            frozen={"params": frozen, "references": {}},
            opt_state=(),
            rng=jax.random.key_data(jax.random.key(2)),
            extra={},
        )
        options = {"num_microbatches": 1, "constrain_gradients": lambda tree: tree}
        return loss_gradients(
            state, batch, model=model, objective=CausalLM(), tuning=bound, **options
        )[2]

    trained, frozen = bound.split(model.init(jax.random.key(0)))
    compiled = jax.jit(fn).lower(trained, frozen).compile()
    return compiled(trained, frozen), compiled, bound


def flops(tuning):
    return gradients(tuning, scan=False)[1].cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("layers", "remat"), [((0, 2), "none"), ((2, 4), "full"), ((1, 3), "none")], ids=str
)
def test_gradients_of_some_layers_are_those_of_all_with_the_same_dropout(layers, remat):
    tree, _, bound = gradients(ByPath(layers=layers), remat=remat)
    whole, _, _ = gradients(Everything(), remat=remat)
    expected, _ = bound.split(whole)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), tree, expected)


def test_a_pattern_of_blocks_is_cut_within_a_repeat():
    spec = SPEC.replace(decoder=SPEC.decoder.replace(blocks=SPEC.decoder.blocks * 2))
    model = Model(spec)
    bound = ByPath(include="layers", layers=(1, 3)).bind(model.axes(), model.shapes())
    params, tokens = model.init(jax.random.key(0)), jnp.ones((1, 8), jnp.int32)

    def loss(params):
        return jnp.sum(model.hidden(params, {"decoder_input_tokens": tokens})[0] ** 2)

    trained, frozen = bound.split(params)
    tree = jax.grad(bound.lift(loss))(trained, frozen)
    expected, _ = bound.split(jax.grad(loss)(params))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), tree, expected
    )


def test_layers_below_all_trained_ones_have_no_backward_pass():
    block = SPEC.decoder.blocks[0]
    backward = 2 * BATCH * block.flops(SPEC.embed, LENGTH)  # of a layer: twice the forward pass
    assert 2 * backward <= flops(ALL) - flops(UPPER) < 1.15 * 2 * backward


def test_layers_above_trained_ones_have_no_weight_gradients():
    block, embed = SPEC.decoder.blocks[0], SPEC.embed
    matrices = 4 * embed**2 + 2 * embed * block.mlp.hidden  # of a layer
    weight_gradients = 2 * BATCH * LENGTH * matrices
    assert 2 * weight_gradients <= flops(ALL) - flops(LOWER) < 1.15 * 2 * weight_gradients


@pytest.mark.parametrize("tuning", [LOWER, UPPER], ids=["lower", "upper"])
def test_no_gradient_of_a_whole_stack_is_in_memory(tuning):
    tree, compiled, _ = gradients(tuning)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    memory = compiled.memory_analysis()
    assert num_bytes <= memory.output_size_in_bytes < 1.02 * num_bytes
    whole = f"f32[{NUM_LAYERS},{SPEC.embed},{SPEC.decoder.blocks[0].mlp.hidden}]"
    assert whole not in compiled.as_text()
    assert whole in gradients(ALL)[1].as_text()
