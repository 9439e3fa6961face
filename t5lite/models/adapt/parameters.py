"""Trees of parameters: paths, the check against a spec, and drawing of missing ones."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from t5lite.errors import InputError
from t5lite.models.model import Model, Params
from t5lite.models.spec import ModelSpec


def require(condition: bool, field: str, message: str) -> None:
    """Raises an InputError about a field unless a condition holds."""
    if not condition:
        raise InputError(message, field=field)


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
    expected, leaves = shapes_of(spec), flat(params)
    fix = "give the spec and the parameters of the same model"
    if odd := sorted(expected.keys() ^ leaves.keys()):
        verb = "lacks" if odd[0] in expected else "has"
        raise InputError(f"params {verb} {odd[0]} ({len(odd)} such names in all): {fix}")
    for path, leaf in leaves.items():
        shape, wide = tuple(leaf.shape), tuple(expected[path].shape)
        if shape != wide:
            raise InputError(f"params: {path} has shape {shape} where the spec makes {wide}: {fix}")


def completed(spec: ModelSpec, params: Params, *, rng: jax.Array | None) -> Params:
    """Returns `params` of a new model, missing ones drawn with `rng`, and no array twice.

    Raises:
      InputError: if parameters are missing and `rng` is None, or others do not fit.
    """
    leaves = flat(params)
    missing = [path for path in shapes_of(spec) if path not in leaves]
    if missing:
        if rng is None:
            raise InputError(f"rng must be a PRNG key: {missing[0]} has to be drawn", field="rng")

        def draw(key: jax.Array) -> dict[str, jax.Array]:
            new = flat(Model(spec).init(key))
            return {path: new[path] for path in missing}

        # Compiled, so that unused parameters are not drawn.
        leaves |= jax.jit(draw)(rng)
    seen: set[int] = set()
    for path, leaf in leaves.items():
        if id(leaf) in seen:  # a training step gives each array's memory away, once
            leaves[path] = leaf.copy()
        seen.add(id(leaf))
    params = nested(leaves)
    check_parameters(spec, params)
    return params
