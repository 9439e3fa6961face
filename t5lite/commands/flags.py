"""Flags that several verbs share, and their values as models, shards and output files."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.inference import Loaded

_DTYPES = ("float32", "bfloat16", "float16")
_SHARED: dict[str, dict[str, Any]] = {
    "texts": {"nargs": "*", "metavar": "TEXT", "help": "one text each, in quotes"},
    "target": {"metavar": "TARGET", "help": "output folder, new or empty"},
    "--model_dir": {"metavar": "DIR", "help": "a run's MODEL_DIR, or any folder t5lite.load opens"},
    "--dtype": {"choices": _DTYPES, "help": "dtype of the parameters (as stored)"},
    "--compute_dtype": {"choices": _DTYPES, "help": "dtype of the activations (float32)"},
    "--layout": {
        "metavar": "NAME",
        "help": "sharding of the parameters: a fragment of gin/partitioning, such as fsdp, or the "
        "path of a gin file (replicated)",
    },
    "--batch_size": {"type": int, "default": 32, "metavar": "N", "help": "texts per batch (32)"},
    "--truncate": {"action": "store_true", "help": "truncate texts too long for the model"},
    "--prompt": {
        "choices": ("inputs", "continue", "prefix"),
        "help": "role of a text: inputs to respond to, a beginning to continue, or a prefix with "
        "bidirectional attention (as in training; else inputs, for decoders continue)",
    },
    "--shard": {
        "metavar": "I/N",
        "help": "process the I-th, from 0, of N shards of the lines, into "
        "FILE-0000I-of-0000N.jsonl, which `cat` joins in order (one shard per JAX process)",
    },
    "--overwrite": {"action": "store_true", "help": "start over, discarding earlier output"},
}
MODEL = ("--model_dir", "--dtype", "--compute_dtype", "--layout")


def add_shared(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """Declares flags of the shared table; `options` apply to all of them."""
    for name in names:
        parser.add_argument(name, **_SHARED[name], **options)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declares the flags by which several processes find each other."""
    processes = parser.add_argument_group(
        "several processes",
        "run the same command on every host; TPU VMs, Kubernetes and SLURM need no such flags",
    )
    processes.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="host of process 0 and a free port there"
    )
    processes.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    processes.add_argument(
        "--process_id", type=int, metavar="I", help="index of this process, from 0"
    )
    processes.add_argument(
        "--coordinator_timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="time limit for the other processes to join (300)",
    )


def description(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns dtypes and mesh by name: answers depend on them, if only by rounding."""
    mesh = None if arguments.layout is None else dict(arguments.layout.mesh)
    return {"dtype": arguments.dtype, "compute_dtype": arguments.compute_dtype, "layout": mesh}


def placed(
    arguments: argparse.Namespace, model: Any = None, *, devices: Sequence[Any] | None = None
) -> "Loaded":
    """Reads a model's parameters onto devices, by the flags of `MODEL`.

    Args:
      model: its folder, or a checkpoint opened by `interop.open_model`; None: `--model_dir`.
      devices: to use; None for all.
    """
    from t5lite.inference import place
    from t5lite.interop import open_model
    from t5lite.models import ComputeSpec

    model = arguments.model_dir if model is None else model
    return place(
        open_model(model) if isinstance(model, str) else model,
        compute=ComputeSpec(dtype=arguments.compute_dtype or "float32"),
        layout=arguments.layout,
        dtype=arguments.dtype,
        devices=devices,
    )


def shard_of(shard: str | None) -> tuple[int, int]:
    """Returns index and number of shards: the flag's `I/N`, or else those of JAX's processes."""
    if shard is None:
        import jax

        return jax.process_index(), jax.process_count()
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shard={shard}: must be I/N, I of 0..N-1, such as 0/4", field="shard")
    return int(index), int(count)
