"""Planning: a run compiled for slices that are not here, and measured on the devices that are."""

from t5lite.planning.compiled import (
    Compiled,
    DoesNotFit,
    Memory,
    compile_step,
    device_bytes,
    estimate,
)
from t5lite.planning.measured import Measured, measure
from t5lite.planning.search import (
    Variation,
    abstract,
    candidates,
    least_bytes,
    meshes,
    own_rows,
)
from t5lite.planning.topology import ENVIRONMENT, KINDS, ChipKind, Slice

__all__ = [
    "ENVIRONMENT",
    "KINDS",
    "ChipKind",
    "Compiled",
    "DoesNotFit",
    "Measured",
    "Memory",
    "Slice",
    "Variation",
    "abstract",
    "candidates",
    "compile_step",
    "device_bytes",
    "estimate",
    "least_bytes",
    "measure",
    "meshes",
    "own_rows",
]
