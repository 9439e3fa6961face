"""Switch Transformers: T5 v1.0 with experts in some layers."""

from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import family, modules, t5
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import HeadSpec, LMHeadSpec, MlpSpec, MoeSpec
from t5lite.models import ModelSpec, StackSpec

FAMILY, NAME = "switch_transformers", "SwitchTransformers"
# What transformers' config class fills in.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "expert_capacity": 64,
    "num_layers": 12,
    "num_sparse_encoder_layers": 3,
    "num_decoder_layers": 12,
    "num_sparse_decoder_layers": 3,
    "num_heads": 12,
    "num_experts": 8,
    "router_jitter_noise": 0.01,
    "router_aux_loss_coef": 0.001,
    "router_z_loss_coef": 0.001,
    "dense_act_fn": "relu",
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    config = {**DEFAULTS, **config}
    family.check_fields(config, router_bias=(False,), router_dtype=("float32",))
    suffix = family.suffix_of(NAME, HEADS, config)
    sides = ("encoder",) if suffix == t5.ENCODER else ("encoder", "decoder")
    mlps = {side: pattern(config, side) for side in sides}
    return t5.model_spec(
        config,
        0.1,  # arXiv:2101.03961, §2.4
        heads=HEADS[suffix](config, source),
        **t5.stacks(config, mlps, per_layer=False),
    )


def lm_head(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
    """Returns the head of the model with logits, which are always scaled.

    Raises:
      InputError: if nothing is to be tied.
    """
    # Otherwise transformers takes the embeddings of encoder, decoder and logits for three.
    family.check_fields(config, tie_word_embeddings=(True, None))
    return (LMHeadSpec(tied=t5.is_tied(source), logits_scale=None),)


HEADS: dict[str, family.Heads] = {
    t5.LM: lm_head,
    t5.BASE: family.no_heads,
    t5.ENCODER: family.no_heads,
}


def pattern(config: family.Config, side: str) -> tuple[MlpSpec | MoeSpec, ...]:
    """Returns the MLPs of a stack's repeating pattern: the second of each step has experts.

    A step that the config does not name is what transformers makes of the numbers of layers: with
    no sparse layers it is all of them, and the second layer has experts after all.
    """
    name = activation(config["dense_act_fn"], "dense_act_fn")
    dense = MlpSpec(config["d_ff"], name)
    experts = MoeSpec(
        dense,
        config["num_experts"],
        capacity=config["expert_capacity"],
        balance_coefficient=config["router_aux_loss_coef"],
        router_z_coefficient=config["router_z_loss_coef"],
        router_jitter_rate=config["router_jitter_noise"],
    )
    num_layers = config["num_layers"] if side == "encoder" else t5.num_decoder_layers(config)
    num_sparse = config[f"num_sparse_{side}_layers"]
    step = num_layers // num_sparse if num_sparse > 0 else num_layers
    step = config.get(f"{side}_sparse_step", step)
    if step < 2:
        return (experts,) if step == 1 else (dense,)
    return (dense, experts, *(dense,) * (step - 2))


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    content = t5.fields(spec, NAME)
    encoder, decoder = family.stack_of(spec, "encoder"), spec.decoder
    experts = []
    for side, stack in (("encoder", encoder), ("decoder", decoder or encoder)):
        content |= sparse_fields(stack, side)
        experts += [block.mlp for block in stack.blocks if isinstance(block.mlp, MoeSpec)]
    if not experts:
        raise InputError(f"family = {FAMILY!r} has experts and this model none: say t5")
    moe = experts[0]
    if moe.expert.gated:
        raise InputError(f"MlpSpec.gated = True: transformers' {NAME} has no gated experts")
    return content | {
        "d_ff": moe.expert.hidden,
        "dense_act_fn": activation_name(moe.expert.activation),
        "num_experts": moe.num_experts,
        "expert_capacity": moe.capacity,
        "router_aux_loss_coef": moe.balance_coefficient,
        "router_z_loss_coef": moe.router_z_coefficient,
        "router_jitter_noise": moe.router_jitter_rate,
        "router_bias": False,
        "router_dtype": "float32",
        # Untied logits show in the file: it has their table.
        "tie_word_embeddings": True,
    }


def sparse_fields(stack: StackSpec, side: str) -> dict[str, int]:
    """Returns the fields of a config that say which layers of a stack have experts."""
    num_sparse = sum(isinstance(block.mlp, MoeSpec) for block in stack.every_block)
    step = len(stack.blocks) if any(isinstance(b.mlp, MoeSpec) for b in stack.blocks) else 0
    return {f"{side}_sparse_step": step, f"num_sparse_{side}_layers": num_sparse}


def mlp(
    name: str, path: str, spec: MlpSpec | MoeSpec, embed: int, *, layer: int | None
) -> list[Tensor]:
    """Returns the tensors of an MLP, or of a router and its experts."""
    if isinstance(spec, MlpSpec):
        return modules.mlp(_names(name), path, spec, embed, layer=layer)
    router = (f"{name}.router.classifier", f"{path}/router", embed, spec.num_experts)
    result = modules.linear(*router, use_bias=False, layer=layer)
    for number in range(spec.num_experts):
        index = (number,) if layer is None else (layer, number)
        names = _names(f"{name}.experts.expert_{number}")
        result += modules.mlp(names, f"{path}/experts", spec.expert, embed, layer=index)
    return result


def _names(name: str) -> dict[str, str]:
    return {"up": f"{name}.wi", "down": f"{name}.wo"}


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    return t5.tensors(spec, mlp, "mlp")


FAMILIES = {FAMILY: family.Family(spec, config, tensors, NAME, ignored=t5.FAMILIES["t5"].ignored)}
