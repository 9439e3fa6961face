"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: one architecture, with tensors of other names."""

import dataclasses
import functools
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import labels, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.family import Config, Family, Unsupported, initial_stddev
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import (
    AttentionSpec,
    HeadSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    NormalInitSpec,
    PoolerHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

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
    """How a `model_type` names classes, config fields and tensors.

    Args:
      classes: what its architectures begin with.
      prefix: of the base model's tensors.
      layer: of a layer's.
      sublayers: of a layer: query, key, value, output, attention_norm, up, down, mlp_norm.
      masked_lm: of that head: dense, norm, bias, and the aliases of table and bias.
      pooler: of the linear layer before a text's labels.
      pooler_activation: of that layer.
      classifier: of the linear layer that gives them.
      defaults: of the config's class, where it is not BERT's.
    """

    classes: str
    prefix: str
    layer: str
    sublayers: dict[str, str]
    masked_lm: dict[str, str]
    pooler: str
    pooler_activation: str = "tanh"
    classifier: str = "classifier"
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


SUBLAYERS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_BERT = Names(
    "Bert",
    "bert.",
    "encoder.layer",
    SUBLAYERS,
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
    SUBLAYERS,
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
        {
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
            "mlp_norm": "output_layer_norm",
        },
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


def spec(config: Config, source: Source, *, model_type: str) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    names = NAMES[model_type]
    given = dict(config)
    if model_type == "distilbert":
        given |= {
            ours: given[theirs] for ours, theirs in _DISTILBERT_FIELDS.items() if theirs in given
        }
        given |= {"type_vocab_size": None, "layer_norm_eps": 1e-12}
    config = {**_DEFAULTS, **names.defaults, **given}
    _refuse(config, "position_embedding_type", ("absolute", None))
    _refuse(config, "is_decoder", (False, None))
    _refuse(config, "add_cross_attention", (False, None))
    _refuse(config, "sinusoidal_pos_embds", (False, True, None))  # a table in either case
    norm = LayerNormSpec(config["layer_norm_eps"])
    embed, num_heads = config["hidden_size"], config["num_attention_heads"]
    block = TransformerBlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(
            config["intermediate_size"],
            activation(config["hidden_act"], "hidden_act"),
            use_bias=True,
        ),
        norm=norm,
        norm_placement="after",
    )
    offset = config["pad_token_id"] + 1 if "roberta" in model_type else 0
    encoder = StackSpec(
        config["num_hidden_layers"],
        (block,),
        causal=False,
        position_embedding=LearnedPositionsSpec(config["max_position_embeddings"] - offset, offset),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=float(config["hidden_dropout_prob"]),
    )
    # The others are drawn by PyTorch, which does not truncate.
    kind = TruncatedNormalInitSpec if model_type == "bert" else NormalInitSpec
    return ModelSpec(
        family=model_type,
        vocab=config["vocab_size"],
        embed=embed,
        encoder=encoder,
        heads=_heads(config, names, source),
        num_token_types=config["type_vocab_size"] or None,
        init=kind(config.get("initializer_range", 0.02)),
    )


def _heads(config: Config, names: Names, source: Source) -> tuple[HeadSpec, ...]:
    architecture = (config.get("architectures") or [f"{names.classes}ForMaskedLM"])[0]
    dropout_rate = float(config.get("classifier_dropout") or config["hidden_dropout_prob"])
    suffix = architecture.removeprefix(names.classes)
    norm = LayerNormSpec(config["layer_norm_eps"])
    known = ["Model", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"]
    known += ["ForPreTraining"] if names.classes == "Bert" else []
    known += ["ForSequenceClassification"]
    if suffix not in known:
        listed = ", ".join(names.classes + each for each in known)
        raise InputError(
            f"architectures = [{architecture!r}] is not modelled; those that are: {listed}"
        )
    if suffix == "Model":
        pooler = f"{names.prefix}pooler.dense.weight"
        return (PoolerHeadSpec(),) if pooler in source.tensors() else ()
    if suffix == "ForTokenClassification":
        return (labels.token_head(config, dropout_rate=dropout_rate),)
    if suffix == "ForQuestionAnswering":
        return (labels.spans_head(config),)
    if suffix == "ForSequenceClassification":
        if names.classes == "DistilBert":
            dropout_rate = float(config.get("seq_classif_dropout", 0.2))
        shape = {"pooler_activation": names.pooler_activation}
        return (labels.text_head(config, dropout_rate=dropout_rate, **shape),)
    if config.get("tie_word_embeddings", True) is False:
        raise InputError("tie_word_embeddings = False is not modelled for masked language models")
    # RoBERTa's and DistilBERT's heads have activations and norms that no config changes.
    name = "gelu"
    if names.classes == "Bert":
        name = activation(config["hidden_act"], "hidden_act")
    elif names.classes == "DistilBert":
        name, norm = activation(config["hidden_act"], "activation"), LayerNormSpec(1e-12)
    return (MaskedLMHeadSpec(name, norm),)


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    names, encoder = NAMES[spec.family], spec.encoder
    assert encoder is not None
    block, positions = encoder.blocks[0], encoder.position_embedding
    if not isinstance(block.mlp, MlpSpec):
        raise Unsupported("mlp", block.mlp)
    if not isinstance(block.norm, LayerNormSpec):
        raise Unsupported("norm", block.norm)
    if not isinstance(positions, LearnedPositionsSpec):
        raise Unsupported("position_embedding", positions)
    head = spec.heads[0] if spec.heads else None
    suffix = "ForMaskedLM" if isinstance(head, MaskedLMHeadSpec) else "Model"
    suffix = labels.SUFFIXES.get(type(head), suffix)  # type: ignore[arg-type]
    content = {
        "architectures": [names.classes + suffix],
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "hidden_size": spec.embed,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": block.mlp.hidden,
        "hidden_act": activation_name(block.mlp.activation),
        "hidden_dropout_prob": encoder.dropout_rate,
        "max_position_embeddings": positions.max_length + positions.offset,
        "type_vocab_size": spec.num_token_types,
        "layer_norm_eps": block.norm.epsilon,
        "pad_token_id": positions.offset - 1 if positions.offset else 0,
        "initializer_range": initial_stddev(spec),
    }
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
        content["attention_dropout"] = encoder.dropout_rate
    else:
        content["attention_probs_dropout_prob"] = encoder.dropout_rate
    return content


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    names, encoder, embed = NAMES[spec.family], spec.encoder, spec.embed
    assert encoder is not None
    theirs, heads = f"{names.prefix}embeddings", {head.kind: head for head in spec.heads}
    aliases = (names.masked_lm["table_alias"],) if "lm" in heads else ()
    found = modules.table(
        f"{theirs}.word_embeddings.weight", "token_embedding", spec.vocab, embed, aliases=aliases
    )
    positions = encoder.position_embedding
    if not isinstance(positions, LearnedPositionsSpec):
        raise Unsupported("position_embedding", positions)
    found += modules.table(
        f"{theirs}.position_embeddings.weight",
        "encoder/position_embedding",
        positions.max_length + positions.offset,
        embed,
    )
    if spec.num_token_types is not None:
        name = f"{theirs}.token_type_embeddings.weight"
        found += modules.table(name, "token_type_embedding", spec.num_token_types, embed)
    assert encoder.embedding_norm is not None
    path = "encoder/embedding_norm"
    found += modules.norm(f"{theirs}.LayerNorm", path, encoder.embedding_norm, embed)
    for layer, block in enumerate(encoder.every_block):
        place, index = encoder.place(layer)
        ours = f"encoder/{place}"
        parts = {
            part: f"{names.prefix}{names.layer}.{layer}.{name}"
            for part, name in names.sublayers.items()
        }
        norm = functools.partial(modules.norm, spec=block.norm, size=embed, layer=index)
        if not isinstance(block.mlp, MlpSpec):
            raise Unsupported("mlp", block.mlp)
        found += modules.attention(parts, f"{ours}/attention", block.attention, embed, layer=index)
        found += norm(parts["attention_norm"], f"{ours}/attention_norm")
        found += modules.mlp(parts, f"{ours}/mlp", block.mlp, embed, layer=index)
        found += norm(parts["mlp_norm"], f"{ours}/mlp_norm")
    head = heads.get("lm")
    if isinstance(head, MaskedLMHeadSpec):
        name = names.masked_lm["dense"]
        found += modules.linear(name, "lm_head/dense", embed, embed, use_bias=True)
        found += modules.norm(names.masked_lm["norm"], "lm_head/norm", head.norm, embed)
        bias = modules.vector(names.masked_lm["bias"], "lm_head/bias", spec.vocab)
        alias = names.masked_lm["bias_alias"]
        found.append(dataclasses.replace(bias, aliases=(alias,) if alias else ()))
    if "pooler" in heads:
        name = f"{names.prefix}pooler.dense"
        found += modules.linear(name, "pooler_head/dense", embed, embed, use_bias=True)
    for each in spec.heads:
        found += labels.tensors(each, embed, pooler=names.pooler, classifier=names.classifier)
    return found


def _refuse(config: Config, field: str, allowed: tuple[Any, ...]) -> None:
    if config.get(field) not in allowed:
        raise InputError(f"{field} = {config[field]!r} is not modelled; {allowed[0]!r} is")


def _family(model_type: str) -> Family:
    names = NAMES[model_type]
    return Family(
        functools.partial(spec, model_type=model_type),
        config,
        tensors,
        prefix=names.prefix,
        base=f"{names.classes}Model",
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
