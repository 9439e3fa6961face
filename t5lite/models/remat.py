"""Rematerialisation policies: which activations each layer saves for its backward pass.

Checkpoint names: `query key value output` of attention, `cross_…` of cross-attention,
`gate up down` of the MLP, `kernel` and `attention_kernel` of gathered weights; for attention's
output and statistics see `layers.attended_saveable`. The residual stream is always saved.
"""

from collections.abc import Callable
from typing import Any

import jax

from t5lite.layers import attended_saveable

_QKV = ("query", "key", "value", "cross_query", "cross_key", "cross_value")
_OUTPUTS = ("output", "cross_output", "down")
_PROJECTIONS = (*_QKV, *_OUTPUTS, "gate", "up")

_policies = jax.checkpoint_policies


def _attended_and(*names: str) -> Callable[..., Any]:
    return _policies.save_from_both_policies(
        attended_saveable, _policies.save_only_these_names(*names)
    )


# From the most memory to the least; the last one uses the host's.
POLICIES: dict[str, Callable[..., Any] | None] = {
    # Everything but the inside of activation functions.
    "none": None,
    # All matrix products, attention's logits among them.
    "save_dots": _policies.save_from_both_policies(
        _policies.dots_saveable, _attended_and(*_PROJECTIONS)
    ),
    # Projections and attention's output: norms, activations and attention's logits are recomputed,
    # but no matrix product of a whole layer.
    "save_attended": _attended_and(*_PROJECTIONS),
    # Projections: T5X's policy of that name. Attention is recomputed.
    "minimal": _policies.save_only_these_names(*_PROJECTIONS),
    # Queries, keys and values.
    "save_qkv": _policies.save_only_these_names(*_QKV),
    # The sublayers' updates of the residual stream.
    "save_out": _policies.save_only_these_names(*_OUTPUTS),
    # Attention's output and gathered weights (or attention's alone): under FSDP they are gathered
    # once a step instead of once a pass, and those of all layers stay in memory.
    "save_gathered": _attended_and("kernel", "attention_kernel"),
    "save_gathered_attention": _attended_and("attention_kernel"),
    # Attention's output: everything is recomputed but attention's forward pass.
    "save_attention": attended_saveable,
    # Nothing.
    "full": _policies.nothing_saveable,
    # As `minimal`, in the host's memory.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_PROJECTIONS),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
