"""`t5lite evaluate`: a configuration's evaluators on one of its checkpoints."""

import argparse
from typing import TYPE_CHECKING

from t5lite.commands.flags import add_processes

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest, best (by train.checkpoints.best), a step, or any checkpoint's folder",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="evaluate on the samples of training, e.g. HeldOut.max_batches (the whole split)",
    )
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    from t5lite.commands.configured import experiment_of
    from t5lite.experiment import train
    from t5lite.experiment.evaluation import evaluate

    experiment = experiment_of(configuration, optimizer=None)
    with configuration.locating(train):
        evaluate(experiment, checkpoint=arguments.checkpoint, sample=arguments.sample)
