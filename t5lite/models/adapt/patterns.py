"""Stacks whose repeating pattern of blocks changes: every layer moves to its new place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.models.adapt.parameters import below, flat, nested
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.model import Params
from t5lite.models.spec import StackSpec

PARTS = ("first", "layers", "remainder")


def with_blocks(stack: StackSpec, blocks: Sequence[TransformerBlockSpec]) -> StackSpec:
    """Returns a stack of these blocks, one a layer, with the shortest pattern that repeats.

    Args:
      stack: whose number of layers, `first_blocks` and so on stay.
      blocks: of each layer, in order.

    Raises:
      InputError: if layers that share their parameters would have different blocks.
    """
    if len(blocks) != stack.num_layers:
        raise InputError(
            f"blocks must be {stack.num_layers}, one a layer; there are {len(blocks)}",
            field="blocks",
        )
    num_first = len(stack.first_blocks)
    first, rest = tuple(blocks[:num_first]), tuple(blocks[num_first:])
    if not rest:
        return stack.replace(first_blocks=first)

    def repeats(period: int) -> bool:
        return all(block == rest[index % period] for index, block in enumerate(rest))

    if stack.shared_layers:
        period = len(stack.blocks)
        if not repeats(period):
            raise InputError(
                "layers must be the same in each turn of the pattern, where shared_layers has all "
                f"turns use the same parameters: choose all, or some of the first {period}",
                field="layers",
            )
    else:
        period = next(n for n in range(1, len(rest) + 1) if repeats(n))
    return stack.replace(first_blocks=first, blocks=rest[:period])


def repattern(stack_params: Params, old: StackSpec, new: StackSpec) -> Params:
    """Moves the parameters of every layer to where another pattern of blocks has them.

    Args:
      stack_params: of a stack: `first`, `layers` and `remainder`, where they exist, and whatever
        else a stack has, which stays.
      old: the stack's spec.
      new: one of as many layers.

    Returns:
      The parameters in the places of `new`, whose blocks are still those of `old`.

    Raises:
      InputError: if the numbers of layers differ, if layers of different parameters would share
        one place, or if layers that are told apart would share parameters.
    """
    if old.num_layers != new.num_layers:
        raise InputError(
            f"num_layers must stay {old.num_layers} in another pattern; it is {new.num_layers}",
            field="num_layers",
        )
    members: dict[str, list[int]] = {}
    for layer in range(new.num_layers):
        members.setdefault(new.place(layer)[0], []).append(layer)
    moved = {name: value for name, value in stack_params.items() if name not in PARTS}
    leaves = flat(moved)
    for path, layers in members.items():
        sources = [old.place(layer) for layer in layers]
        if new.place(layers[0])[1] is None:  # no leading axis
            if any(source != sources[0] for source in sources):
                raise InputError(
                    "shared_layers must stay False: layers have their own parameters",
                    field="shared_layers",
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

    if any(kinds(layer) != kinds(layers[0]) for layer in layers):
        raise InputError(
            f"blocks must be equal where they share a place in the pattern: {path}", field="blocks"
        )
    return {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}
