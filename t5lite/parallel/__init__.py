"""Parallelism: a layout names how axes are sharded; devices enter in `make_mesh` alone."""

from t5lite.parallel.arrays import (
    batch_sharding,
    batch_shardings,
    check_batch,
    process_rows,
    to_devices,
    with_layout,
)
from t5lite.parallel.clusters import Group, group
from t5lite.parallel.layout import (
    ACTIVATIONS,
    COMPILER_OPTIONS,
    MESH_AXES,
    PARAMETERS,
    Layout,
    in_memory,
    make_mesh,
    parameter_rules,
    shardings,
)
from t5lite.parallel.multihost import gather
from t5lite.parallel.processes import joined, noted

__all__ = [
    "ACTIVATIONS",
    "COMPILER_OPTIONS",
    "MESH_AXES",
    "PARAMETERS",
    "Group",
    "Layout",
    "batch_sharding",
    "batch_shardings",
    "check_batch",
    "gather",
    "group",
    "in_memory",
    "joined",
    "make_mesh",
    "noted",
    "parameter_rules",
    "process_rows",
    "shardings",
    "to_devices",
    "with_layout",
]
