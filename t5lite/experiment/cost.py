"""FLOPs and token positions of a training step, from shapes."""

import functools
import math
from collections.abc import Mapping
from typing import Any

from t5lite.models import ModelSpec, forward_flops
from t5lite.training.step import counted

_SIDES = ("encoder", "decoder")


def num_places(batch: Mapping[str, Any]) -> int:
    """Returns the token positions of a batch, padding included."""
    return sum(math.prod(rows.shape) for rows in counted(batch))


def token_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Returns how many tokens a row of each text in a batch has room for."""
    return [rows.shape[1] for rows in counted(batch)]


def step_flops(spec: ModelSpec, objective: Any, batch: Mapping[str, Any]) -> float:
    """Returns the FLOPs of one step's matrix products, forward and backward.

    Args:
      spec: the model.
      objective: which may ask another head than that of the vocabulary.
      batch: the global batch, or its shapes.
    """
    suffix = "_input_tokens"
    lengths = {
        name.removesuffix(suffix): rows.shape[1]
        for name, rows in batch.items()
        if name.endswith(suffix)
    }
    # What belongs to neither stack is another text for the only one, read by itself.
    other_lengths = [lengths.pop(name) for name in [*lengths] if name not in _SIDES]
    num_logits = None if (objective.head or "lm") == "lm" else 0
    if "encoder_target_positions" in batch:
        num_logits = batch["encoder_target_positions"].shape[1]
    forward = functools.partial(forward_flops, spec, num_logits=num_logits)
    flops = forward(**{f"{side}_length": length for side, length in lengths.items()})
    flops += sum(forward(**{f"{spec.topology}_length": length}) for length in other_lengths)
    (num_rows,) = {rows.shape[0] for rows in batch.values()}
    return 3.0 * num_rows * flops
