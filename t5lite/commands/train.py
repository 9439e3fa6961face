"""`t5lite train`: trains the run that a configuration describes."""

import argparse
from typing import TYPE_CHECKING

from t5lite.experiment import train
from t5lite.training.notices import leaving_at_once

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Calls `train` with the configuration's bindings."""
    del arguments
    with leaving_at_once():
        configuration.call(train, operative_config=configuration.operative_config)
