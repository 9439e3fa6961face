"""A layout is data: a mesh, and tables from logical axis names to mesh axes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError, unknown

# The mesh's axes: data parallelism, sharded data parallelism, sequence, tensor and expert.
MESH_AXES = ("data", "fsdp", "seq", "tensor", "expert")

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

PARAMETERS: Rules = (
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
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
    ("embed", None),
    ("kv", None),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread over devices.

    Args:
      mesh: mesh axis → size, of `MESH_AXES`; one size may be -1, "all that is left".
      parameters: logical axis → mesh axis (or several, or None) of the parameters.
      optimizer: the same for the optimizer's state; None for `parameters`.
      gradients: the same for gradients; None for `parameters`.
      activations: the same for activations and batches.
      compiler_options: given to XLA for this run's compilations.
    """

    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})
    parameters: Rules = PARAMETERS
    optimizer: Rules | None = None
    gradients: Rules | None = None
    activations: Rules = ACTIVATIONS
    compiler_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for axis, size in self.mesh.items():
            if axis not in MESH_AXES:
                raise unknown("mesh axis", axis, MESH_AXES)
            if not isinstance(size, int) or (size < 1 and size != -1):
                raise InputError(f"Layout.mesh[{axis!r}] = {size!r}: must be a size or -1")
        if list(self.mesh.values()).count(-1) > 1:
            raise InputError(f"Layout.mesh = {dict(self.mesh)}: only one axis may be -1")
        for table in (self.parameters, self.optimizer, self.gradients, self.activations):
            for _, target in table or ():
                for axis in (target,) if isinstance(target, str) else target or ():
                    if axis not in MESH_AXES:
                        raise unknown("mesh axis", axis, MESH_AXES)


def make_mesh(layout: Layout, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices; axes that `layout.mesh` leaves out have size 1.

    Args:
      layout: which sizes.
      devices: to arrange; None for all.

    Raises:
      InputError: if the sizes do not multiply to the number of devices.
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
            f"Layout.mesh = {dict(layout.mesh)} does not multiply to the {len(devices)} devices"
        )
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=types, devices=devices)


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
