"""TPU slices and their device topologies, as the TPU compiler describes them; no TPU needed."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from t5lite.errors import InputError


@dataclasses.dataclass(frozen=True)
class ChipKind:
    """Specifications of a TPU chip.

    Args:
      shapes: of slices that the compiler supports, in chips.
      flops: peak FLOP/s in bfloat16.
      hbm: bytes of memory, of which the system reserves a little.
      link_bandwidth: bytes/s of a link between chips, one way.
      clock: cycles/s, the unit of the compiler's estimates; None if unknown.
      devices: JAX devices of a chip.
      cores: the compiler's setting for a chip's two cores; None for its default.

    Source: jax-ml/scaling-book, "How to think about TPUs", and cloud.google.com/tpu/docs (FLOP/s,
      memory, links); clocks are peak FLOP/s over what the matrix units do in a cycle.
    """

    shapes: tuple[str, ...]
    flops: float
    hbm: float
    link_bandwidth: float
    clock: float | None = None
    devices: int = 1
    cores: str | None = None


KINDS = {
    "v4": ChipKind(
        ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        2.75e14,
        32 * 2**30,
        4.5e10,
        1.05e9,
        cores="megacore",  # one device, as JAX has it on a v4
    ),
    "v5e": ChipKind(
        ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
        1.97e14,
        16 * 2**30,
        4.5e10,
        1.5e9,
    ),
    "v5p": ChipKind(
        (
            *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
            *("8x16x16", "16x16x16", "16x16x24", "16x20x28"),
        ),
        4.59e14,
        95 * 2**30,
        9e10,
        1.75e9,
    ),
    "v6e": ChipKind(
        ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
        9.18e14,
        32 * 2**30,
        9e10,
        1.75e9,
    ),
    "tpu7x": ChipKind(
        ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        2.307e15,
        192 * 2**30,
        1e11,
        devices=2,
    ),
}
# A process that only compiles uses no TPU: it may share libtpu's lock, and needs no metadata
# server.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One or several slices of TPUs, by name.

    Args:
      kind: of `KINDS`.
      shape: in chips, such as `4x4`.
      num_slices: how many, joined by the data centre's network.
    """

    kind: str
    shape: str
    num_slices: int = 1

    @classmethod
    def parse(cls, name: str, *, num_slices: int = 1) -> "Slice":
        """Reads `v5e:4x4`.

        Raises: InputError if there is no such slice, or `num_slices` is not positive.
        """
        kind, _, shape = name.partition(":")
        if kind not in KINDS:
            raise InputError(
                f"--topology={name}: unknown TPU {kind!r}; known: {', '.join(sorted(KINDS))}, "
                "with a shape, as v5e:4x4"
            )
        if shape not in KINDS[kind].shapes:
            raise InputError(
                f"--topology={name}: no such slice; of {kind} there are "
                f"{', '.join(KINDS[kind].shapes)}"
            )
        if num_slices < 1:
            raise InputError(f"--num_slices={num_slices}: must be at least 1; leave it out for one")
        return cls(kind, shape, num_slices)

    @property
    def chip(self) -> ChipKind:
        return KINDS[self.kind]

    @property
    def num_chips(self) -> int:
        """Of all slices together."""
        return self.num_slices * math.prod(map(int, self.shape.split("x")))

    @property
    def name(self) -> str:
        times = f"{self.num_slices} × " if self.num_slices > 1 else ""
        return f"{times}{self.kind}:{self.shape}"

    @staticmethod
    def require_compiler() -> None:
        """Raises an InputError without libtpu."""
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(
                "compiling for a TPU needs libtpu, which runs on any Linux machine: "
                "pip install 't5lite[tpu]'"
            )

    def devices(self) -> list[Any]:
        """Returns device descriptions that can be compiled for; InputError without libtpu."""
        self.require_compiler()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from jax.experimental import topologies

        options: dict[str, Any] = {}
        if self.num_slices > 1:
            options["num_slices"] = self.num_slices
        if self.chip.cores is not None:
            options["chip_config_name"] = self.chip.cores
        if self.num_chips == self.num_slices:
            options["chips_per_host_bounds"] = (1, 1, 1)
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{self.kind}:{self.shape}", **options
        )
        return list(described.devices)
