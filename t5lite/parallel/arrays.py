"""Global device arrays from rows of the hosts, and functions jitted under a layout."""

import functools
import math
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
    """Returns the sharding of each array of a batch, by the rules `layout.activations`.

    Args:
      axes: array → its logical axes, see `Objective.axes`; further axes are replicated.
      names: of the arrays; one without logical axes raises an InputError.
    """
    result = {}
    for name in names:
        if name not in axes:
            kind = "array of a batch, without axes in the objective's axes():"
            raise unknown(kind, name, axes, field="train.objective")
        result[name] = shardings(PartitionSpec(*axes[name]), layout.activations, mesh)
    return result


def check_batch(
    layout: Layout, mesh: Mesh, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes]
) -> None:
    """Raises an InputError unless each array's global shape divides over the mesh."""
    for name, sharding in batch_shardings(layout, mesh, axes, shapes).items():
        # A spec's entry is None, a mesh axis, or several: `[batch, length]` over
        # `(("data", "fsdp", "expert"), "seq")` needs batch % (data · fsdp · expert) == 0.
        for size, entry, label in zip(shapes[name], sharding.spec, axes[name], strict=False):
            mesh_axes = (entry,) if isinstance(entry, str) else entry or ()
            num_devices = math.prod(mesh.shape[axis] for axis in mesh_axes)
            if size % num_devices:
                raise InputError(
                    f"{label} size {size} of {name} does not divide over {num_devices} devices "
                    f"(mesh axes {', '.join(mesh_axes)}); change it or Layout.mesh",
                    field="Layout.mesh",
                )


def process_rows(layout: Layout, mesh: Mesh, num_rows: int) -> dict[int, np.ndarray]:
    """Returns process → the rows of a batch of `num_rows` that its devices hold, ascending.

    A mesh follows the links between chips, not the order of processes, so a process's rows need not
    be contiguous; where tensor or sequence axes cross processes, several hold the same rows.
    """
    sharding = shardings(PartitionSpec("batch"), layout.activations, mesh)
    blocks: dict[int, list[np.ndarray]] = {}
    for device, (rows,) in sharding.devices_indices_map((num_rows,)).items():
        blocks.setdefault(device.process_index, []).append(np.arange(num_rows)[rows])
    # Devices along tensor or sequence axes hold the same rows: each counts once.
    return {process: np.unique(np.concatenate(blocks[process])) for process in sorted(blocks)}


def to_devices(
    batch: Mapping[str, np.ndarray], sharding: Mapping[str, NamedSharding], *, num_rows: int
) -> dict[str, jax.Array]:
    """Returns `[num_rows, ...]` global arrays by name of the rows that this process's devices hold.

    Args:
      batch: `[rows of this process, ...]` arrays by name, in the order of `process_rows`.
      sharding: of the global arrays, see `batch_shardings`.
      num_rows: of the global batch.
    """
    return {
        # [rows of this process, ...] → [num_rows, ...]; no data crosses processes.
        name: jax.make_array_from_process_local_data(
            sharding[name], rows, (num_rows, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def platform_of(mesh: Any) -> str:
    """Returns `cpu`, `gpu` or `tpu`, of a mesh with devices or without."""
    described = getattr(getattr(mesh, "abstract_mesh", mesh), "abstract_device", None)
    return jax.default_backend() if described is None else described.platform


def with_layout(fn: Callable, layout: Layout, mesh: Mesh, **jit_options: Any) -> Callable:
    """Returns `fn` jitted, its logical axis names resolved by `layout`, with `.trace` and `.lower`.

    Args:
      fn: any function of pytrees.
      layout: its `activations` are the rules inside `fn`; gradients' names begin with `gradient/`,
        and `gradient/rounded` names the mesh axes over which partial gradients are exchanged in the
        computation's dtype.
      mesh: the devices.
      **jit_options: of `jax.jit`.
    """
    gradients = layout.gradients or layout.parameters
    rules = [*layout.activations, *((f"gradient/{name}", axes) for name, axes in gradients)]
    if layout.gradient_dtype == "compute":
        rules.append(("gradient/rounded", MESH_AXES))

    def with_rules(*args: Any, **kwargs: Any) -> Any:
        with nn.logical_axis_rules(rules):  # read while `fn` is traced, by its sharding constraints
            return fn(*args, **kwargs)

    with_rules.__name__ = getattr(fn, "__name__", type(fn).__name__)
    if not isinstance(fn, functools.partial):
        functools.update_wrapper(with_rules, fn)

    options = dict(layout.compiler_options.get(platform_of(mesh), {})) or None
    compiled = jax.jit(with_rules, compiler_options=options, **jit_options)

    def on_mesh(method: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with jax.set_mesh(mesh):
                return method(*args, **kwargs)

        return call

    call = on_mesh(compiled)
    call.trace, call.lower = on_mesh(compiled.trace), on_mesh(compiled.lower)  # type: ignore[attr-defined]
    return call
