"""Models on devices, as `--model_dir`, `--dtype`, `--compute_dtype` and `--layout` say."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5lite.inference import Loaded


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Declares the model, its dtypes and its layout."""
    parser.add_argument(
        "--model_dir",
        required=required,
        metavar="DIR",
        help="where the model was trained, or any folder that t5lite.load opens",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the parameters (as they are stored)",
    )
    parser.add_argument(
        "--compute_dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the activations (float32)",
    )
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="how parameters are sharded: a fragment of gin/partitioning, such as fsdp, or the "
        "path of a gin file (a whole copy on each device)",
    )


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
