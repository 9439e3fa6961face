"""Parallelism: a layout names how axes are sharded; devices enter in `make_mesh` alone."""

from t5lite.parallel.arrays import (
    batch_sharding,
    batch_shardings,
    check_batch,
    place,
    with_layout,
)
from t5lite.parallel.layout import ACTIVATIONS, MESH_AXES, PARAMETERS, Layout, make_mesh, shardings
from t5lite.parallel.multihost import gather

__all__ = [
    "ACTIVATIONS",
    "MESH_AXES",
    "PARAMETERS",
    "Layout",
    "batch_sharding",
    "batch_shardings",
    "check_batch",
    "gather",
    "make_mesh",
    "place",
    "shardings",
    "with_layout",
]
