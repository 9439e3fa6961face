"""Layouts: a mesh, and tables from logical axis names to mesh axes."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError, check_fields, unknown

# The mesh's axes: data parallelism, sharded data parallelism, sequence, tensor and expert.
MESH_AXES = ("data", "fsdp", "seq", "tensor", "expert")

MEMORIES = ("device", "pinned_host")
GRADIENT_DTYPES = ("float32", "compute")

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

PARAMETERS: Rules = (
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("shared_head", None),  # keys and values that all queries share
    ("joined_kv", "tensor"),
    ("embed", "fsdp"),
    ("experts", "expert"),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("positions", None),
    ("token_types", None),
    ("classes", None),
    ("embedding", None),
    ("rank", None),  # of low-rank adapters
)

ACTIVATIONS: Rules = (
    # First match wins, and a mesh axis is used once per array: `[batch, length, embed]` is sharded
    # over the expert axis too, `[experts, batch, ...]` (inside an expert layer) over experts there.
    ("experts", "expert"),
    ("batch", ("data", "fsdp", "expert")),
    ("batch", ("data", "fsdp")),
    ("length", "seq"),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("shared_head", None),
    ("embed", None),
    ("kv", None),
)

# Options that speed up training on a platform, whatever the layout.
COMPILER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    # Without it XLA splits products of gathered weights into loops of collective permutes, which
    # triples a step's estimated time on a v5e: see benchmarks/README.md.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays are sharded over devices.

    Args:
      mesh: mesh axis (of `MESH_AXES`) → size; one size may be -1, the remaining devices.
      slices: mesh axis → number of slices it spans, a divisor of its size; slices are connected by
        the data centre's network, chips of a slice by their own links. None for a single slice.
      parameters: logical axis → mesh axis (or several, or None) of the parameters.
      optimizer: the same for the optimizer's state; None for `parameters`.
      optimizer_memory: of the optimizer's state between steps: `device`, or `pinned_host`, the
        host's memory, from which every step fetches all of it at once. That costs two copies a
        step, and frees device memory between steps only.
      gradients: the same for gradients; None for `parameters`.
      gradient_dtype: of the partial gradients that devices exchange. `float32` loses nothing, and
        sends 4 bytes per parameter and microbatch. `compute` is the computation's dtype: bfloat16
        sends 2, a quarter less of all FSDP traffic (weights are gathered twice, in bfloat16), for a
        relative error of about 2^-9 per addition. Either way each device accumulates its rows in
        float32, and gradients of biases, norms and experts are exchanged in float32.
      activations: the same for activations and batches.
      compiler_options: platform (`cpu`, `gpu`, `tpu`) → XLA option → value.
    """

    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})
    slices: Mapping[str, int] | None = None
    parameters: Rules = PARAMETERS
    optimizer: Rules | None = None
    optimizer_memory: str = "device"
    gradients: Rules | None = None
    gradient_dtype: str = "float32"
    activations: Rules = ACTIVATIONS
    compiler_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: COMPILER_OPTIONS
    )

    def __hash__(self) -> int:  # mappings have none; equal layouts have equal meshes
        return hash(frozenset(self.mesh.items()))

    def __post_init__(self) -> None:
        check_fields(self, optimizer_memory=MEMORIES, gradient_dtype=GRADIENT_DTYPES)
        for platform in self.compiler_options:
            field = "Layout.compiler_options"
            if platform not in ("cpu", "gpu", "tpu"):
                raise unknown(f"platform in {field}", platform, ("cpu", "gpu", "tpu"), field=field)
        for axis, size in self.mesh.items():
            _check_mesh_axis(axis, "Layout.mesh")
            if size != -1:
                _check_size("Layout.mesh", axis, size)
        for axis, count in (self.slices or {}).items():
            _check_mesh_axis(axis, "Layout.slices")
            _check_size("Layout.slices", axis, count)
        if list(self.mesh.values()).count(-1) > 1:
            raise InputError(
                f"Layout.mesh = {dict(self.mesh)}: only one axis may be -1", field="Layout.mesh"
            )
        for field in ("parameters", "optimizer", "gradients", "activations"):
            for _, target in getattr(self, field) or ():
                for axis in (target,) if isinstance(target, str) else target or ():
                    _check_mesh_axis(axis, f"Layout.{field}")


def _check_mesh_axis(axis: str, field: str) -> None:
    if axis not in MESH_AXES:
        raise unknown("mesh axis", axis, MESH_AXES, field=field)


def _check_size(field: str, axis: str, size: object) -> None:
    if type(size) is not int or size < 1:
        or_rest = " or -1, the remaining devices" if field == "Layout.mesh" else ""
        raise InputError(
            f"{field}[{axis!r}] = {size!r}: must be a whole number of at least 1{or_rest}",
            field=field,
        )


