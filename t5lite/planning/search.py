"""Candidates of meshes, rematerialisation policies and microbatches for a run, without compiling.

A lower bound of memory drops those that cannot fit; a rough estimate of time orders the rest.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh

from t5lite.errors import InputError
from t5lite.parallel import MESH_AXES
from t5lite.planning.compiled import device_bytes
from t5lite.planning.topology import Slice
from t5lite.training import Program

# Recomputation as a share of the forward and backward pass, from the most memory to the least: a
# rough guess that only orders the search.
RECOMPUTED = {
    "none": 0.0,
    "save_attended": 0.04,
    "minimal": 0.08,
    "save_attention": 0.25,
    "full": 0.33,
}
MICROBATCHES = (1, 2, 4, 8)
_MAX_TENSOR = 8  # products of weights cut finer than that leave matrix units idle


@dataclasses.dataclass(frozen=True)
class Variation:
    """The settings of a run that a search changes.

    Args:
      mesh: mesh axis → size.
      remat: of `models.remat.POLICIES`.
      num_microbatches: of a step.
    """

    mesh: tuple[tuple[str, int], ...]
    remat: str
    num_microbatches: int

    @property
    def name(self) -> str:
        sizes = " × ".join(f"{axis} {size}" for axis, size in self.mesh if size > 1) or "one device"
        return f"{sizes}, remat {self.remat}, microbatches {self.num_microbatches}"

    def flags(self) -> list[str]:
        """Returns the bindings of these settings."""
        sizes = ", ".join(f'"{axis}": {size}' for axis, size in self.mesh)
        return [
            f"--gin.t5lite.parallel.Layout.mesh='{{{sizes}}}'",
            f"--gin.t5lite.models.ComputeSpec.remat='\"{self.remat}\"'",
            f"--gin.t5lite.training.Update.num_microbatches={self.num_microbatches}",
        ]

    def needs_no_more_than(self, other: "Variation") -> bool:
        """Whether it surely needs no more memory than another of the same mesh."""
        order = list(RECOMPUTED)
        return (
            self.mesh == other.mesh
            and order.index(self.remat) >= order.index(other.remat)
            and self.num_microbatches >= other.num_microbatches
        )


def meshes(
    num_devices: int, *, fixed: Mapping[str, int], slices: Mapping[str, int]
) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yields the meshes of data, FSDP and tensor parallelism.

    Args:
      num_devices: in all slices.
      fixed: mesh axis → size, of the axes that stay as they are.
      slices: mesh axis → number of slices it spans.
    """
    left = num_devices // math.prod(fixed.values())
    for tensor in (size for size in range(1, _MAX_TENSOR + 1) if left % size == 0):
        rest = left // tensor
        for data in (size for size in range(1, rest + 1) if rest % size == 0):
            sizes = {**fixed, "data": data, "fsdp": rest // data, "tensor": tensor}
            if all(sizes.get(axis, 1) % count == 0 for axis, count in slices.items()):
                yield tuple((axis, sizes[axis]) for axis in MESH_AXES if sizes.get(axis, 1) > 1)


def abstract(mesh: Sequence[tuple[str, int]]) -> AbstractMesh:
    sizes = dict(mesh)
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in MESH_AXES), MESH_AXES)


def least_bytes(program: Program, *, stream: float, num_microbatches: int) -> float:
    """Returns a lower bound of a device's memory: state, gradients and the residual stream.

    Args:
      program: for a mesh, which may be abstract.
      stream: bytes of activations that every policy saves of a whole batch, on all devices.
      num_microbatches: of a step.
    """
    share = own_rows(program) / next(iter(program.batch.values())).shape[0]
    state = device_bytes(program.state) + device_bytes(program.state.params)
    return state + stream * share / num_microbatches


def own_rows(program: Program) -> int:
    """Returns the rows of a batch on each device."""
    rows = next(iter(program.batch.values()))
    return rows.sharding.shard_shape(rows.shape)[0]


def candidates(
    build: Any, all_meshes: Sequence[tuple], *, on: Slice, stream: float, flops: float
) -> tuple[list[Variation], int]:
    """Returns variations to compile, most promising first, and the number that cannot fit.

    Args:
      build: `mesh -> Program` of one microbatch, an InputError if something does not divide.
      all_meshes: see `meshes`.
      stream: see `least_bytes`.
      flops: of a step's matrix products.
    """
    timed: list[tuple[float, Variation]] = []
    cannot, chip = 0, on.chip
    programs = {}
    for mesh in all_meshes:
        with contextlib.suppress(InputError):
            programs[mesh] = build(mesh)
    for (mesh, program), num_microbatches in itertools.product(programs.items(), MICROBATCHES):
        if own_rows(program) % num_microbatches:
            continue
        least = least_bytes(program, stream=stream, num_microbatches=num_microbatches)
        if least > chip.hbm / chip.devices:
            cannot += len(RECOMPUTED)
            continue
        sizes = dict(mesh)
        whole = device_bytes(program.state.params) * sizes.get("fsdp", 1) / 2  # in bfloat16
        # Weights are gathered twice, and gradients scattered in float32, for each microbatch; with
        # tensor parallelism the residual stream is summed four times a layer.
        gathered = 4 * whole * num_microbatches * (sizes.get("fsdp", 1) > 1)
        gathered += 2 * 2 * whole * (sizes.get("data", 1) > 1)
        gathered += 8 * stream / on.num_chips * (sizes.get("tensor", 1) - 1)
        for remat, share in RECOMPUTED.items():
            seconds = flops * (1 + share) / on.num_chips / chip.flops / 0.4
            seconds += gathered / (2 * chip.link_bandwidth)
            timed.append((seconds, Variation(mesh, remat, num_microbatches)))
    timed.sort(key=lambda pair: pair[0])
    return [variation for _, variation in timed], cannot
