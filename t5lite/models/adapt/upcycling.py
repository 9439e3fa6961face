"""Mixtures of experts from dense models."""

import math
from collections.abc import Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.layers.mlp import MlpSpec
from t5lite.layers.moe import MoeSpec
from t5lite.models.adapt.parameters import (
    check_parameters,
    completed,
    flat,
    nested,
    repattern,
    require,
    shapes_of,
    with_blocks,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.model import Params
from t5lite.models.spec import ModelSpec, StackSpec

ROUTER_STDDEV = 0.02


def upcycle(
    spec: ModelSpec,
    params: Params,
    *,
    num_experts: int,
    rng: jax.Array,
    top_k: int = 2,
    layers: Literal["alternate", "all"] | Collection[int] = "alternate",
    stacks: Collection[str] | None = None,
    capacity_factor: float | None = 2.0,
    normalize_weights: bool | None = None,
    noise_stddev: float = 0.0,
    **options: Any,
) -> tuple[ModelSpec, Params]:
    """Makes a mixture of experts of a dense model: every expert starts as a copy of its MLP.

    If the weights of a token's experts add up to 1 (`normalize_weights`), nothing is dropped and
    there is no noise, the new model computes the old one's outputs. With `top_k` = 1 (Switch) the
    layer's output is at first the MLP's times the router's probability, about 1 / num_experts, and
    the loss rises before it falls.

    Args:
      num_experts: in each changed layer.
      rng: a PRNG key, for the routers, whose kernels are drawn with a standard deviation of 0.02,
        and for noise.
      top_k: experts of a token; the paper has 2 in decoders. (In encoders its experts choose the
        tokens, which `MoeSpec` cannot express.)
      layers: the changed ones of each stack: "alternate", every other one from the second on, as in
        the paper's language models; "all"; or their numbers, from 0.
      stacks: some of "encoder" and "decoder"; None for all.
      capacity_factor: of `MoeSpec`; None for no tokens dropped.
      normalize_weights: of `MoeSpec`; None for True if `top_k` is above 1.
      noise_stddev: of noise that is added to each expert's kernels, as a fraction of the standard
        deviation of their own values; 0 for none, as in the paper.
      options: other fields of `MoeSpec`.
    Returns: the new spec, whose blocks repeat in the shortest pattern, and its parameters.
    Raises: InputError if a layer does not exist or has experts already, if an argument is out of
    its range, or if the parameters do not fit the spec.
    Source: Komatsuzaki et al. 2022, arXiv:2212.05055, §3.
    """
    check_parameters(spec, params)
    require(
        0 <= noise_stddev < math.inf,
        "noise_stddev",
        f"noise_stddev must be at least 0, not {noise_stddev}",
    )
    sides = list(spec.stacks)
    chosen = sides if stacks is None else list(stacks)
    require(
        len(chosen) > 0 and set(chosen) <= set(sides),
        "stacks",
        f"stacks must be some of {', '.join(sides)}, not {stacks!r}",
    )
    fields = options | {
        "num_experts": num_experts,
        "top_k": top_k,
        "capacity_factor": capacity_factor,
        "normalize_weights": top_k > 1 if normalize_weights is None else normalize_weights,
    }
    changes: dict[str, StackSpec] = {}
    for name in chosen:
        stack = getattr(spec, name)
        sparse = _numbers(stack, layers, name)
        changes[name] = with_blocks(
            stack,
            [
                _sparse(block, fields, f"{name}, layer {layer}") if layer in sparse else block
                for layer, block in enumerate(stack.every_block)
            ],
        )
    new_spec = spec.replace(**changes)
    rest, rng = jax.random.split(rng)
    trees = dict(params)
    for name, stack in changes.items():
        rng, own = jax.random.split(rng)
        moved = repattern(params[name], getattr(spec, name), stack)
        trees[name] = _with_experts(new_spec, name, moved, noise_stddev=noise_stddev, rng=own)
    return new_spec, completed(new_spec, trees, rng=rest)


def _with_experts(
    spec: ModelSpec, name: str, stack_params: Params, *, noise_stddev: float, rng: jax.Array
) -> Params:
    stack, expected = getattr(spec, name), shapes_of(spec)
    leaves = flat(stack_params)
    locations = ((stack.location(n), block.mlp) for n, block in enumerate(stack.every_block))
    sparse = {
        path: (mlp.num_experts, 0 if index is None else 1)
        for (path, index), mlp in locations
        if isinstance(mlp, MoeSpec)
    }
    for number, (path, (num_experts, axis)) in enumerate(sparse.items()):
        keys = jax.random.split(jax.random.fold_in(rng, number))
        prefix = f"{path}/mlp/"
        dense = {leaf.removeprefix(prefix) for leaf in leaves if leaf.startswith(prefix)}
        for index, leaf in enumerate(sorted(dense)):
            values = jnp.repeat(jnp.expand_dims(leaves.pop(prefix + leaf), axis), num_experts, axis)
            if noise_stddev and leaf.endswith("kernel"):
                values = _noisy(values, noise_stddev, axis, jax.random.fold_in(keys[0], index))
            leaves[f"{prefix}experts/{leaf}"] = values
        kernel = expected[f"{name}/{prefix}router/kernel"]
        router = ROUTER_STDDEV * jax.random.normal(keys[1], kernel.shape, kernel.dtype)
        leaves[f"{prefix}router/kernel"] = router
    return nested(leaves)


def _noisy(values: jax.Array, stddev: float, axis: int, rng: jax.Array) -> jax.Array:
    """Adds noise to kernels `[…, experts, …, …]`, in proportion to their standard deviations."""
    inner = tuple(range(axis + 1, values.ndim))
    scale = jnp.std(values.astype(jnp.float32), axis=inner, keepdims=True) * stddev
    noise = jax.random.normal(rng, values.shape) * jnp.broadcast_to(scale, values.shape)
    return values + noise.astype(values.dtype)


def _sparse(
    block: TransformerBlockSpec, fields: dict[str, Any], layer: str
) -> TransformerBlockSpec:
    if not isinstance(block.mlp, MlpSpec):
        message = f"layers must be dense before they are upcycled: {layer} is not"
        raise InputError(message, field="layers")
    return block.replace(mlp=MoeSpec(expert=block.mlp, **fields))


def _numbers(
    stack: StackSpec, layers: Literal["alternate", "all"] | Collection[int], name: str
) -> set[int]:
    count = stack.num_layers
    if layers == "all":
        return set(range(count))
    if layers == "alternate":
        return set(range(1, count, 2))
    numbers = set() if isinstance(layers, str) else set(layers)
    require(
        len(numbers) > 0 and all(isinstance(n, int) and 0 <= n < count for n in numbers),
        "layers",
        f"layers must be 'alternate', 'all', or numbers in 0 .. {count - 1}, the layers of the "
        f"{name}, not {layers!r}",
    )
    return {int(n) for n in numbers}
