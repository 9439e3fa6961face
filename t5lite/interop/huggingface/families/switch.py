"""Switch Transformers: T5 v1.0 with experts in some layers."""

import functools
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import fields, t5
from t5lite.interop.huggingface.families.activations import ACTIVATION, activation_name
from t5lite.interop.huggingface.families.family import Family, no_heads
from t5lite.interop.huggingface.families.fields import Config, Field, Fields, Foreign
from t5lite.layers import HeadSpec, LMHeadSpec, MlpSpec, MoeSpec
from t5lite.models import ModelSpec, StackSpec

FAMILY, CLASSES = "switch_transformers", "SwitchTransformers"
_MLPS = {
    "up": "mlp.wi",
    "down": "mlp.wo",
    "router": "mlp.router.classifier",
    "experts/up": "mlp.experts.expert_{expert}.wi",
    "experts/down": "mlp.experts.expert_{expert}.wo",
}
# The fields of MoeSpec by a config's names.
_EXPERTS = {
    "num_experts": "num_experts",
    "expert_capacity": "capacity",
    "router_aux_loss_coef": "balance_coefficient",
    "router_z_loss_coef": "router_z_coefficient",
    "router_jitter_noise": "router_jitter_rate",
}
FIELDS: Fields = {
    **fields.with_defaults(t5.COMMON, d_model=768, num_layers=12, num_heads=12),
    "num_decoder_layers": Field(12, nullable=True),
    "num_sparse_encoder_layers": Field(3, least=0),
    "num_sparse_decoder_layers": Field(3, least=0),
    "num_experts": Field(8),
    "expert_capacity": Field(64, nullable=True),
    "router_jitter_noise": Field(0.01),
    "router_aux_loss_coef": Field(0.001),
    "router_z_loss_coef": Field(0.001),
    "dense_act_fn": Field("relu"),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    config = foreign.config
    fields.check(config, router_bias=(False,), router_dtype=("float32",))
    mlps = {side: _pattern(config, side) for side in t5.sides(config, FAMILIES[FAMILY])}
    # The scale is that of arXiv:2101.03961, §2.4.
    return t5.model_parts(foreign, mlps, per_layer=False, init_scale=0.1)


def _lm_head(foreign: Foreign) -> tuple[HeadSpec, ...]:
    """Returns the head with logits, which are always scaled; InputError if nothing is tied."""
    # Otherwise transformers takes the embeddings of encoder, decoder and logits for three.
    fields.check(foreign.config, tie_word_embeddings=(True, None))
    return (LMHeadSpec(tied=t5.is_tied(foreign.source), logits_scale=None),)


def _pattern(config: Config, side: str) -> tuple[MlpSpec | MoeSpec, ...]:
    """Returns the MLPs of a stack's repeating pattern: the second of each step has experts.

    A missing step is derived from the numbers of layers, as in transformers: without sparse layers
    it is all of them, and the second layer has experts after all.
    """
    dense = MlpSpec(config["d_ff"], ACTIVATION.read(config["dense_act_fn"], "dense_act_fn"))
    experts = MoeSpec(dense, **{ours: config[theirs] for theirs, ours in _EXPERTS.items()})
    num_layers = config["num_layers"] if side == "encoder" else t5.num_decoder_layers(config)
    num_sparse = config[f"num_sparse_{side}_layers"]
    step = num_layers // num_sparse if num_sparse > 0 else num_layers
    step = config.get(f"{side}_sparse_step", step)
    if step < 2:
        return (experts,) if step == 1 else (dense,)
    return (dense, experts, *(dense,) * (step - 2))


def _extra(spec: ModelSpec) -> dict[str, Any]:
    content, encoder = t5.extra(spec, CLASSES), fields.stack_of(spec, "encoder")
    experts = []
    for side, stack in (("encoder", encoder), ("decoder", spec.decoder or encoder)):
        content |= _sparse_fields(stack, side)
        experts += [block.mlp for block in stack.blocks if isinstance(block.mlp, MoeSpec)]
    if not experts:
        raise InputError("a model without experts; set it to 't5'")
    moe = experts[0]
    if moe.expert.gated:
        raise fields.Unsupported("MoeSpec.expert.gated", True)
    return content | {
        "d_ff": moe.expert.hidden,
        "dense_act_fn": activation_name(moe.expert.activation),
        **{theirs: getattr(moe, ours) for theirs, ours in _EXPERTS.items()},
        "router_bias": False,
        "router_dtype": "float32",
        # Untied logits show in the file: it has their table.
        "tie_word_embeddings": True,
    }


def _sparse_fields(stack: StackSpec, side: str) -> dict[str, int]:
    """Returns the config fields for the layers with experts."""
    num_sparse = sum(isinstance(block.mlp, MoeSpec) for block in stack.every_block)
    step = len(stack.blocks) if any(isinstance(b.mlp, MoeSpec) for b in stack.blocks) else 0
    return {f"{side}_sparse_step": step, f"num_sparse_{side}_layers": num_sparse}


FAMILIES = {
    FAMILY: Family(
        CLASSES,
        FIELDS,
        {t5.LM: _lm_head, t5.BASE: no_heads, t5.ENCODER: no_heads},
        _spec_parts,
        _extra,
        functools.partial(t5.tensors, mlps=_MLPS),
        lm=t5.LM,
        side="encoder",
        ignored=t5.IGNORED,
    )
}
