"""`t5lite train`: trains the run that a configuration describes."""

import argparse
from typing import TYPE_CHECKING

from t5lite.commands.flags import add_processes

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    del arguments

    from t5lite.experiment import train
    from t5lite.training.signals import leaving_at_once

    with leaving_at_once():
        configuration.call(train, operative_config=configuration.operative_config)
