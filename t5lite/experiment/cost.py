"""FLOPs and token positions of a training step, from shapes."""

import functools
import math
from collections.abc import Mapping
from typing import Any

from t5lite.models import ModelSpec, forward_flops
from t5lite.training.step import segment_arrays

_SIDES = ("encoder", "decoder")


def num_positions(objective: Any, batch: Mapping[str, Any]) -> int:
    """Returns the token positions of a batch, padding included."""
    return sum(math.prod(ids.shape) for ids in segment_arrays(objective, batch))


def token_lengths(objective: Any, batch: Mapping[str, Any]) -> list[int]:
    """Returns the row length of each text in a batch."""
    return [ids.shape[1] for ids in segment_arrays(objective, batch)]


def step_flops(spec: ModelSpec, objective: Any, batch: Mapping[str, Any]) -> float:
    """Returns the FLOPs of one step's matrix products, forward and backward; `batch` is global."""
    arrays = dict(zip(objective.token_arrays, segment_arrays(objective, batch), strict=True))
    sides = {f"{side}_segment_ids": f"{side}_length" for side in _SIDES}
    lengths = {side: arrays.pop(name).shape[1] for name, side in sides.items() if name in arrays}
    num_logits = None if (objective.head or "lm") == "lm" else 0
    if "encoder_target_positions" in batch:
        num_logits = batch["encoder_target_positions"].shape[1]
    forward = functools.partial(forward_flops, spec, num_logits=num_logits)
    flops = forward(**lengths)
    # Arrays of neither side are further texts of a single stack, each read by itself.
    flops += sum(forward(**{f"{spec.topology}_length": ids.shape[1]}) for ids in arrays.values())
    (num_rows,) = {rows.shape[0] for rows in batch.values()}
    return 3.0 * num_rows * flops
