"""The tensors of BART, mBART, PEGASUS and Marian."""

import functools
from typing import Any

import numpy as np

from t5lite.interop.huggingface.families import modules
from t5lite.interop.huggingface.families.fields import stack_of
from t5lite.interop.tensors import Part, Tensor
from t5lite.layers import LearnedPositionsSpec, LMHeadSpec
from t5lite.models import ModelSpec

SHARED, LOGITS, BIAS = "model.shared.weight", "lm_head.weight", "final_logits_bias"
TABLES = {side: f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")}
POSITIONS = {side: f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
# Of a layer's modules.
NAMES: dict[str, dict[str, Any]] = {
    "encoder": {
        "attention": {part: f"self_attn.{name}" for part, name in _PROJECTIONS.items()},
        "attention_norm": "self_attn_layer_norm",
        "mlp": {"up": "fc1", "down": "fc2"},
        "mlp_norm": "final_layer_norm",
    }
}
NAMES["decoder"] = NAMES["encoder"] | {
    "cross_attention": {part: f"encoder_attn.{name}" for part, name in _PROJECTIONS.items()},
    "cross_attention_norm": "encoder_attn_layer_norm",
}
# Rows that are written of positions that are computed: transformers looks for them.
COMPUTED_POSITIONS = 1024


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    result = token_tables(spec)
    for side in ("encoder", "decoder"):
        stack = stack_of(spec, side)
        if isinstance(stack.position_embedding, LearnedPositionsSpec):
            positions = stack.position_embedding
            rows = positions.max_length + positions.offset
            result += modules.table(POSITIONS[side], f"{side}/position_embedding", rows, spec.embed)
        else:
            shape = (COMPUTED_POSITIONS, spec.embed)
            constant = functools.partial(sinusoids, *shape)
            result.append(Tensor(POSITIONS[side], shape, (), constant=constant))
        prefix, norm = f"model.{side}.", stack.embedding_norm
        if norm is not None:
            name, path = f"{prefix}layernorm_embedding", f"{side}/embedding_norm"
            result += modules.norm(name, path, norm, spec.embed)
        layer_name, names = f"{prefix}layers.{{}}".format, NAMES[side]
        result += modules.stack_tensors(
            stack, side, spec.embed, layer_name, names, final_norm=f"{prefix}layer_norm"
        )
    return result


def sinusoids(length: int, embed: int) -> np.ndarray:
    """Returns the positions of PEGASUS and Marian, `[length, embed]` float32: sines, then cosines.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.5.
    """
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, embed, 2) / embed)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def token_tables(spec: ModelSpec) -> list[Tensor]:
    """Returns the tables of tokens and of logits, and the logits' bias."""
    head = spec.heads[0] if spec.heads else None
    logits = (LOGITS,) if modules.is_tied(spec) else ()
    size = (spec.vocab, spec.embed)
    if spec.shared_embedding:
        result = modules.table(
            SHARED, "token_embedding", *size, aliases=(*TABLES.values(), *logits)
        )
    else:
        result = [
            *modules.table(TABLES["decoder"], "token_embedding", *size, aliases=logits),
            *modules.table(TABLES["encoder"], "encoder_embedding", *size),
            Tensor(SHARED, size, ()),  # which nothing reads
        ]
    result += modules.lm_head(spec, LOGITS)
    if isinstance(head, LMHeadSpec) and head.use_bias:
        path = "lm_head/bias" if head.tied else "lm_head/projection/bias"
        result.append(Tensor(BIAS, (1, spec.vocab), (Part(path, None, lambda array: array[0]),)))
    return result
