"""`t5lite evaluate`: a configuration's callbacks, once, on one of its checkpoints."""

import argparse
from typing import TYPE_CHECKING

from t5lite.commands.processes import add_processes

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares which checkpoint."""
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest, best (by train.checkpoints.best), a step, or any checkpoint's folder",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="measure on the samples of training, HeldOut.max_batches say (on everything)",
    )
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Calls `evaluate` with what is bound to `train`, as far as it concerns evaluation."""

    from t5lite.commands.configured import experiment_of
    from t5lite.experiment.evaluation import evaluate

    experiment = experiment_of(configuration, optimizer=None)
    evaluate(
        experiment.model_dir,
        model=experiment.model,
        objective=experiment.objective,
        data=experiment.data,
        callbacks=experiment.callbacks,
        layout=experiment.layout,
        compute=experiment.compute,
        checkpoints=experiment.checkpoints,
        checkpoint=arguments.checkpoint,
        sample=arguments.sample,
    )
