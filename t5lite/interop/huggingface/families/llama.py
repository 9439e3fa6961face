"""LLaMA (1 to 3.2) and Mistral."""

import dataclasses
from typing import Any

from t5lite.interop.huggingface.families import decoder_only, fields, gemma, modules
from t5lite.interop.huggingface.families.activations import activations
from t5lite.interop.huggingface.families.family import Family, tokens
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign
from t5lite.interop.huggingface.families.rope import FREQUENCIES, rope_config, rotary_spec
from t5lite.interop.tensors import Tensor
from t5lite.layers import NormalInitSpec, RMSNormSpec, SpansHeadSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

FIELDS: Fields = {
    "vocab_size": Field(32000, "vocab"),
    "hidden_size": Field(4096, "embed"),
    "intermediate_size": Field(11008, "mlp.hidden"),
    "num_hidden_layers": Field(32, "stack.num_layers"),
    "num_attention_heads": Field(32, "attention.num_heads"),
    "num_key_value_heads": Field(None, "attention.kv_heads", kind=int),
    "head_dim": Field(None, "attention.head_dim", kind=int),
    "hidden_act": Field("silu", "mlp.activation", activations("gelu_pytorch_tanh")),
    "initializer_range": Field(0.02, "init.stddev"),
    "rms_norm_eps": Field(1e-6, "norm.epsilon"),
    "attention_dropout": Field(0.0, "stack.dropout_rate"),
    "max_position_embeddings": Field(2048),
    "tie_word_embeddings": Field(False),
    "classifier_dropout": Field(None, kind=float),
    **tokens(bos=1, eos=2),
}
_BIASES: Fields = {
    "attention_bias": Field(False, "attention.use_bias"),
    "mlp_bias": Field(False, "mlp.use_bias"),
}
# Theirs counts the visible keys, the token's own included.
_WINDOW = fields.Conversion(
    lambda window, _: window - 1, lambda window: None if window is None else window + 1
)
_MISTRAL_FIELDS: Fields = {
    **fields.with_defaults(FIELDS, intermediate_size=14336, max_position_embeddings=131072),
    "num_key_value_heads": Field(8, "attention.kv_heads", nullable=True),
    "sliding_window": Field(4096, "attention.window", _WINDOW, nullable=True),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    """Returns ModelSpec's fields; attention's dropout serves everywhere."""
    rotary, norm = rotary_spec(foreign.config), RMSNormSpec(**foreign.parts["norm"])
    if rotary.fraction != 1.0:
        raise fields.unsupported("partial_rotary_factor", rotary.fraction, [1.0])
    attention = foreign.attention(rotary=rotary)
    kinds = sorted(set(foreign.config.get("layer_types") or ()) - {"sliding_attention"})
    if attention.window is not None and kinds:
        raise fields.unsupported(
            "layer_types", kinds, ["sliding_attention"], "beside sliding_window"
        )
    block = TransformerBlockSpec(attention, foreign.mlp(gated=True), norm=norm)
    return {
        "decoder": StackSpec(
            blocks=(block,), causal=True, final_norm=norm, **foreign.parts["stack"]
        ),
        "init": NormalInitSpec(**foreign.parts["init"]),
        "start_id": decoder_only.start_id(foreign),
    }


def _extra(spec: ModelSpec) -> dict[str, Any]:
    return {
        **decoder_only.extra(spec),
        # In all published models EOS follows BOS.
        "eos_token_id": min((spec.start_id or 0) + 1, spec.vocab - 1),
        **rope_config(fields.stack_of(spec, "decoder").blocks[0].attention.rotary),
    }


def _tensors(spec: ModelSpec) -> list[Tensor]:
    result = modules.tensors_of(spec, gemma.decoder_names(gemma.NORMS), tied=gemma.TIED)
    if spec.family == "mistral" or not any(isinstance(head, SpansHeadSpec) for head in spec.heads):
        return result
    # LlamaForQuestionAnswering alone calls its base so.
    renamed = ((tensor, tensor.name.removeprefix("model.")) for tensor in result)
    return [
        tensor
        if tensor.name == name
        else dataclasses.replace(tensor, name=f"transformer.{name}", aliases=(tensor.name,))
        for tensor, name in renamed
    ]


FAMILIES = {
    name: Family(
        classes,
        table,
        decoder_only.heads(),
        _spec_parts,
        _extra,
        _tensors,
        prefix="model.",
        ignored=(FREQUENCIES,),
        renamed=((r"^transformer\.", "model."),),
    )
    for name, classes, table in (
        ("llama", "Llama", {**FIELDS, **_BIASES}),
        ("mistral", "Mistral", _MISTRAL_FIELDS),
    )
}
