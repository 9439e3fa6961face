"""The experiment of a configuration, for verbs other than train."""

import dataclasses
from typing import TYPE_CHECKING, Any

from t5lite.errors import InputError
from t5lite.experiment import Experiment, train

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def experiment_of(configuration: "Configuration", **defaults: Any) -> Experiment:
    """Returns the run of a configuration; InputError for an unbound argument without a default."""
    bound = {**defaults, **configuration.bindings_of(train)}
    missing = [
        repr(field.name)
        for field in dataclasses.fields(Experiment)
        if field.default is dataclasses.MISSING and field.name not in bound
    ]
    if missing:
        raise InputError(f"train needs {' and '.join(missing)}, which no file or flag binds")
    return Experiment(**bound)
