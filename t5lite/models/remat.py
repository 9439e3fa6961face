"""Rematerialisation policies: which activations each layer saves for its backward pass.

Layers name what may be saved (`jax.ad_checkpoint.checkpoint_name`): the projections' outputs
`query key value output` of attention, `cross_…` of cross-attention, `gate up down` of the MLP, and
of weights `kernel` and `attention_kernel`, as they are multiplied. What attention mixes, with the
statistics of its softmax, every kernel marks in its own way: see `layers.attended_saveable`. The
residual stream between layers is always saved.
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


# From the most memory to the least, but for the last, whose memory is the host's.
POLICIES: dict[str, Callable[..., Any] | None] = {
    # Everything is kept, but what is inside an activation function.
    "none": None,
    # All matrix products, attention's logits among them.
    "save_dots": _policies.save_from_both_policies(
        _policies.dots_saveable, _attended_and(*_PROJECTIONS)
    ),
    # Projections and what attention mixed: norms, activations and attention's logits are computed
    # again, but no matrix product of a whole layer.
    "save_attended": _attended_and(*_PROJECTIONS),
    # Projections: T5X's policy of that name. Attention is computed again.
    "minimal": _policies.save_only_these_names(*_PROJECTIONS),
    # Queries, keys and values.
    "save_qkv": _policies.save_only_these_names(*_QKV),
    # What each sublayer adds to the residual stream.
    "save_out": _policies.save_only_these_names(*_OUTPUTS),
    # What attention mixed, and weights (or attention's alone) as they are multiplied: where storage
    # is sharded (FSDP) they are gathered once a step instead of once a pass; all layers' stay.
    "save_gathered": _attended_and("kernel", "attention_kernel"),
    "save_gathered_attention": _attended_and("attention_kernel"),
    # What attention mixed: everything is computed again but attention's forward pass.
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
