"""`t5lite inspect`: a run's data, model, memory and cost, before training.

With `--attention`, attention maps and token losses of a trained model, as an HTML page.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from t5lite.commands.flags import add_shared
from t5lite.data.paths import write_whole
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        'inside a trained model: t5lite inspect --model_dir=DIR --attention "The cat sat."'
    )
    parser.add_argument("--examples", type=int, default=5, help="number of examples to show (5)")
    parser.add_argument("--split", default="train", help="split of the examples (train)")
    parser.add_argument(
        "--attention",
        metavar="TEXT",
        help="in place of a run: draw a trained model's attention maps of TEXT, the loss of each "
        "token and its attribution to the inputs",
    )
    add_shared(parser, "--model_dir")
    parser.add_argument(
        "--targets", metavar="TEXT", help="targets of an encoder-decoder (its own response)"
    )
    parser.add_argument("--output", metavar="FILE", help="the page (attention-NAME.html)")


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    # A GPU may be busy with a run.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.attention is not None:
        draw_attention(arguments, configuration)
        return
    for flag in ("model_dir", "targets", "output"):
        if getattr(arguments, flag) is not None:
            raise InputError(f"--{flag} is for --attention=TEXT, which is missing", field=flag)

    from t5lite.commands.configured import experiment_of
    from t5lite.experiment import train
    from t5lite.experiment.inspection import report

    experiment = experiment_of(configuration)
    with configuration.locating(train):
        print(report(experiment, examples=arguments.examples, split=arguments.split))


def draw_attention(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    if configuration.source.statements:
        raise InputError(
            "--attention reads no gin configuration; the model is --model_dir=DIR",
            field="attention",
        )
    if arguments.model_dir is None:
        raise InputError("--attention needs a model: --model_dir=DIR", field="model_dir")

    from etils import epath

    from t5lite.inference import attention_maps, attribution, load
    from t5lite.reporting.attention_page import check, render

    name, text = Path(arguments.model_dir).expanduser().resolve().name, arguments.attention
    output = epath.Path(arguments.output or f"attention-{name}.html").expanduser()
    if output.is_dir():
        raise InputError(
            f"--output={output}: must be a file, e.g. {output / 'attention.html'}", field="output"
        )
    loaded = load(arguments.model_dir)
    inside = attention_maps(loaded, text, arguments.targets)
    check(inside)
    shares = None if inside.no_losses else attribution(loaded, text, inside.targets)
    write_whole(output, render(inside, shares, name=name, text=text).encode())
    print(output)
