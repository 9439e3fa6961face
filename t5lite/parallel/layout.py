"""A layout is data: a mesh, and tables from logical axis names to mesh axes."""

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

from t5lite.errors import InputError, unknown

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
    # A batch is spread over the devices that hold experts too, except where they work on it.
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

# What helps training on a platform's devices, whatever the layout.
COMPILER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    # Without it XLA takes products of gathered weights apart into loops, which triples a step's
    # estimated time on a v5e: see benchmarks/README.md.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread over devices.

    Args:
      mesh: mesh axis → size, of `MESH_AXES`; one size may be -1, "all that is left".
      slices: mesh axis → how many slices it spans, a divisor of its size. Between slices there is
        the data centre's network, within one the chips' own links. None for a single slice.
      parameters: logical axis → mesh axis (or several, or None) of the parameters.
      optimizer: the same for the optimizer's state; None for `parameters`.
      optimizer_memory: where the optimizer's state is between steps: `device`, or `pinned_host`,
        the host's memory, from which every step fetches it. That costs the time of two copies,
        and frees the device's memory between steps only: XLA fetches all of it at once.
      gradients: the same for gradients; None for `parameters`.
      gradient_dtype: what the devices' sums of a gradient are rounded to before they are added up.
        `float32` loses nothing, and sends 4 bytes of each parameter at every microbatch. `compute`
        is the dtype of the computation: in bfloat16 2 bytes, a quarter less of all that FSDP sends
        (its weights are gathered twice, in bfloat16), for a relative error of about 2^-9 at each
        of the additions. Either way a device's own rows are added up in float32, and so are
        between devices the gradients of biases, norms and experts, which weigh little or go where
        the tokens go.
      activations: the same for activations and batches.
      compiler_options: given to XLA for this run's compilations: platform (`cpu`, `gpu`, `tpu`) →
        option → value.
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
        if self.optimizer_memory not in MEMORIES:
            raise unknown("memory, Layout.optimizer_memory", self.optimizer_memory, MEMORIES)
        if self.gradient_dtype not in GRADIENT_DTYPES:
            raise unknown("Layout.gradient_dtype", self.gradient_dtype, GRADIENT_DTYPES)
        for platform in self.compiler_options:
            if platform not in ("cpu", "gpu", "tpu"):
                raise unknown("platform in Layout.compiler_options", platform, COMPILER_OPTIONS)
        for axis, count in (self.slices or {}).items():
            if axis not in MESH_AXES:
                raise unknown("mesh axis", axis, MESH_AXES)
            if not isinstance(count, int) or count < 1:
                raise InputError(f"Layout.slices[{axis!r}] = {count!r}: must be at least 1")
        for axis, size in self.mesh.items():
            if axis not in MESH_AXES:
                raise unknown("mesh axis", axis, MESH_AXES)
            if not isinstance(size, int) or (size < 1 and size != -1):
                raise InputError(f"Layout.mesh[{axis!r}] = {size!r}: must be a size or -1")
        if list(self.mesh.values()).count(-1) > 1:
            raise InputError(
                f"Layout.mesh = {dict(self.mesh)}: only one axis may be -1", field="Layout.mesh"
            )
        for table in (self.parameters, self.optimizer, self.gradients, self.activations):
            for _, target in table or ():
                for axis in (target,) if isinstance(target, str) else target or ():
                    if axis not in MESH_AXES:
                        raise unknown("mesh axis", axis, MESH_AXES)


def parameter_rules(
    whole_over: Sequence[str] = (), spread: Mapping[str, str | tuple[str, ...] | None] | None = None
) -> Rules:
    """Returns `PARAMETERS`, changed.

    Args:
      whole_over: mesh axes along which every device has all of an array.
      spread: logical axis → mesh axis (or several, or None), instead of the table's.

    Raises:
      InputError: if there is no such axis.
    """
    for axis in whole_over:
        if axis not in MESH_AXES:
            raise unknown("mesh axis", axis, MESH_AXES)
    named = dict(PARAMETERS)
    for name in spread or ():
        if name not in named:
            raise unknown("logical axis", name, named)
    rules = {name: None if axis in whole_over else axis for name, axis in PARAMETERS}
    return tuple((rules | dict(spread or {})).items())


