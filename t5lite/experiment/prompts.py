"""The prompts of a run: as its objective trains them, or as a checkpoint was trained with them."""

import dataclasses
from typing import Any

from t5lite.errors import InputError
from t5lite.objectives import Prompts


def prompts_of(objective: Any, data: Any) -> Prompts | None:
    """Returns the prompts of a model that an objective trains on some data; None if unknown."""
    make = getattr(objective, "prompts", None)
    if make is None:
        return None
    bind, add_eos = getattr(objective, "for_features", None), data.add_eos()
    if bind is not None and add_eos:
        make = bind(add_eos).prompts
    return make(data.vocabulary())


def as_trained(objective: Any, prompts: Prompts | None) -> Any:
    """Returns an objective under which a decoder reads inputs as it did in training."""
    if prompts is None or not hasattr(objective, "bidirectional_inputs"):
        return objective
    return dataclasses.replace(objective, bidirectional_inputs=prompts.bidirectional)


def check_prompts(objective: Any, prompts: Prompts | None, *, where: str) -> None:
    """Raises an InputError if a decoder read inputs in another way in the run so far."""
    if getattr(objective, "topology", None) == "decoder" and as_trained(objective, prompts) != (
        objective
    ):
        name, ours = type(objective).__name__, objective.bidirectional_inputs
        raise InputError(
            f"{name}.bidirectional_inputs = {ours}: {where} was trained with {not ours}; set "
            f"{name}.bidirectional_inputs = {not ours} to go on, or choose another model_dir",
            field=f"{name}.bidirectional_inputs",
        )
