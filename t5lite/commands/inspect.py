"""`t5lite inspect`: what a run would do, from shapes and a look at its data; nothing is written.

With `--attention`, attention maps and token losses of a trained model, as a page.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from t5lite.data.paths import write_whole
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how much of a run's data to show, or what to look at inside a model."""
    parser.epilog = (
        'inside a trained model: t5lite inspect --model_dir=DIR --attention "The cat sat."'
    )
    parser.add_argument("--examples", type=int, default=5, help="number of examples to show (5)")
    parser.add_argument("--split", default="train", help="split of the examples (train)")
    parser.add_argument(
        "--attention",
        metavar="TEXT",
        help="instead, draw a trained model's attention maps of this text, the loss of each token "
        "and its attribution to the inputs",
    )
    parser.add_argument("--model_dir", metavar="DIR", help="checkpoint of the model, in any layout")
    parser.add_argument(
        "--targets", metavar="TEXT", help="targets of an encoder-decoder (its own response)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="where to write the page (attention-NAME.html)"
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Prints the report of the run that the configuration binds to `train`, or draws a page."""
    # A GPU may be busy with a run, which a look must not disturb.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.attention is not None:
        draw_attention(arguments, configuration)
        return
    for flag in ("model_dir", "targets", "output"):
        if getattr(arguments, flag) is not None:
            raise InputError(f"--{flag} is for --attention=TEXT, which is missing")

    from t5lite.commands.configured import experiment_of
    from t5lite.experiment import train
    from t5lite.experiment.inspection import report

    experiment = experiment_of(configuration)
    with configuration.placing(train):
        print(report(experiment, examples=arguments.examples, split=arguments.split))


def draw_attention(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Looks into the model of `--model_dir`, draws the page, and prints where it is."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("--attention reads no gin configuration; the model is --model_dir=DIR")
    if arguments.model_dir is None:
        raise InputError("--attention needs a model to look into: --model_dir=DIR")

    from etils import epath

    from t5lite.inference import attention_maps, attribution, load
    from t5lite.reporting.attention_page import check, render

    name, text = Path(arguments.model_dir).expanduser().resolve().name, arguments.attention
    output = epath.Path(arguments.output or f"attention-{name}.html").expanduser()
    if output.is_dir():
        raise InputError(f"--output={output}: must be a file, e.g. {output / 'attention.html'}")
    loaded = load(arguments.model_dir)
    inside = attention_maps(loaded, text, arguments.targets)
    check(inside)
    shares = None if inside.no_losses else attribution(loaded, text, inside.targets)
    write_whole(output, render(inside, shares, name=name, text=text).encode())
    print(output)