def make_mesh(layout: Layout, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices; axes that `layout.mesh` leaves out have size 1.

    Args:
      layout: which sizes.
      devices: to arrange; None for all.

    Raises:
      InputError: if the sizes do not multiply to the number of devices, or not within a slice.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [layout.mesh.get(axis, 1) for axis in MESH_AXES]
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    elif -1 in sizes or known != len(devices):
        raise InputError(
            f"Layout.mesh = {dict(layout.mesh)} does not multiply to the {len(devices)} devices",
            field="Layout.mesh",
        )
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    outer = [(layout.slices or {}).get(axis, 1) for axis in MESH_AXES]
    parts = _slices(devices, math.prod(outer))
    for axis, size, count in zip(MESH_AXES, sizes, outer, strict=True):
        if size % count:
            raise InputError(
                f"Layout.slices[{axis!r}] = {count} does not divide the mesh axis's size {size}"
            )
    inner = [size // count for size, count in zip(sizes, outer, strict=True)]
    # Along the links of a slice; where no side of it has a mesh axis's size, along part of one.
    arrange = functools.partial(mesh_utils.create_device_mesh, allow_split_physical_axes=True)
    arranged = np.stack([arrange(inner, part) for part in parts])
    # From [slices of each axis, places in a slice of each axis] to slices outside of places.
    order = [at + n * len(sizes) for at in range(len(sizes)) for n in (0, 1)]
    grid = arranged.reshape(outer + inner).transpose(order).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=types)


def _slices(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
    """Returns the devices of each slice; those that know of none are cut into `count` parts."""
    known = sorted({getattr(device, "slice_index", 0) for device in devices})
    if len(known) == 1:
        if len(devices) % count:
            raise InputError(
                f"Layout.slices makes {count} slices, which the {len(devices)} devices do not "
                "divide into"
            )
        return [list(part) for part in np.array(devices, object).reshape(count, -1)]
    if len(known) != count:
        raise InputError(
            f"the devices are in {len(known)} slices and Layout.slices makes {count}; set "
            f't5lite.parallel.Layout.slices = {{"data": {len(known)}}}'
        )
    return [[device for device in devices if device.slice_index == index] for index in known]


def in_memory(placed: Any, kind: str) -> Any:
    """Returns shardings with another kind of memory, one of `MEMORIES`.

    Raises:
      InputError: if the devices have no such memory.
    """

    def moved(sharding: NamedSharding) -> NamedSharding:
        try:
            return sharding.with_memory_kind(kind)
        except ValueError as error:
            device: Any = next(iter(sharding.device_set))
            known = sorted(memory.kind for memory in device.addressable_memories())
            raise InputError(
                f"Layout.optimizer_memory = {kind!r}: a {device.device_kind} has "
                f"{', '.join(known) or 'no choice of memories'}",
                field="Layout.optimizer_memory",
            ) from error

    return jax.tree.map(moved, placed)


def shardings(axes: Any, rules: Rules, mesh: Mesh) -> Any:
    """Maps a tree of logical axis names to the shardings that `rules` give.

    Args:
      axes: any pytree of `PartitionSpec`s of logical names.
      rules: the table; the first rule whose mesh axis is still free in an array wins.
      mesh: the devices.

    Returns:
      The same tree of `NamedSharding`s.

    Raises:
      InputError: if no rule mentions a logical name.
    """
    named = {name for name, _ in rules}

    def one(spec: PartitionSpec) -> NamedSharding:
        for name in spec:
            if name is not None and name not in named:
                raise unknown("logical axis (no rule of the layout mentions it)", name, named)
        return NamedSharding(mesh, nn.logical_to_mesh_axes(tuple(spec), rules) or PartitionSpec())

    return jax.tree.map(one, axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
