"""Identification of a run: model in one line, shapes of parameters, versions of libraries."""

import contextlib
import importlib.metadata
import math
import platform
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from t5lite.models import Model
from t5lite.training import Program


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def headline(model: Model, program: Program, mesh: Mesh) -> str:
    size, trained = count(program.params), count(program.state.params)
    part = "" if trained == size else f" ({trained:,} trained)"
    kind = mesh.devices.flat[0].device_kind
    devices = "1 device" if mesh.size == 1 else f"{mesh.size} devices"
    return (
        f"{model.spec.family}, {size:,} parameters{part}, {model.compute.dtype}, "
        f"on {devices} ({kind})"
    )


def named_shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...], tuple[str | None, ...]]]:
    """Yields path, shape and logical axes of each parameter."""
    shapes = jax.tree_util.tree_leaves_with_path(model.shapes())
    for (path, leaf), axes in zip(shapes, jax.tree.leaves(model.axes()), strict=True):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, tuple(axes)


def versions() -> dict[str, str]:
    """Returns the version of Python and of each library that a run's numbers depend on."""
    installed = {"python": platform.python_version()}
    for name in ("t5lite", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        # A checkout may run without being installed.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
