"""Host arrays to global device arrays, and programs that know the layout."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError, unknown
from t5lite.parallel.layout import MESH_AXES, Layout, shardings

Axes = Sequence[str | None]


def batch_sharding(layout: Layout, mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the `[batch, length]` arrays of a batch."""
    return shardings(PartitionSpec("batch", "length"), layout.activations, mesh)


def batch_shardings(
    layout: Layout, mesh: Mesh, axes: Mapping[str, Axes], names: Iterable[str]
) -> dict[str, NamedSharding]:
    """Returns the sharding of each array of a batch.

    Args:
      layout: its `activations` are the rules.
      mesh: the devices.
      axes: the logical axes of the arrays that a batch may have, see `Objective.axes`; those that
        an array has beyond are replicated.
      names: of the arrays.

    Raises: InputError if an array has no axes.
    """
    placed = {}
    for name in names:
        if name not in axes:
            raise unknown("array of a batch, without axes in the objective's axes():", name, axes)
        placed[name] = shardings(PartitionSpec(*axes[name]), layout.activations, mesh)
    return placed


def check_batch(
    layout: Layout, mesh: Mesh, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes]
) -> None:
    """Raises an InputError unless each array's global shape divides over the mesh."""
    placed = batch_shardings(layout, mesh, axes, shapes)
    for name, shape in shapes.items():
        for size, axis, label in zip(shape, placed[name].spec, axes[name], strict=False):
            names = (axis,) if isinstance(axis, str) else axis or ()
            parts = int(np.prod([mesh.shape[part] for part in names], dtype=int))
            if size % parts:
                raise InputError(
                    f"{label} size {size} of {name} does not divide over {parts} devices "
                    f"(mesh axes {', '.join(names)}); change it or Layout.mesh"
                )


def process_rows(layout: Layout, mesh: Mesh, num_rows: int) -> dict[int, np.ndarray]:
    """Returns the rows of a batch that each process's devices hold, ascending, by process.

    A mesh follows the links between chips, not the order of processes, so a process's rows need not
    be contiguous; and where tensor or sequence axes cross processes, several hold the same rows.

    Args:
      layout: its `activations` are the rules.
      mesh: the devices.
      num_rows: of the global batch.
    """
    sharding = shardings(PartitionSpec("batch"), layout.activations, mesh)
    held: dict[int, list[np.ndarray]] = {}
    for device, (rows,) in sharding.devices_indices_map((num_rows,)).items():
        held.setdefault(device.process_index, []).append(np.arange(num_rows)[rows])
    return {process: np.unique(np.concatenate(held[process])) for process in sorted(held)}


def place(
    batch: Mapping[str, np.ndarray], placed: Mapping[str, NamedSharding], *, num_rows: int
) -> dict[str, jax.Array]:
    """Puts the rows that this process's devices hold on them, as parts of global arrays.

    Args:
      batch: `[rows of this process, ...]` arrays by name, in the order of `process_rows`.
      placed: the shardings of the global arrays, see `batch_shardings`.
      num_rows: of the global batch.

    Returns:
      `[num_rows, ...]` global arrays by name.
    """
    return {
        name: jax.make_array_from_process_local_data(
            placed[name], rows, (num_rows, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def platform_of(mesh: Any) -> str:
    """Returns `cpu`, `gpu` or `tpu`, of a mesh with devices or without."""
    described = getattr(getattr(mesh, "abstract_mesh", mesh), "abstract_device", None)
    return jax.default_backend() if described is None else described.platform


def with_layout(fn: Callable, layout: Layout, mesh: Mesh, **jit_options: Any) -> Callable:
    """Returns `fn` jitted; the logical names in it mean `layout`'s mesh axes.

    Args:
      fn: any function of pytrees.
      layout: its `activations` are the rules inside `fn`; its gradients' logical names there begin
        with `gradient/`, and `gradient/rounded` are the mesh axes between which sums of gradients
        travel in the dtype of the computation.
      mesh: the devices.
      **jit_options: passed to `jax.jit`; `donate_argnums`, `static_argnames` and so on.

    Returns:
      A function with `.trace(*shapes)` and `.lower(*shapes)` like `jax.jit`'s.
    """

    of_gradients = layout.gradients or layout.parameters
    rules = [*layout.activations, *((f"gradient/{name}", axes) for name, axes in of_gradients)]
    if layout.gradient_dtype == "compute":
        rules.append(("gradient/rounded", MESH_AXES))

    def ruled(*args: Any, **kwargs: Any) -> Any:
        with nn.logical_axis_rules(rules):
            return fn(*args, **kwargs)

    ruled.__name__ = getattr(fn, "__name__", type(fn).__name__)
    if not isinstance(fn, functools.partial):
        functools.update_wrapper(ruled, fn)

    options = dict(layout.compiler_options.get(platform_of(mesh), {})) or None
    compiled = jax.jit(ruled, compiler_options=options, **jit_options)

    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.set_mesh(mesh):
            return compiled(*args, **kwargs)

    def trace(*args: Any, **kwargs: Any) -> Any:
        with jax.set_mesh(mesh):
            return compiled.trace(*args, **kwargs)

    def lower(*args: Any, **kwargs: Any) -> Any:
        with jax.set_mesh(mesh):
            return compiled.lower(*args, **kwargs)

    call.trace, call.lower = trace, lower  # type: ignore[attr-defined]
    return call
