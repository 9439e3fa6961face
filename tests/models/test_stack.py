"""A stack is its layers, one after the other, each with the parameters at its place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox
from varied_models import VARIED

from t5lite.layers import AttentionMask, AttentionSpec, MlpSpec, MoeSpec, RotarySpec
from t5lite.models import ComputeSpec, Model, StackSpec, TransformerBlockSpec
from t5lite.models.block import Context
from t5lite.models.stack import Stack

EMBED, LENGTH = 8, 5
ATTENTION = AttentionSpec(2, 4, rotary=RotarySpec())
FIRST, DENSE, SPARSE = (
    TransformerBlockSpec(ATTENTION, MlpSpec(6), attention_norm=False),
    TransformerBlockSpec(ATTENTION.replace(window=1), MlpSpec(10)),
    TransformerBlockSpec(ATTENTION, MoeSpec(MlpSpec(7), 3), parallel=True),
)
make = functools.partial(StackSpec, blocks=(DENSE, SPARSE), causal=True, final_norm=None)
STACKS = {
    "all_parts": make(6, first_blocks=(FIRST,)),
    "pattern": make(4),
    "first_alone": make(2, first_blocks=(FIRST, SPARSE)),
    "remainder_alone": make(1),
    "first_and_remainder": make(2, first_blocks=(FIRST,)),
    "shared": make(5, first_blocks=(FIRST,), shared_layers=True),
}
every_stack = pytest.mark.parametrize("spec", STACKS.values(), ids=STACKS)
CONTEXT = Context(
    mask=AttentionMask.within(jnp.ones((1, LENGTH), jnp.int32), causal=True),
    positions=jnp.arange(LENGTH, dtype=jnp.int32)[None],
)
X = jnp.asarray(np.random.default_rng(1).standard_normal((2, LENGTH, EMBED)), jnp.float32)


def module(spec):
    return Stack(spec, EMBED, None, ComputeSpec())


def shapes(spec):
    return unbox(jax.eval_shape(module(spec).init, jax.random.key(0), X, CONTEXT))["params"]


def random_params(spec):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 2, jnp.float32), shapes(spec)
    )


def at_place(tree, spec, layer):
    """The parameters, or whatever else is laid out as they are, of one layer."""
    path, index = spec.location(layer)
    for part in path.split("/"):
        tree = tree[part]
    return tree if index is None else jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.parametrize("name", ["all_parts", "shared"])
def test_a_stack_is_its_layers_one_after_the_other(name):
    """Auxiliary losses included, which add up over the layers that have them."""
    spec = STACKS[name]
    params = random_params(spec)

    def one_by_one(params):
        x, losses = X, []
        for layer, block in enumerate(spec.every_block):
            own = block.make(
                EMBED,
                dtype=jnp.dtype("float32"),
                dropout_rate=0.0,
                causal=True,
                position_bias=None,
                kernel="dot",
            )
            variables = {"params": at_place(params, spec, layer)}
            (x, _), sown = own.apply(variables, x, CONTEXT, mutable=["losses"])
            losses += jax.tree.leaves(sown)
        return x, sum(losses)

    def together(params):
        (x, _), sown = module(spec).apply({"params": params}, X, CONTEXT, mutable=["losses"])
        return x, sum(jnp.sum(leaf) for leaf in jax.tree.leaves(sown))

    (actual, loss), (expected, losses) = jax.jit(lambda p: (together(p), one_by_one(p)))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loss, losses, rtol=1e-5)
    assert (float(losses) > 0) == any(block is SPARSE for block in spec.every_block)


@every_stack
def test_every_parameter_is_at_the_place_of_one_layer(spec):
    """Of one turn of the pattern, where turns share them."""
    params, sizes = shapes(spec), []
    once = len(spec.first_blocks) + len(spec.blocks) if spec.shared_layers else spec.num_layers
    for layer, block in enumerate(spec.every_block):
        path, index = spec.location(layer)
        own = params[path.split("/")[0]][path.split("/")[1]]
        leading = () if index is None else (spec.num_periods,)
        experts = isinstance(block.mlp, MoeSpec)
        hidden = own["mlp"]["experts" if experts else "up"]
        hidden = hidden["up"]["kernel"] if experts else hidden["kernel"]
        width = (3, EMBED, 7) if experts else (EMBED, block.mlp.hidden)
        assert hidden.shape == leading + width
        assert ("attention_norm" in own) == block.attention_norm
        if layer < once:
            turns = 1 if index is None else spec.num_periods
            sizes.append(sum(leaf.size for leaf in jax.tree.leaves(own)) // turns)
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(params))
    places = [spec.location(layer) for layer in range(spec.num_layers)]
    assert len(set(places)) == once
    turns = [places[at : at + 2] for at in range(len(spec.first_blocks), spec.num_layers, 2)]
    assert not spec.shared_layers or all(turn == turns[0] for turn in turns)


@every_stack
def test_layers_are_dropped_at_a_rate_that_grows_with_depth(spec):
    """Layer l of L with the rate times l / L, laid out as its keys and values are."""
    deep = spec.replace(stochastic_depth_rate=0.6)
    rates = module(deep)._drop_rates()
    indexed = {
        part: {f"block_{at}": rate for at, rate in enumerate(own)} for part, own in rates.items()
    }
    turns = {}
    for layer in range(spec.num_layers):
        path, _ = spec.location(layer)
        rate = indexed[path.split("/")[0]][path.split("/")[1]]
        if rate.ndim:
            rate = rate[turns.setdefault(path, 0)]
            turns[path] += 1
        assert float(rate) == pytest.approx(0.6 * (layer + 1) / spec.num_layers)
    assert all(count == spec.num_periods for count in turns.values())


@pytest.mark.parametrize("spec", VARIED.values(), ids=VARIED)
def test_places_are_in_the_parameters_of_models(spec):
    params = Model(spec).shapes()
    for side in ("encoder", "decoder"):
        stack = getattr(spec, side)
        for layer in range(stack.num_layers if stack else 0):
            path, index = stack.location(layer)
            part, block = path.split("/")
            leaf = params[side][part][block]["attention"]["output"]["kernel"]
            assert leaf.ndim == (3 if index is None else 4)
            assert leaf.shape[-1] == (stack.embed or spec.embed)
