"""Where the tensors of BART, mBART, PEGASUS and Marian stand among our parameters."""

import functools

import numpy as np

from t5lite.interop.huggingface.families import modules
from t5lite.interop.huggingface.families.family import Unsupported
from t5lite.interop.tensors import Part, Tensor, transposed
from t5lite.layers import LearnedPositionsSpec, LMHeadSpec, MlpSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

SHARED, LOGITS, BIAS = "model.shared.weight", "lm_head.weight", "final_logits_bias"
TABLES = {side: f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")}
POSITIONS = {side: f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
# Rows that are written of positions that are computed: transformers looks for them.
COMPUTED_POSITIONS = 1024


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    found = token_tables(spec)
    for side in ("encoder", "decoder"):
        stack = getattr(spec, side)
        if isinstance(stack.position_embedding, LearnedPositionsSpec):
            positions = stack.position_embedding
            rows = positions.max_length + positions.offset
            found += modules.table(POSITIONS[side], f"{side}/position_embedding", rows, spec.embed)
        else:
            shape = (COMPUTED_POSITIONS, spec.embed)
            constant = functools.partial(sinusoids, *shape)
            found.append(Tensor(POSITIONS[side], shape, (), constant=constant))
        for name, path, norm in (
            ("layernorm_embedding", "embedding_norm", stack.embedding_norm),
            ("layer_norm", "final_norm", stack.final_norm),
        ):
            if norm is not None:
                found += modules.norm(f"model.{side}.{name}", f"{side}/{path}", norm, spec.embed)
        found += layer_tensors(stack, side, spec.embed)
    return found


def sinusoids(length: int, embed: int) -> np.ndarray:
    """Returns the positions of PEGASUS and Marian, `[length, embed]` float32: sines, then cosines.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.5.
    """
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, embed, 2) / embed)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def token_tables(spec: ModelSpec) -> list[Tensor]:
    """Returns the tables of tokens and of logits, and the logits' bias."""
    head = spec.heads[0] if spec.heads else None
    tied = isinstance(head, LMHeadSpec) and head.tied
    logits = (LOGITS,) if tied else ()
    size = (spec.vocab, spec.embed)
    if spec.shared_embedding:
        found = modules.table(SHARED, "token_embedding", *size, aliases=(*TABLES.values(), *logits))
    else:
        found = [
            *modules.table(TABLES["decoder"], "token_embedding", *size, aliases=logits),
            *modules.table(TABLES["encoder"], "encoder_embedding", *size),
            Tensor(SHARED, size, ()),  # which nothing reads
        ]
    if isinstance(head, LMHeadSpec) and not head.tied:
        kernel = Part("lm_head/projection/kernel", None, transposed)
        found.append(Tensor(LOGITS, size, (kernel,)))
    if isinstance(head, LMHeadSpec) and head.use_bias:
        path = "lm_head/bias" if head.tied else "lm_head/projection/bias"
        found.append(Tensor(BIAS, (1, spec.vocab), (Part(path, None, _row),)))
    return found


def layer_tensors(stack: StackSpec, side: str, embed: int) -> list[Tensor]:
    """Returns the tensors of a stack's layers."""
    found = []
    for layer, block in enumerate(stack.every_block):
        place, index = stack.place(layer)
        theirs, ours = f"model.{side}.layers.{layer}", f"{side}/{place}"
        norm = functools.partial(modules.norm, spec=block.norm, size=embed, layer=index)
        for name, path, attention in (
            ("self_attn", "attention", block.attention),
            ("encoder_attn", "cross_attention", block.cross_attention),
        ):
            if attention is not None:
                module = f"{theirs}.{name}"
                names = {part: f"{module}.{part[0]}_proj" for part in ("query", "key", "value")}
                names["output"] = f"{module}.out_proj"
                found += modules.attention(names, f"{ours}/{path}", attention, embed, layer=index)
                found += norm(f"{module}_layer_norm", f"{ours}/{path}_norm")
        names = {"up": f"{theirs}.fc1", "down": f"{theirs}.fc2"}
        found += modules.mlp(names, f"{ours}/mlp", mlp_of(block), embed, layer=index)
        found += norm(f"{theirs}.final_layer_norm", f"{ours}/mlp_norm")
    return found


def _row(array: np.ndarray) -> np.ndarray:
    return array[0]


def mlp_of(block: TransformerBlockSpec) -> MlpSpec:
    """Returns a block's MLP, which is of one expert."""
    if not isinstance(block.mlp, MlpSpec):
        raise Unsupported("mlp", block.mlp)
    return block.mlp
