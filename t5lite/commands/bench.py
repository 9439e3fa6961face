"""`t5lite bench`: a benchmark of a run's steps on the local devices; nothing is kept."""

import argparse
import json
from typing import TYPE_CHECKING

from t5lite.commands.flags import add_processes
from t5lite.data.paths import require_writable, write_whole
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how many steps, and where the numbers go."""
    parser.epilog = (
        "example: t5lite bench --gin_file=configs/quickstart.gin --steps=20. Steps are of the "
        "run's own data and train a model that is thrown away; MODEL_DIR is not touched"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        metavar="N",
        help="steps timed one by one, and as many again in a row (10)",
    )
    parser.add_argument(
        "--warmup", type=int, default=3, metavar="N", help="untimed steps before those (3)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="also write the numbers as JSON; - prints them alone"
    )
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Prints what a step takes, of time and of memory."""
    for name, least in (("steps", 1), ("warmup", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name}={getattr(arguments, name)}: must be at least {least}")

    import jax

    from t5lite.commands.configured import experiment_of
    from t5lite.experiment import train
    from t5lite.experiment.benchmark import benchmark, benchmark_text

    if arguments.json not in (None, "-") and jax.process_index() == 0:
        require_writable(arguments.json)
    experiment = experiment_of(configuration)
    with configuration.placing(train):
        numbers = benchmark(experiment, steps=arguments.steps, warmup=arguments.warmup)
    if jax.process_index() != 0:
        return
    text = json.dumps(numbers, indent=1)
    if arguments.json == "-":
        print(text)
        return
    print(benchmark_text(numbers))
    if arguments.json:
        write_whole(arguments.json, f"{text}\n".encode())
        print(f"\nwritten: {arguments.json}")
