"""Gemma and Gemma 2; their layers serve T5Gemma, LLaMA and Mistral too."""

from collections.abc import Mapping
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import decoder_only, fields, labels, modules
from t5lite.interop.huggingface.families.activations import activation_name, activations
from t5lite.interop.huggingface.families.family import Family, tokens
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign
from t5lite.interop.huggingface.families.layer_types import FULL, SLIDING, layer_types, period
from t5lite.interop.huggingface.families.rope import FREQUENCIES, rope_config, rotary_spec
from t5lite.interop.tensors import Tensor
from t5lite.layers import LMHeadSpec, MlpSpec, NormalInitSpec, RMSNormSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
NORMS_AROUND = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
TIED = {"model.embed_tokens.weight": ("lm_head.weight",)}
_TANH = "gelu_pytorch_tanh"
FIELDS: Fields = {
    "vocab_size": Field(256000, "vocab"),
    "hidden_size": Field(3072, "embed"),
    "intermediate_size": Field(24576, "mlp.hidden"),
    "num_hidden_layers": Field(28, "stack.num_layers"),
    "num_attention_heads": Field(16, "attention.num_heads"),
    "num_key_value_heads": Field(16, "attention.kv_heads", nullable=True),
    "head_dim": Field(256, "attention.head_dim"),
    # Gemma 1 has "gelu" as hidden_act in its releases and means this.
    "hidden_activation": Field(_TANH, "mlp.activation", activations(_TANH), nullable=True),
    "initializer_range": Field(0.02, "init.stddev"),
    "rms_norm_eps": Field(1e-6, "norm.epsilon"),
    "attention_bias": Field(False, "attention.use_bias"),
    "attention_dropout": Field(0.0, "stack.dropout_rate", nullable=True),
    "max_position_embeddings": Field(8192),
    "tie_word_embeddings": Field(True),
    "classifier_dropout": Field(None, kind=float),
    **tokens(bos=2, eos=1),
}
GEMMA2_FIELDS: Fields = {
    **fields.with_defaults(
        FIELDS,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "query_pre_attn_scalar": Field(256, nullable=True),
    "sliding_window": Field(4096, nullable=True),
    "final_logit_softcapping": Field(30.0, nullable=True),
    "attn_logit_softcapping": Field(50.0, "attention.logits_softcap", nullable=True),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    """Returns ModelSpec's fields; attention's dropout serves everywhere."""
    config = foreign.config
    fields.check(config, use_bidirectional_attention=(None,))
    return {
        "decoder": stack_spec(foreign, around=config["model_type"] == "gemma2", causal=True),
        "init": NormalInitSpec(**foreign.parts["init"]),
        "start_id": decoder_only.start_id(foreign),
    }


def stack_spec(foreign: Foreign, *, around: bool, causal: bool, crossed: bool = False) -> StackSpec:
    """Returns a stack of Gemma layers.

    Args:
      around: whether norms stand on both sides of the sublayers, as from Gemma 2 on.
      crossed: whether it attends over an encoder.
    """
    config, norm = foreign.config, RMSNormSpec(**foreign.parts["norm"], unit_offset=True)
    foreign.parts["mlp"].setdefault("activation", "gelu_tanh")
    scalar, window = config.get("query_pre_attn_scalar"), config.get("sliding_window")
    scale = None if scalar in (None, config["head_dim"]) else scalar**-0.5
    full = foreign.attention(rotary=rotary_spec(config), logits_scale=scale)

    def block(kind: str) -> TransformerBlockSpec:
        # One-sided, theirs counts the visible keys, the token's own included; two-sided,
        # from transformers 5 on, it is the distance (4 had one less).
        attention = full.replace(window=window - causal) if window and kind == SLIDING else full
        placement: Any = "around" if around else "before"
        return TransformerBlockSpec(
            attention,
            foreign.mlp(gated=True),
            norm=norm,
            cross_attention=full.replace(rotary=None) if crossed else None,
            norm_placement=placement,
        )

    # Gemma 2's: a window in the first layer and every other one.
    layers = range(config["num_hidden_layers"])
    every_other = [SLIDING if window and n % 2 == 0 else FULL for n in layers]
    kinds = layer_types(config, every_other)
    if SLIDING in kinds and not window:
        raise InputError(
            f"sliding_window = {window!r}: must be an integer, for layer_types has {SLIDING}",
            field="sliding_window",
        )
    return StackSpec(
        blocks=tuple(block(kind) for kind in period(kinds)),
        causal=causal,
        embedding_scale=config["hidden_size"] ** 0.5,
        final_norm=norm,
        **foreign.parts["stack"],
    )


def _extra(spec: ModelSpec) -> dict[str, Any]:
    stack = fields.stack_of(spec, "decoder")
    content = {**decoder_only.extra(spec), "eos_token_id": 1, "pad_token_id": 0}
    if spec.family == "gemma":
        mlp = fields.expect(stack.blocks[0].mlp, MlpSpec, "mlp")
        content["hidden_act"] = activation_name(mlp.activation, _TANH)
        return content | rope_config(stack.blocks[0].attention.rotary)
    head = spec.heads[0] if spec.heads else None
    softcap = head.softcap if isinstance(head, LMHeadSpec) else 30.0
    return content | stack_fields(stack, causal=True) | {"final_logit_softcapping": softcap}


def stack_fields(stack: StackSpec, *, causal: bool) -> dict[str, Any]:
    """Returns a stack's config fields without a path in `GEMMA2_FIELDS`."""
    attention, scale = stack.blocks[0].attention, stack.blocks[0].attention.logits_scale
    windows = [block.attention.window for block in stack.every_block]
    widest = max((window for window in windows if window), default=None)
    return {
        # An integer in their class.
        "query_pre_attn_scalar": round(attention.head_dim if scale is None else scale**-2),
        "sliding_window": 4096 if widest is None else widest + causal,
        "layer_types": [SLIDING if window else FULL for window in windows],
        **rope_config(attention.rotary),
    }


def names(side: str, norms: Mapping[str, str], *, model: str = "model") -> dict[str, Any]:
    """Returns the names of a stack's modules, norms by ours; see `modules.tensors_of`."""
    layer = {
        **modules.attention("self_attn.{}", PROJECTIONS),
        **modules.attention("cross_attn.{}", PROJECTIONS, "cross_attention"),
        **{f"mlp/{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
        **norms,
    }
    return {
        f"{side}/final_norm": f"{model}.norm",
        **modules.layers(side, f"{model}.layers.{{}}", layer),
    }


def decoder_names(norms: Mapping[str, str], *, tagger: str = "score") -> dict[str, Any]:
    return {
        "token_embedding": "model.embed_tokens",
        "lm_head/projection": "lm_head",
        **names("decoder", norms),
        **labels.names(classifier="score", tagger=tagger),
    }


def _tensors(spec: ModelSpec) -> list[Tensor]:
    around = fields.stack_of(spec, "decoder").blocks[0].norm_placement == "around"
    return modules.tensors_of(spec, decoder_names(NORMS_AROUND if around else NORMS), tied=TIED)


FAMILIES = {
    name: Family(
        classes,
        table,
        decoder_only.heads(softcap=softcap, spans=False),
        _spec_parts,
        _extra,
        _tensors,
        prefix="model.",
        ignored=(FREQUENCIES,),
    )
    for name, classes, table, softcap in (
        ("gemma", "Gemma", FIELDS, None),
        ("gemma2", "Gemma2", GEMMA2_FIELDS, "final_logit_softcapping"),
    )
}
