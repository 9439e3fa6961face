"""Trees of parameters: their paths, their check against a spec, and what is still to be drawn."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from t5lite.errors import InputError
from t5lite.models.model import Model, Params
from t5lite.models.spec import ModelSpec


@functools.lru_cache(maxsize=8)
def shapes_of(spec: ModelSpec) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Returns the parameters' shapes by their paths, such as `decoder/final_norm/scale`."""
    return flat(Model(spec).shapes())


def flat(tree: Params) -> dict[str, Any]:
    """Returns a tree's leaves by their paths."""
    return traverse_util.flatten_dict(tree, sep="/")


def nested(leaves: Mapping[str, Any]) -> Params:
    """Returns the tree of leaves by their paths."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def below(tree: Params, path: str) -> Params:
    """Returns the part of a tree at a path."""
    return functools.reduce(lambda node, step: node[step], path.split("/"), tree)


def check_parameters(spec: ModelSpec, params: Params) -> None:
    """Raises an InputError unless `params` has exactly the names and shapes that `spec` makes."""
    expected = shapes_of(spec)
    found = flat(params)
    odd = sorted(expected.keys() ^ found.keys())
    if odd:
        which = "lacks" if odd[0] in expected else "has"
        raise InputError(
            f"params {which} {odd[0]} ({len(odd)} such names in all): give the spec and the "
            "parameters of the same model"
        )
    for path, leaf in found.items():
        if tuple(leaf.shape) != tuple(expected[path].shape):
            raise InputError(
                f"params: {path} has shape {tuple(leaf.shape)} where the spec makes "
                f"{tuple(expected[path].shape)}: give the spec and the parameters of the same model"
            )


def completed(spec: ModelSpec, params: Params, *, rng: jax.Array | None) -> Params:
    """Returns `params` with what is missing of it drawn, and no array in two places.

    Args:
      spec: of the new model.
      params: a part of its parameters.
      rng: a PRNG key; needed only where something is missing.

    Raises:
      InputError: if something is missing and there is no `rng`, or what is there does not fit.
    """
    leaves = flat(params)
    missing = [path for path in shapes_of(spec) if path not in leaves]
    if missing:
        if rng is None:
            raise InputError(f"rng must be a PRNG key: {missing[0]} has to be drawn", field="rng")

        def draw(key: jax.Array) -> dict[str, jax.Array]:
            drawn = flat(Model(spec).init(key))
            return {path: drawn[path] for path in missing}

        # Compiled, so that what nothing asks for is not drawn either.
        leaves |= jax.jit(draw)(rng)
    seen: set[int] = set()
    for path, leaf in leaves.items():
        if id(leaf) in seen:  # a training step gives each array's memory away, once
            leaves[path] = leaf.copy()
        seen.add(id(leaf))
    params = nested(leaves)
    check_parameters(spec, params)
    return params