def parameter_rules(
    whole_over: Sequence[str] = (), spread: Mapping[str, str | tuple[str, ...] | None] | None = None
) -> Rules:
    """Returns `PARAMETERS` with changes; an axis that does not exist is an InputError.

    Args:
      whole_over: mesh axes over which parameters are replicated.
      spread: logical axis → mesh axis (or several, or None), instead of the table's.
    """
    for axis in whole_over:
        _check_mesh_axis(axis, "parameter_rules.whole_over")
    table = dict(PARAMETERS)
    for name in spread or ():
        if name not in table:
            raise unknown("logical axis", name, table, field="parameter_rules.spread")
    rules = {name: None if axis in whole_over else axis for name, axis in PARAMETERS}
    return tuple((rules | dict(spread or {})).items())


def make_mesh(layout: Layout, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of `devices` (None: all) with the sizes of `layout.mesh`, 1 for other axes.

    Raises: InputError the sizes do not multiply to the number of devices, or not within a slice.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [layout.mesh.get(axis, 1) for axis in MESH_AXES]
    product = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and len(devices) % product == 0:
        sizes[sizes.index(-1)] = len(devices) // product
    elif -1 in sizes or product != len(devices):
        raise InputError(
            f"Layout.mesh = {dict(layout.mesh)} does not multiply to the {len(devices)} devices; "
            "set one axis to -1",
            field="Layout.mesh",
        )
    # Each mesh axis of size s spans `outer` slices, with `inner` = s / outer devices in each.
    outer = [(layout.slices or {}).get(axis, 1) for axis in MESH_AXES]
    slices = _slices(devices, math.prod(outer))
    for axis, size, count in zip(MESH_AXES, sizes, outer, strict=True):
        if size % count:
            raise InputError(
                f"Layout.slices[{axis!r}] = {count} does not divide the mesh axis's size {size}; "
                "set a divisor",
                field="Layout.slices",
            )
    inner = [size // count for size, count in zip(sizes, outer, strict=True)]
    # Mesh axes follow a slice's physical rings; one that fits no ring takes part of one (splitting
    # a physical axis), so that neighbours of the busiest axes are neighbours on the links.
    arrange = functools.partial(mesh_utils.create_device_mesh, allow_split_physical_axes=True)
    arranged = np.stack([arrange(inner, members) for members in slices])  # [slices, *inner]
    # [*outer, *inner] → [outer0, inner0, outer1, inner1, …] → sizes: the slices of an axis are its
    # slow dimension, so that steps along it mostly stay within a slice.
    order = [axis + n * len(sizes) for axis in range(len(sizes)) for n in (0, 1)]
    grid = arranged.reshape(outer + inner).transpose(order).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))


def _slices(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
    """Returns the devices of each slice; devices of one slice are cut into `count` equal parts."""
    indices = sorted({getattr(device, "slice_index", 0) for device in devices})
    if len(indices) == 1:  # CPUs, or a rehearsal of several slices on one
        if len(devices) % count:
            raise InputError(
                f"Layout.slices makes {count} slices, which the {len(devices)} devices do not "
                f"divide into; set a divisor of {len(devices)}",
                field="Layout.slices",
            )
        return [list(part) for part in np.array(devices, object).reshape(count, -1)]
    if len(indices) != count:
        raise InputError(
            f"the devices are in {len(indices)} slices and Layout.slices makes {count}; set "
            f't5lite.parallel.Layout.slices = {{"data": {len(indices)}}}',
            field="Layout.slices",
        )
    return [[device for device in devices if device.slice_index == index] for index in indices]


def in_memory(tree: Any, kind: str) -> Any:
    """Returns shardings in the memory `kind`, one of `MEMORIES`; InputError if devices lack it."""

    def moved(sharding: NamedSharding) -> NamedSharding:
        try:
            return sharding.with_memory_kind(kind)
        except ValueError as error:
            device: Any = next(iter(sharding.device_set))
            kinds = sorted(memory.kind for memory in device.addressable_memories())
            raise InputError(
                f"Layout.optimizer_memory = {kind!r}: a {device.device_kind} has "
                f"{', '.join(kinds) or 'no choice of memories'}; set one that it has",
                field="Layout.optimizer_memory",
            ) from error

    return jax.tree.map(moved, tree)


def shardings(axes: Any, rules: Rules, mesh: Mesh) -> Any:
    """Returns the `NamedSharding`s of a tree of logical axis names.

    For example `PartitionSpec("embed", "heads", "kv")` becomes `("fsdp", "tensor", None)` under
    `PARAMETERS`.

    Args:
      axes: any pytree of `PartitionSpec`s of logical names.
      rules: the table; a name that it lacks is an InputError. The first rule of a name whose mesh
        axes are unused in the array wins: an array can be sharded over a mesh axis along one
        dimension only.
    """
    names = {name for name, _ in rules}
    field = f"Layout.{'activations' if 'batch' in names else 'parameters'}"

    def sharding(spec: PartitionSpec) -> NamedSharding:
        for name in spec:
            if name is not None and name not in names:
                raise unknown(f"logical axis, without a rule in {field}:", name, names, field=field)
        return NamedSharding(mesh, nn.logical_to_mesh_axes(tuple(spec), rules) or PartitionSpec())

    return jax.tree.map(sharding, axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
