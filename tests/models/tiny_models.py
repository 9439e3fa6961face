"""Tiny models that every test of this room runs on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.models import ComputeSpec, Model, ModelSpec, override

TINY = {
    "vocab": 50,
    "embed": 16,
    "*.num_layers": 3,
    "*.blocks.*.attention.num_heads": 4,
    "*.blocks.*.attention.head_dim": 6,
    "decoder.blocks.*.cross_attention.num_heads": 4,
    "decoder.blocks.*.cross_attention.head_dim": 6,
    "*.blocks.*.mlp.hidden": 24,
    "*.position_bias.num_buckets": 8,
    "*.position_bias.max_distance": 16,
}


def tiny(name: str = "t5_1_1_nano", **changes) -> ModelSpec:
    return override(name, TINY | changes)


def derivative(fn, x, direction):
    """How `fn(x)` moves as `x` does, by two reverse passes: models have no forward mode."""

    @jax.jit
    def moved():
        shape, pull_back = jax.vjp(fn, x)
        return jax.linear_transpose(lambda y: pull_back(y)[0], shape)(direction)[0]

    return moved()


@functools.cache
def random_params(spec: ModelSpec, seed: int = 0):
    """Parameters whose norms are random too: ones hide mistakes."""
    # Drawn here rather than by `init`, which would have to be compiled for each spec.
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.2 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, Model(spec).shapes())


def random_batch(seed: int = 0, *, batch: int = 2, encoder: int = 9, decoder: int = 7):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(3, 50, (batch, encoder)).astype(np.int32)
    targets = rng.integers(3, 50, (batch, decoder)).astype(np.int32)
    inputs[0, -3:] = 0
    return {
        "encoder_input_tokens": jnp.asarray(inputs),
        "encoder_segment_ids": jnp.asarray(inputs > 0, jnp.int32),
        "decoder_input_tokens": jnp.asarray(np.pad(targets[:, :-1], ((0, 0), (1, 0)))),
        "decoder_target_tokens": jnp.asarray(targets),
    }


@functools.partial(jax.jit, static_argnames=("spec", "compute", "train"))
def logits(spec: ModelSpec, params, batch, compute=ComputeSpec(), rngs=None, train=False):
    model = Model(spec, compute)
    return model.logits(params, model.hidden(params, batch, rngs=rngs, train=train)[0])


start = jax.jit(lambda model, *arguments: model.start(*arguments, max_length=9), static_argnums=0)
extend = jax.jit(lambda model, *arguments: model.extend(*arguments), static_argnums=0)


def two_kinds_of_blocks() -> ModelSpec:
    """Three layers of two alternating blocks: one turn of the scan and a remainder."""
    wide, narrow = tiny(), override(tiny(), {"*.blocks.*.mlp.hidden": 20})
    stacks = {
        name: getattr(wide, name).replace(
            blocks=(*getattr(wide, name).blocks, *getattr(narrow, name).blocks)
        )
        for name in ("encoder", "decoder")
    }
    return wide.replace(**stacks)


SPECS = {
    "tied": tiny("t5_nano"),
    "two_kinds_of_blocks": two_kinds_of_blocks(),
    "grouped_query_and_bias_per_layer": tiny(
        **{
            "*.position_bias.per_layer": True,
            "*.blocks.*.attention.num_kv_heads": 2,
            "decoder.blocks.*.cross_attention.num_kv_heads": 1,
        }
    ),
}
