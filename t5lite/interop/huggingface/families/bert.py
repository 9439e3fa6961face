"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: one architecture, with tensors of other names."""

import dataclasses
import functools
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, family, labels, modules
from t5lite.interop.huggingface.families.activations import activation
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import (
    HeadSpec,
    MaskedLMHeadSpec,
    NormalInitSpec,
    PoolerHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec

# What they call it, by what BERT calls it.
_DISTILBERT_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
}


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a `model_type`'s classes, config fields and tensors.

    Args:
      classes: what its architectures begin with.
      prefix: of the base model's tensors.
      layer: of a layer's.
      sublayers: of a layer's modules.
      masked_lm: of that head: dense, norm, bias, and the aliases of table and bias.
      pooler: of the linear layer before a text's labels.
      pooler_activation: of that layer.
      classifier: of the linear layer that gives them.
      defaults: of the config's class, where it is not BERT's.
    """

    classes: str
    prefix: str
    layer: str
    sublayers: dict[str, Any]
    masked_lm: dict[str, str]
    pooler: str
    pooler_activation: str = "tanh"
    classifier: str = "classifier"
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


LAYER = encoder_only.layer_names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    mlp_norm="output.LayerNorm",
)
_BERT = Names(
    "Bert",
    "bert.",
    "encoder.layer",
    LAYER,
    {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
        "bias_alias": "cls.predictions.decoder.bias",
        "table_alias": "cls.predictions.decoder.weight",
    },
    pooler="bert.pooler.dense",
)
_ROBERTA = Names(
    "Roberta",
    "roberta.",
    "encoder.layer",
    LAYER,
    {
        "dense": "lm_head.dense",
        "norm": "lm_head.layer_norm",
        "bias": "lm_head.bias",
        "bias_alias": "lm_head.decoder.bias",
        "table_alias": "lm_head.decoder.weight",
    },
    pooler="classifier.dense",
    classifier="classifier.out_proj",
    defaults={"vocab_size": 50265, "pad_token_id": 1},
)
NAMES = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": dataclasses.replace(
        _ROBERTA, classes="XLMRoberta", defaults={"vocab_size": 30522, "pad_token_id": 1}
    ),
    "distilbert": Names(
        "DistilBert",
        "distilbert.",
        "transformer.layer",
        encoder_only.layer_names(
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            attention_norm="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            mlp_norm="output_layer_norm",
        ),
        {
            "dense": "vocab_transform",
            "norm": "vocab_layer_norm",
            "bias": "vocab_projector.bias",
            "bias_alias": "",
            "table_alias": "vocab_projector.weight",
        },
        pooler="pre_classifier",
        pooler_activation="relu",
        defaults={"num_hidden_layers": 6, "type_vocab_size": None},
    ),
}
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def spec(config: family.Config, source: Source, *, model_type: str) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    names = NAMES[model_type]
    fields = dict(config)
    if model_type == "distilbert":
        fields |= {
            ours: fields[theirs] for ours, theirs in _DISTILBERT_FIELDS.items() if theirs in fields
        }
        fields |= {"type_vocab_size": None, "layer_norm_eps": 1e-12}
    config = {**_DEFAULTS, **names.defaults, **fields}
    encoder_only.check(config)
    family.check_fields(config, sinusoidal_pos_embds=(False, True, None))  # a table in either case
    offset = config["pad_token_id"] + 1 if "roberta" in model_type else 0
    # The others are drawn by PyTorch, which does not truncate.
    kind = TruncatedNormalInitSpec if model_type == "bert" else NormalInitSpec
    return ModelSpec(
        family=model_type,
        vocab=config["vocab_size"],
        embed=config["hidden_size"],
        encoder=encoder_only.stack(config, config["num_hidden_layers"], offset=offset),
        heads=family.heads_of(names.classes, _heads(names), config, source),
        num_token_types=config["type_vocab_size"] or None,
        init=kind(config.get("initializer_range", 0.02)),
    )


def _heads(names: Names) -> dict[str, family.Heads]:
    """Returns the heads by architecture."""

    def masked_lm(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
        # RoBERTa's and DistilBERT's heads have activations and norms that no config changes.
        name = "gelu" if names is not _BERT else config["hidden_act"]
        if names.classes == "DistilBert":
            name, config = config["hidden_act"], {**config, "layer_norm_eps": 1e-12}
        return encoder_only.masked_lm_head(config, activation(name, "hidden_act"))

    def model(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
        pooled = f"{names.prefix}pooler.dense.weight" in source.tensors()
        return (PoolerHeadSpec(),) if pooled else ()

    table: dict[str, family.Heads] = {"ForMaskedLM": masked_lm, "Model": model}
    if names is _BERT:
        table["ForPreTraining"] = masked_lm
    text_rate = None
    if names.classes == "DistilBert":
        text_rate = lambda config: float(config.get("seq_classif_dropout", 0.2))  # noqa: E731
    activation_ = names.pooler_activation
    rate = labels.classifier_rate
    return table | labels.makers(rate, text_rate=text_rate, pooler_activation=activation_)


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    names, head = NAMES[spec.family], spec.heads[0] if spec.heads else None
    suffix = "ForMaskedLM" if isinstance(head, MaskedLMHeadSpec) else "Model"
    suffix = labels.SUFFIXES.get(type(head), suffix)  # type: ignore[arg-type]
    content = encoder_only.fields(spec) | {"architectures": [names.classes + suffix]}
    del content["embedding_size"]
    dropout_rate = getattr(head, "dropout_rate", None)
    if dropout_rate is not None:
        pooled = spec.family == "distilbert" and suffix == "ForSequenceClassification"
        content["seq_classif_dropout" if pooled else "classifier_dropout"] = dropout_rate
    if head is not None:
        content |= labels.fields(head)
    if spec.family == "distilbert":
        del content["type_vocab_size"], content["layer_norm_eps"]
        for ours, theirs in _DISTILBERT_FIELDS.items():
            content[theirs] = content.pop(ours)
        content["attention_dropout"] = content.pop("attention_probs_dropout_prob")
    return content


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    names, encoder, embed = NAMES[spec.family], family.stack_of(spec, "encoder"), spec.embed
    heads, masked = {head.kind: head for head in spec.heads}, names.masked_lm
    aliases = (masked["table_alias"],) if "lm" in heads else ()
    result = encoder_only.embedding_tensors(spec, names.prefix, aliases=aliases)
    layer_name = f"{names.prefix}{names.layer}.{{}}".format
    result += modules.stack_tensors(encoder, "encoder", embed, layer_name, names.sublayers)
    bias = (masked["bias"], *filter(None, [masked["bias_alias"]]))
    result += encoder_only.masked_lm_tensors(spec, masked["dense"], masked["norm"], *bias)
    if "pooler" in heads:
        name = f"{names.prefix}pooler.dense"
        result += modules.linear(name, "pooler_head/dense", embed, embed, use_bias=True)
    for head in spec.heads:
        result += labels.tensors(head, embed, pooler=names.pooler, classifier=names.classifier)
    return result


def _family(model_type: str) -> family.Family:
    names = NAMES[model_type]
    return family.Family(
        functools.partial(spec, model_type=model_type),
        config,
        tensors,
        names.classes,
        _heads(names),
        prefix=names.prefix,
        ignored=(
            # Buffers; BERT's head for next sentences; poolers that some heads leave out.
            rf"{names.prefix}embeddings\.(position_ids|token_type_ids)",
            r"cls\.seq_relationship\.(weight|bias)",
            rf"{names.prefix}pooler\.dense\.(weight|bias)",
        ),
        # As TensorFlow's checkpoints call them, and those converted from them years ago.
        renamed=(
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
    )


FAMILIES = {model_type: _family(model_type) for model_type in NAMES}
