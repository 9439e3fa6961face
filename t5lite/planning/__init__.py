"""Planning: a run compiled for slices that are not here, and measured on the devices that are."""

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
from t5lite.planning.room import Room, room
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
    "Room",
    "Slice",
    "Variation",
    "abstract",
    "candidates",
    "compile_step",
    "device_bytes",
    "does_not_fit",
    "estimate",
    "least_bytes",
    "measure",
    "meshes",
    "own_rows",
    "room",
    "step_memory",
]
