"""The tensors of PyTorch's modules, by a table from our modules to theirs.

The model decides which modules exist, and their shapes; a table may have more.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from t5lite.interop.placing import Layer, index_of
from t5lite.interop.tensors import Part, Tensor, View
from t5lite.layers import MaskedLMHeadSpec
from t5lite.models import Model, ModelSpec
from t5lite.training.restore import named

ATTENTION = ("query", "key", "value", "output")


class Module(NamedTuple):
    """A module of theirs that holds one of ours.

    Args:
      name: with `{}` for the layer and `{expert}` for the expert, if there are any.
      part: index of ours in a linear layer that holds `parts` of ours.
      by_head: whether each head's parts follow each other, rather than all heads' first parts, all
        second ones, ….
      conv: whether it is a `Conv1D`, with weights `[in, out]`.
    """

    name: str
    part: int = 0
    parts: int = 1
    by_head: bool = False
    conv: bool = False


Names = Mapping[str, str | Module]


def tensors_of(
    spec: ModelSpec,
    names: Names,
    *,
    layer_name: Callable[[int], str] = str,
    aliases: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    tied: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> list[Tensor]:
    """Returns the tensors of a spec, layer by layer.

    Args:
      names: of their modules, by the path of ours, without the position in a stack:
        `decoder/layers/attention/query`. Parameters of other modules have no tensors.
      layer_name: name of a layer, by its number.
      aliases: further names of tensors by their first.
      tied: more of them, where logits come from the token embedding.
    """
    tensors: dict[str, Tensor] = {}
    order: dict[str, int] = {}
    tied = tied if is_tied(spec) else {}

    def names_of(name: str) -> tuple[str, ...]:
        return (*aliases.get(name, ()), *tied.get(name, ()))

    for path, leaf in named(Model(spec.replace(adapters=())).shapes()).items():
        for key, layer, index in _positions(spec, path, leaf.shape):
            module, _, kind = key.rpartition("/")
            theirs = names.get(module)
            if theirs is None:
                continue
            theirs = Module(theirs) if isinstance(theirs, str) else theirs
            *_, expert = index_of(index) or (0,)
            name = theirs.name.format(layer_name(layer), expert=expert)
            name += ".bias" if kind == "bias" else ".weight"
            shape, view = _layout(key, leaf.shape[len(index_of(index)) :], theirs)
            parts = (*(tensors[name].parts if name in tensors else ()), Part(path, index, view))
            tensors[name] = Tensor(name, shape, parts, names_of(name))
            order[name] = layer
    return sorted(tensors.values(), key=lambda tensor: order[tensor.name])


def _positions(
    spec: ModelSpec, path: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, int, Layer]]:
    """Yields the table's key, layer (-1: none) and index of each part of a parameter."""
    side = path.partition("/")[0]
    stack = getattr(spec, side, None) if side in ("encoder", "decoder") else None
    inside = False
    if stack is not None:
        layers = len(stack.blocks) if stack.shared_layers else stack.num_layers
        for layer in range(layers):
            position, index = stack.location(layer)
            prefix = f"{side}/{position}/"
            if path.startswith(prefix):
                inside, key = True, f"{side}/layers/{path.removeprefix(prefix)}"
                if "/experts/" in path:
                    leading = () if index is None else (index,)
                    for expert in range(shape[len(leading)]):
                        yield key, layer, (*leading, expert)
                else:
                    yield key, layer, index
    if not inside:
        yield path, -1, None


def _layout(key: str, shape: tuple[int, ...], module: Module) -> tuple[tuple[int, ...], View]:
    """Returns the shape of their tensor, and the view of it that is our parameter.

    Args:
      key: of the parameter, its kind.
      shape: of the parameter in one layer.
    """
    kind = key.rpartition("/")[-1]
    if kind == "embedding" and "position_bias" in key:  # [buckets, heads] → [heads, buckets]
        return shape[::-1], lambda array: array.T
    if kind not in ("kernel", "bias") or (kind == "bias" and module.parts == 1):
        return (math.prod(shape),) if kind == "bias" else shape, lambda a: a.reshape(shape)
    # Of attention's output, heads and their features are read; of all others the first axis is.
    num_in = 0 if kind == "bias" else 2 if "/output/" in key and len(shape) == 3 else 1
    into, out = shape[:num_in], shape[num_in:]
    theirs = (module.parts * math.prod(out), *([math.prod(into)] if into else []))

    def view(array: np.ndarray) -> np.ndarray:
        # [parts * out, in] → [out, in] → [in, out], the axes of each split as ours are.
        array = array.T if module.conv else array
        rest = array.shape[1:]
        if module.by_head:
            array = array.reshape(out[0], module.parts, *out[1:], *rest)[:, module.part]
        else:
            array = array.reshape(module.parts, *out, *rest)[module.part]
        array = array.reshape(*out, *into)
        return array.transpose((*range(len(out), array.ndim), *range(len(out))))

    return theirs[::-1] if module.conv else theirs, view


def layers(side: str, name: str, modules: Mapping[str, str | Module]) -> dict[str, str | Module]:
    """Returns the names of the modules in a stack's layers.

    Args:
      name: of a layer, with `{}` for its number.
      modules: in a layer, by ours: `attention/query`.
    """
    result: dict[str, str | Module] = {}
    for ours, theirs in modules.items():
        if isinstance(theirs, Module):
            result[f"{side}/layers/{ours}"] = theirs._replace(name=f"{name}.{theirs.name}")
        else:
            result[f"{side}/layers/{ours}"] = f"{name}.{theirs}"
    return result


def attention(name: str, modules: tuple[str, ...], part: str = "attention") -> dict[str, str]:
    """Returns the names of attention's four projections, which replace `{}` in `name`."""
    pairs = zip(ATTENTION, modules, strict=True)
    return {f"{part}/{ours}": name.format(theirs) for ours, theirs in pairs}


def fused(name: str, ours: tuple[str, ...], **options: Any) -> dict[str, Module]:
    """Returns one linear layer as several of ours, in this order."""
    return {path: Module(name, number, len(ours), **options) for number, path in enumerate(ours)}


QUERY_KEY_VALUE = ("attention/query", "attention/key", "attention/value")


def is_tied(spec: ModelSpec) -> bool:
    return any(getattr(head, "tied", isinstance(head, MaskedLMHeadSpec)) for head in spec.heads)
