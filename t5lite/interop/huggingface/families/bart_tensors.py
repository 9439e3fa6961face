"""The tensors of BART, mBART, PEGASUS and Marian."""

import functools
from typing import Any

import numpy as np

from t5lite.interop.huggingface.families import fields, modules
from t5lite.interop.tensors import Part, Tensor
from t5lite.layers import LearnedPositionsSpec, LMHeadSpec
from t5lite.models import ModelSpec

SIDES = ("encoder", "decoder")
SHARED, LOGITS, BIAS = "model.shared.weight", "lm_head.weight", "final_logits_bias"
TABLES = {side: f"model.{side}.embed_tokens.weight" for side in SIDES}
POSITIONS = {side: f"model.{side}.embed_positions.weight" for side in SIDES}
# Rows that are written of positions that are computed: transformers looks for them.
COMPUTED_POSITIONS = 1024
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_LAYER = {
    **modules.attention("self_attn.{}", _PROJECTIONS),
    **modules.attention("encoder_attn.{}", _PROJECTIONS, "cross_attention"),
    "attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
    "mlp_norm": "final_layer_norm",
}
NAMES: dict[str, Any] = {"lm_head/projection": "lm_head"}
for _side in SIDES:
    NAMES |= {
        **modules.layers(_side, f"model.{_side}.layers.{{}}", _LAYER),
        f"{_side}/position_embedding": f"model.{_side}.embed_positions",
        f"{_side}/embedding_norm": f"model.{_side}.layernorm_embedding",
        f"{_side}/final_norm": f"model.{_side}.layer_norm",
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    names, aliases, logits = dict(NAMES), {SHARED: tuple(TABLES.values())}, (LOGITS,)
    names["token_embedding"] = SHARED.removesuffix(".weight")
    tied = {SHARED: logits}
    extra: list[Tensor] = []
    if not spec.shared_embedding:
        names["token_embedding"] = TABLES["decoder"].removesuffix(".weight")
        names["encoder_embedding"] = TABLES["encoder"].removesuffix(".weight")
        tied = {TABLES["decoder"]: logits}
        extra.append(Tensor(SHARED, (spec.vocab, spec.embed), ()))  # which nothing reads
    for side in SIDES:
        if not isinstance(fields.stack_of(spec, side).position_embedding, LearnedPositionsSpec):
            shape = (COMPUTED_POSITIONS, spec.embed)
            constant = functools.partial(sinusoids, *shape)
            extra.append(Tensor(POSITIONS[side], shape, (), constant=constant))
    head = spec.heads[0] if spec.heads else None
    if isinstance(head, LMHeadSpec) and head.use_bias:
        path = "lm_head/bias" if head.tied else "lm_head/projection/bias"
        extra.append(Tensor(BIAS, (1, spec.vocab), (Part(path, None, lambda array: array[0]),)))
    result = modules.tensors_of(spec, names, aliases=aliases, tied=tied)
    return [tensor for tensor in result if tensor.name != "lm_head.bias"] + extra


def sinusoids(length: int, embed: int) -> np.ndarray:
    """Returns the positions of PEGASUS and Marian, `[length, embed]` float32: sines, then cosines.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.5.
    """
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, embed, 2) / embed)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
