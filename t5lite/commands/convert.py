"""`t5lite convert`: converts checkpoints between t5lite, Hugging Face and T5X."""

import argparse
from typing import TYPE_CHECKING

from t5lite.commands.flags import add_shared

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "the layout of SOURCE is detected; example: t5lite convert runs/quickstart quickstart-hf"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a MODEL_DIR, a Hugging Face folder, its ORGANISATION/NAME[@REVISION] on the hub, or "
        "a T5X checkpoint",
    )
    add_shared(parser, "target")
    parser.add_argument(
        "--to",
        choices=("t5lite", "huggingface", "t5x"),
        help="layout of TARGET (t5lite; for a MODEL_DIR, huggingface)",
    )
    add_shared(parser, "--dtype")
    parser.add_argument(
        "--scanned", action="store_true", help="write T5X's layout for scanned layers"
    )
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="list the tensor of each parameter, and write nothing",
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    del configuration

    from t5lite.interop import convert
    from t5lite.reporting.bars import Bar

    with Bar() as bar:
        convert(
            arguments.source,
            arguments.target,
            to=arguments.to,
            dtype=arguments.dtype,
            scanned=arguments.scanned,
            dry_run=arguments.dry_run,
            progress=bar.stage,
        )
