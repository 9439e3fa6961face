"""`t5lite bench`: a benchmark of a run's training steps on the local devices."""

import argparse
import json
from typing import TYPE_CHECKING

from t5lite.commands.flags import add_processes
from t5lite.data.paths import require_writable, write_whole
from t5lite.errors import check_value

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example: t5lite bench --gin_file=configs/quickstart.gin --steps=20. Steps read the run's "
        "data and train a temporary model; MODEL_DIR is not touched"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        metavar="N",
        help="steps timed one by one, and again without pauses (10)",
    )
    parser.add_argument(
        "--warmup", type=int, default=3, metavar="N", help="untimed steps before them (3)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="also write the numbers as JSON; with -, print only JSON"
    )
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    check_value("--steps", arguments.steps, "integer in [1, inf)")
    check_value("--warmup", arguments.warmup, "integer in [0, inf)")

    import jax

    from t5lite.commands.configured import experiment_of
    from t5lite.experiment import train
    from t5lite.experiment.benchmark import benchmark, benchmark_text

    if arguments.json not in (None, "-") and jax.process_index() == 0:
        require_writable(arguments.json)
    experiment = experiment_of(configuration)
    with configuration.locating(train):
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
