"""Planning: ahead-of-time compilation for TPU slices, and measurements on local devices."""

from t5lite.planning.capacity import Capacity, capacity
from t5lite.planning.compiled import (
    Compiled,
    DoesNotFit,
    Memory,
    compile_step,
    device_bytes,
    does_not_fit,
    estimate,
    step_memory,
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
    "Capacity",
    "ChipKind",
    "Compiled",
    "DoesNotFit",
    "Measured",
    "Memory",
    "Slice",
    "Variation",
    "abstract",
    "candidates",
    "capacity",
    "compile_step",
    "device_bytes",
    "does_not_fit",
    "estimate",
    "least_bytes",
    "measure",
    "meshes",
    "own_rows",
    "step_memory",
]
