"""Models on devices, as `--model_dir`, `--dtype`, `--compute_dtype` and `--layout` say."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5lite.inference import Loaded


def description(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the dtypes and the mesh by name: numbers depend on them, if only by rounding."""
    mesh = None if arguments.layout is None else dict(arguments.layout.mesh)
    return {"dtype": arguments.dtype, "compute_dtype": arguments.compute_dtype, "layout": mesh}


def placed(
    arguments: argparse.Namespace, model: Any = None, *, devices: Sequence[Any] | None = None
) -> "Loaded":
    """Reads a model's parameters onto devices.

    Args:
      arguments: of the command line.
      model: its folder, or the checkpoint that `interop.open_model` opened; None: `--model_dir`.
      devices: to use; None for all.

    Raises:
      InputError: no such folder, a damaged checkpoint, or activations of a dtype that the model
        exceeds.
    """
    from t5lite.inference import load, place
    from t5lite.models import ComputeSpec

    model = arguments.model_dir if model is None else model
    read = load if isinstance(model, str) else place
    return read(
        model,
        compute=ComputeSpec(dtype=arguments.compute_dtype or "float32"),
        layout=arguments.layout,
        dtype=arguments.dtype,
        devices=devices,
    )
