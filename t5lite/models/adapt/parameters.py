"""Trees of parameters: paths, checks, drawing of missing ones, and other patterns of blocks."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from t5lite.errors import InputError
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.model import Model, Params
from t5lite.models.spec import ModelSpec, StackSpec

PARTS = ("first", "layers", "remainder")


def require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise InputError(message, field=field)


@functools.lru_cache(maxsize=8)
def shapes_of(spec: ModelSpec) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Returns the parameters' shapes by their paths, such as `decoder/final_norm/scale`."""
    return flat(Model(spec).shapes())


def flat(tree: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def nested(leaves: Mapping[str, Any]) -> Params:
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def below(tree: Params, path: str) -> Params:
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
    """Returns `params` of a new model, missing ones drawn with `rng`, and no array twice; an
    InputError if parameters are missing and `rng` is None, or others do not fit."""
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


def with_blocks(stack: StackSpec, blocks: Sequence[TransformerBlockSpec]) -> StackSpec:
    """Returns a stack of these blocks, one a layer, with the shortest pattern that repeats; an
    InputError if layers that share their parameters would have different blocks."""
    require(
        len(blocks) == stack.num_layers,
        "blocks",
        f"blocks must be {stack.num_layers}, one a layer; there are {len(blocks)}",
    )
    num_first = len(stack.first_blocks)
    first, rest = tuple(blocks[:num_first]), tuple(blocks[num_first:])
    if not rest:
        return stack.replace(first_blocks=first)

    def repeats(period: int) -> bool:
        return all(block == rest[index % period] for index, block in enumerate(rest))

    if stack.shared_layers:
        period = len(stack.blocks)
        require(
            repeats(period),
            "layers",
            "layers must be the same in each repeat of the pattern, as shared_layers has all "
            f"repeats use the same parameters: choose all, or some of the first {period}",
        )
    else:
        period = next(n for n in range(1, len(rest) + 1) if repeats(n))
    return stack.replace(first_blocks=first, blocks=rest[:period])


def repattern(stack_params: Params, old: StackSpec, new: StackSpec) -> Params:
    """Moves the parameters of every layer to its path and index in another pattern of blocks; an
    InputError if numbers of layers differ, or different parameters would be stacked or shared."""
    require(
        old.num_layers == new.num_layers,
        "num_layers",
        f"num_layers must stay {old.num_layers} in another pattern; it is {new.num_layers}",
    )
    members: dict[str, list[int]] = {}
    for layer in range(new.num_layers):
        members.setdefault(new.location(layer)[0], []).append(layer)
    leaves = flat({name: value for name, value in stack_params.items() if name not in PARTS})
    for path, layers in members.items():
        sources = [old.location(layer) for layer in layers]
        if new.location(layers[0])[1] is None:  # no leading axis
            require(
                len(set(sources)) == 1,
                "shared_layers",
                "shared_layers must stay False: layers have their own parameters",
            )
            block = _layer(stack_params, *sources[0])
        else:
            block = _stacked([_layer(stack_params, *source) for source in sources], path)
        leaves |= {f"{path}/{name}": leaf for name, leaf in block.items()}
    return nested(leaves)


def _layer(stack_params: Params, path: str, index: int | None) -> dict[str, jax.Array]:
    block = flat(below(stack_params, path))
    return block if index is None else {name: leaf[index] for name, leaf in block.items()}


def _stacked(layers: list[dict[str, jax.Array]], path: str) -> dict[str, jax.Array]:
    def kinds(layer: dict[str, jax.Array]) -> dict[str, tuple[int, ...]]:
        return {name: leaf.shape for name, leaf in layer.items()}

    require(
        all(kinds(layer) == kinds(layers[0]) for layer in layers),
        "blocks",
        f"blocks must be equal where they share a position in the pattern: {path}",
    )
    return {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}
