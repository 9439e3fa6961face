"""Heads with labels: their fields in configs, and their linear layers."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from t5lite.data.labels import Labels
from t5lite.errors import InputError
from t5lite.interop.huggingface.families import modules
from t5lite.interop.huggingface.families.family import Config, Heads, unsupported
from t5lite.interop.tensors import Tensor
from t5lite.layers import (
    ClassificationHeadSpec,
    HeadSpec,
    RegressionHeadSpec,
    SpansHeadSpec,
    TokenLabelsHeadSpec,
)
from t5lite.models import ModelSpec

_FEATURE = "labels"  # the objectives' name for what their heads say
_NAMED = ClassificationHeadSpec | RegressionHeadSpec | TokenLabelsHeadSpec
_UNNAMED = re.compile(r"LABEL_\d+")

SUFFIXES: dict[type[HeadSpec], str] = {
    ClassificationHeadSpec: "ForSequenceClassification",
    RegressionHeadSpec: "ForSequenceClassification",
    TokenLabelsHeadSpec: "ForTokenClassification",
    SpansHeadSpec: "ForQuestionAnswering",
}


def num_labels(config: Config) -> int:
    """Returns how many labels a config has: two unless it says otherwise."""
    if config.get("id2label"):
        return len(config["id2label"])
    return int(config.get("num_labels") or 2)


def text_head(config: Config, *, dropout_rate: float, **shape: Any) -> HeadSpec:
    """Returns the head of `…ForSequenceClassification`.

    Args:
      config: whose `problem_type`, or else a single label, makes it a regression.
      dropout_rate: before the linear layer.
      **shape: further fields of the head; by default BERT's, which reads the pooled first token.

    Raises:
      InputError: for several labels at once, each with a sigmoid of its own.
    """
    count, problem = num_labels(config), config.get("problem_type")
    if problem == "multi_label_classification":
        known = ("single_label_classification", "regression")
        raise unsupported("problem_type", problem, known)
    bert: dict[str, Any] = {"pooling": "first", "pooler": True, "dropout_rate": dropout_rate}
    shape = bert | shape
    if problem == "regression" or (problem is None and count == 1):
        return RegressionHeadSpec(num_targets=count, **shape)
    return ClassificationHeadSpec(num_classes=count, **shape)


def token_head(config: Config, *, dropout_rate: float) -> TokenLabelsHeadSpec:
    """Returns the head of `…ForTokenClassification`."""
    return TokenLabelsHeadSpec(num_labels=num_labels(config), dropout_rate=dropout_rate)


def spans_head(config: Config) -> SpansHeadSpec:
    """Returns the head of `…ForQuestionAnswering`.

    Raises:
      InputError: unless it has two outputs.
    """
    if num_labels(config) != 2:
        raise InputError(
            f"id2label has {num_labels(config)} labels; a span has 2: its first and last token"
        )
    return SpansHeadSpec()


def makers(
    rate: Callable[[Config], float],
    *,
    text_rate: Callable[[Config], float] | None = None,
    **shape: Any,
) -> dict[str, Heads]:
    """Returns the heads with labels by architecture.

    Args:
      rate: the dropout rate before the linear layer, of a config.
      text_rate: that of `…ForSequenceClassification`, if it is another.
      **shape: see `text_head`.
    """
    of_text = text_rate or rate
    return {
        "ForSequenceClassification": lambda config, _: (
            text_head(config, dropout_rate=of_text(config), **shape),
        ),
        "ForTokenClassification": lambda config, _: (
            token_head(config, dropout_rate=rate(config)),
        ),
        "ForQuestionAnswering": lambda config, _: (spans_head(config),),
    }


def classifier_rate(config: Config) -> float:
    """Returns BERT's dropout rate before a linear layer for labels."""
    rate = config.get("classifier_dropout")
    return float(config["hidden_dropout_prob"] if rate is None else rate)


def fields(head: HeadSpec) -> dict[str, Any]:
    """Returns the fields of a config that name a head's labels."""
    problems: dict[type[HeadSpec], str] = {
        ClassificationHeadSpec: "single_label_classification",
        RegressionHeadSpec: "regression",
    }
    content: dict[str, Any] = {}
    if type(head) in problems:
        content["problem_type"] = problems[type(head)]
    if isinstance(head, _NAMED):
        content |= _by_id([f"LABEL_{index}" for index in range(head.num_outputs)])
    return content


def named_labels(config: Config, labels: Labels) -> dict[str, Any]:
    """Returns the fields of a config that name its labels as a model does; {} if it has none.

    Args:
      config: made with `fields`; outputs for which there is no name keep the one they have.
      labels: of the model, by label feature.
    """
    names = [*config.get("id2label", {}).values()]
    own = list(labels.get(_FEATURE, ()))[: len(names)]
    return _by_id([*own, *names[len(own) :]]) if own else {}


def labels_of(config: Config, spec: ModelSpec) -> Labels:
    """Returns the names in a config whose head has labels, unless they are transformers' own."""
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    heads = [head for head in spec.heads if isinstance(head, _NAMED)]
    if not heads or all(_UNNAMED.fullmatch(name) for name in names.values()):
        return {}
    return {_FEATURE: [names[index] for index in sorted(names)]}


def _by_id(names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def tensors(
    head: HeadSpec,
    embed: int,
    *,
    pooler: str = "",
    classifier: str = "classifier",
    tagger: str = "classifier",
) -> list[Tensor]:
    """Returns the tensors of a head of `SUFFIXES`; of others none.

    Args:
      head: of the model.
      embed: width of the hidden states.
      pooler: the name of the linear layer before a text's labels.
      classifier: the name of the linear layer that gives a text's labels.
      tagger: the name of the linear layer that gives tokens' labels.
    """
    if type(head) not in SUFFIXES:
        return []
    result, path = [], f"{head.kind}_head"
    if getattr(head, "pooler", False):
        result += modules.linear(pooler, f"{path}/pooler", embed, embed, use_bias=True)
    of_tokens = {SpansHeadSpec: "qa_outputs", TokenLabelsHeadSpec: tagger}
    name = of_tokens.get(type(head), classifier)
    size = getattr(head, "num_outputs", 2)  # of a span its first and last token
    use_bias = getattr(head, "use_bias", True)
    return result + modules.linear(name, f"{path}/projection", embed, size, use_bias=use_bias)
