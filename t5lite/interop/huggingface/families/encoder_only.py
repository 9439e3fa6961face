"""The common part of BERT, RoBERTa, DistilBERT, ALBERT and ELECTRA."""

from typing import Any

from t5lite.interop.huggingface.families import fields, labels, modules
from t5lite.interop.huggingface.families.activations import ACTIVATION
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign
from t5lite.layers import (
    HeadSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

FIELDS: Fields = {
    "vocab_size": Field(30522, "vocab"),
    "hidden_size": Field(768, "embed"),
    "num_hidden_layers": Field(12, "stack.num_layers"),
    "num_attention_heads": Field(12, "attention.num_heads"),
    "intermediate_size": Field(3072, "mlp.hidden"),
    "hidden_act": Field("gelu", "mlp.activation", ACTIVATION),
    "hidden_dropout_prob": Field(0.1, "stack.dropout_rate"),
    "classifier_dropout": Field(None, kind=float),
    "max_position_embeddings": Field(512),
    "type_vocab_size": Field(2, least=0, nullable=True),
    "initializer_range": Field(0.02, "init.stddev"),
    "layer_norm_eps": Field(1e-12, "norm.epsilon"),
    "tie_word_embeddings": Field(True),
    "pad_token_id": Field(0, nullable=True, least=0),
}


def spec_parts(
    foreign: Foreign,
    init: Any,
    *,
    num_blocks: int = 1,
    shared: bool = False,
    offset: int = 0,
) -> dict[str, Any]:
    """Returns ModelSpec's fields of a config; InputError for options without a spec.

    Args:
      foreign: whose `num_hidden_layers` repeat the pattern.
      init: kind of the initial values' distribution, by their standard deviation.
      num_blocks: in the repeating pattern, all alike.
      shared: whether its repeats have the same parameters.
      offset: rows of the positions' table before the first position.
    """
    config, absent = foreign.config, (False, None)
    fields.check(
        config,
        position_embedding_type=("absolute", None),
        is_decoder=absent,
        add_cross_attention=absent,
    )
    stack, norm = foreign.parts["stack"], norm_of(foreign)
    block = TransformerBlockSpec(
        foreign.attention(use_bias=True),
        foreign.mlp(use_bias=True),
        norm=norm,
        norm_placement="after",
    )
    encoder = StackSpec(
        stack["num_layers"] * num_blocks,
        (block,) * num_blocks,
        causal=False,
        shared_layers=shared,
        position_embedding=LearnedPositionsSpec(config["max_position_embeddings"] - offset, offset),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=stack["dropout_rate"],
    )
    return {
        "encoder": encoder,
        "num_token_types": config["type_vocab_size"] or None,
        "init": init(**foreign.parts["init"]),
    }


def norm_of(foreign: Foreign) -> LayerNormSpec:
    return LayerNormSpec(**foreign.parts["norm"])


def masked_lm_head(foreign: Foreign, name: str | None = None) -> tuple[MaskedLMHeadSpec]:
    """Returns the masked-LM head, with the layers' activation or another; InputError if untied."""
    fields.check(foreign.config, tie_word_embeddings=(True, None))
    return (MaskedLMHeadSpec(name or foreign.parts["mlp"]["activation"], norm_of(foreign)),)


def pooled(foreign: Foreign, weight: str) -> tuple[HeadSpec, ...]:
    """Returns the head of a base model: a pooler if its weight exists."""
    return (PoolerHeadSpec(),) if weight in foreign.source.tensors() else ()


def extra(spec: ModelSpec, rate: str = "classifier_dropout") -> dict[str, Any]:
    """Returns the config fields beside `FIELDS` that these families share.

    Args:
      rate: the field of the dropout rate before a head's linear layer.
    """
    encoder, head = fields.stack_of(spec, "encoder"), spec.heads[-1] if spec.heads else None
    positions = positions_of(encoder)
    fields.expect(encoder.blocks[0].norm, LayerNormSpec, "norm")
    content = {
        "type_vocab_size": spec.num_token_types,
        "attention_probs_dropout_prob": encoder.dropout_rate,
        "max_position_embeddings": positions.max_length + positions.offset,
        "pad_token_id": positions.offset - 1 if positions.offset else 0,
    }
    if (dropout_rate := getattr(head, "dropout_rate", None)) is not None:
        content[rate] = dropout_rate
    return content


def positions_of(encoder: StackSpec) -> LearnedPositionsSpec:
    """Returns an encoder's required table of positions."""
    return fields.expect(encoder.position_embedding, LearnedPositionsSpec, "position_embedding")


def tied(prefix: str, logits: str, bias: str) -> dict[str, tuple[str, ...]]:
    """Returns the aliases in a masked-LM head.

    Args:
      prefix: of the base model's tensors.
      logits: the module of the logits' table, which is the token embedding.
      bias: the module that their bias is named by.
    """
    biases = {} if logits == bias else {f"{bias}.bias": (f"{logits}.bias",)}
    return {f"{prefix}embeddings.word_embeddings.weight": (f"{logits}.weight",), **biases}


def names(
    prefix: str,
    layer: str,
    sublayers: tuple[str, ...],
    masked_lm: tuple[str, str, str],
    *,
    pooler: str = "pooler.dense",
    text_pooler: str = "classifier.dense",
    classifier: str = "classifier.out_proj",
) -> dict[str, Any]:
    """Returns the names of a family's modules; see `modules.tensors_of`.

    Args:
      prefix: of the base model's tensors.
      layer: of a layer, with `{}` for its number.
      sublayers: of a layer: query, key, value, output, their norm, up, down, their norm.
      masked_lm: that head's layer, its norm, and the module of the logits' bias.
      pooler: of the base model's pooler.
      text_pooler: of the linear layer before a text's labels.
      classifier: of the linear layer that gives them.
    """
    ours = [f"attention/{part}" for part in modules.ATTENTION]
    ours += ["attention_norm", "mlp/up", "mlp/down", "mlp_norm"]
    embeddings = f"{prefix}embeddings"
    return {
        "token_embedding": f"{embeddings}.word_embeddings",
        "encoder/position_embedding": f"{embeddings}.position_embeddings",
        "token_type_embedding": f"{embeddings}.token_type_embeddings",
        "encoder/embedding_norm": f"{embeddings}.LayerNorm",
        **modules.layers("encoder", prefix + layer, dict(zip(ours, sublayers, strict=True))),
        **dict(zip(("lm_head/dense", "lm_head/norm", "lm_head"), masked_lm, strict=True)),
        "pooler_head/dense": prefix + pooler,
        **labels.names(text_pooler, classifier),
    }
