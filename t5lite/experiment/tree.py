"""Tables of a model's parameters and memory, from shapes and shardings alone."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.parallel import Layout, shardings
from t5lite.text import in_bytes, in_flops, table, wrapped
from t5lite.training import Program


class Row(NamedTuple):
    """One line of a tree.

    Args:
      name: after the tree's branches.
      shape: of a parameter, of one layer if stacked; empty for a node.
      axes: logical names, `name:mesh axis` if sharded; empty for a node.
      size: number of parameters, all layers counted.
      device_bytes: their bytes per device.
    """

    name: str
    shape: str
    axes: str
    size: int
    device_bytes: int


def parameter_rows(params: Any, axes: Any) -> list[Row]:
    """Returns a tree's lines, the header first.

    An only child shares its parent's line. Of equal layers one is shown, with its own shapes.

    Args:
      params: nested dicts of `ShapeDtypeStruct`s with shardings.
      axes: the same tree with logical axis names, `PartitionSpec`s.
    """
    header = Row("parameters", "shape", "logical axes", *_weight(params))
    return [header, *_children(params, axes, indent="", inside_layers=False)]


def _children(params: Any, axes: Any, *, indent: str, inside_layers: bool) -> Iterator[Row]:
    for name in params:
        last = name == next(reversed(params))
        node, names, inside = params[name], axes[name], inside_layers
        label = indent + ("└ " if last else "├ ") + name
        while True:
            if not inside and (times := _layers(names, node)):
                label, inside = f"{label} {times}", True
            if not isinstance(node, dict) or len(node) > 1:
                break
            ((only, node),) = node.items()
            label, names = f"{label}/{only}", names[only]
        if isinstance(node, dict):
            yield Row(label, "", "", *_weight(node))
            deeper = indent + ("  " if last else "│ ")
            yield from _children(node, names, indent=deeper, inside_layers=inside)
        else:
            start = 1 if _is_stacked(names) else 0
            named = [_axis(*pair) for pair in zip(*_padded(names, node), strict=True)]
            shape = f"[{', '.join(map(str, node.shape[start:]))}]"
            yield Row(label, shape, " ".join(named[start:]), *_weight(node))


def _layers(axes: Any, params: Any) -> str:
    """Returns `×12`, with the mesh axis if sharded, for a tree of 12 stacked layers."""
    leaves, names = jax.tree.leaves(params), jax.tree.leaves(axes)
    if not all(map(_is_stacked, names)) or len({leaf.shape[0] for leaf in leaves}) > 1:
        return ""
    (_, mesh_axes) = _padded(names[0], leaves[0])
    return _axis(f"×{leaves[0].shape[0]}", mesh_axes[0])


def _is_stacked(axes: Sequence[Any]) -> bool:
    return len(axes) > 0 and axes[0] == "layers"


def _padded(axes: Sequence[Any], leaf: Any) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns the logical name and the mesh axes larger than 1, of each array axis."""
    sharding, rank = leaf.sharding, len(leaf.shape)
    logical = [*axes, *[None] * (rank - len(axes))]
    mesh = [*sharding.spec, *[None] * (rank - len(sharding.spec))]
    groups = [(axis,) if isinstance(axis, str) else axis or () for axis in mesh]
    used = [tuple(axis for axis in group if sharding.mesh.shape[axis] > 1) for group in groups]
    return [name or "·" for name in logical], used


def _axis(name: str, mesh_axes: tuple[str, ...]) -> str:
    return f"{name}:{'+'.join(mesh_axes)}" if mesh_axes else name


def _weight(tree: Any) -> tuple[int, int]:
    count = sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))
    return count, bytes_of(tree)[1]


def bytes_of(tree: Any) -> tuple[int, int]:
    """Returns the bytes of a tree of sharded shapes, in total and per device."""
    total = device = 0
    for leaf in jax.tree.leaves(tree):
        shard = leaf.sharding.shard_shape(leaf.shape)
        itemsize = np.dtype(leaf.dtype).itemsize
        total += int(np.prod(leaf.shape, dtype=np.int64)) * itemsize
        device += int(np.prod(shard, dtype=np.int64)) * itemsize
    return total, device


def parameter_lines(program: Program, axes: Any) -> list[str]:
    """Returns the parameters' tree as text, with a legend."""
    rows = parameter_rows(program.params, axes)
    lines = table(
        [(*row[:3], f"{row.size:,}", in_bytes(row.device_bytes)) for row in rows], right=3
    )
    legend = {
        "×": "×: number of equal layers; shapes are of one layer, counts of all",
        ":": "axis:mesh axis: a sharded axis; others are replicated",
    }
    signs = "".join(f"{row.name}{row.axes}" for row in rows)
    legends = [text for sign, text in legend.items() if sign in signs]
    last = "the last two columns: number of parameters, and their bytes per device"
    trained, size = _weight(program.state.params)[0], rows[0].size
    frozen = [f"trained: {trained:,}, frozen: {size - trained:,}"] if trained < size else []
    return [*lines, "", *legends, last, *frozen]


def memory_lines(program: Program, axes: Any, *, layout: Layout) -> list[str]:
    """Returns a table of the bytes of a run's state, in total and per device."""
    state, rules = program.state, layout.gradients or layout.parameters
    everywhere: Any = state.step.sharding
    gradients = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state.params,
        shardings(program.tuning.split(axes)[0], rules, everywhere.mesh),
    )
    parts = {
        "parameters": state.params,
        "frozen parameters": state.frozen["params"],
        "references": state.frozen["references"],
        "their average": state.extra.get("ema", {}),
        "optimizer state": state.opt_state,
        "gradients": gradients,
    }
    sizes = {name: bytes_of(tree) for name, tree in parts.items() if jax.tree.leaves(tree)}
    total, device = (sum(column) for column in zip(*sizes.values(), strict=True))
    sizes["sum, without activations"] = total, device
    rows = [(name, in_bytes(total), in_bytes(device)) for name, (total, device) in sizes.items()]
    return table([("bytes", "in all", "a device"), *rows], right=1)


def arithmetic_lines(step: float, *, tokens: int) -> list[str]:
    """Returns the FLOPs of a token and a step; `tokens`: positions of all features, padded."""
    text = (
        f"{in_flops(step / 3 / tokens)} a token forward, {in_flops(step / tokens)} in training, "
        f"{in_flops(step)} a step: matrix products, without rematerialisation. A token is a "
        f"position of a row, of inputs and targets alike, padding included."
    )
    return wrapped("arithmetic  ", text)
