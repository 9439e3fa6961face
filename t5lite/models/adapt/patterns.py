"""Stacks in another repeating pattern of blocks: the parameters of every layer move."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from t5lite.models.adapt.parameters import below, flat, nested, require
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.model import Params
from t5lite.models.spec import StackSpec

PARTS = ("first", "layers", "remainder")


def with_blocks(stack: StackSpec, blocks: Sequence[TransformerBlockSpec]) -> StackSpec:
    """Returns a stack of these blocks, one a layer, with the shortest pattern that repeats.

    Raises:
      InputError: if layers that share their parameters would have different blocks.
    """
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
    """Moves the parameters of every layer to its path and index in another pattern of blocks.

    Args:
      stack_params: of a stack.
      old: the stack's spec.
      new: a spec of as many layers, whose blocks have the parameters of those of `old`.

    Raises:
      InputError: if the numbers of layers differ, or if layers of different parameters would be
        stacked or shared.
    """
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
