"""Heads with labels: their fields in configs, and their linear layers."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.data.labels import Labels
from t5lite.errors import InputError
from t5lite.interop.huggingface.families.fields import Config, Foreign, Heads, unsupported
from t5lite.interop.huggingface.families.modules import Names
from t5lite.layers import (
    ClassificationHeadSpec,
    HeadSpec,
    RegressionHeadSpec,
    SpansHeadSpec,
    TokenLabelsHeadSpec,
)
from t5lite.models import ModelSpec

_FEATURE = "labels"  # the objectives' name of label features
_NAMED = ClassificationHeadSpec | RegressionHeadSpec | TokenLabelsHeadSpec
_UNNAMED = re.compile(r"LABEL_\d+")
_CLASSES, _NUMBERS = "single_label_classification", "regression"

SUFFIXES: dict[type[HeadSpec], str] = {
    ClassificationHeadSpec: "ForSequenceClassification",
    RegressionHeadSpec: "ForSequenceClassification",
    TokenLabelsHeadSpec: "ForTokenClassification",
    SpansHeadSpec: "ForQuestionAnswering",
}


def check(config: Config) -> None:
    """Raises an InputError for malformed names of architectures or labels."""
    names, labels = config.get("architectures"), config.get("id2label")
    if not (names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names))):
        raise InputError(
            f"architectures = {names!r}: must be a list of names", field="architectures"
        )
    if labels is not None and not (
        isinstance(labels, Mapping) and all(str(index).isdecimal() for index in labels)
    ):
        raise InputError(
            f"id2label = {labels!r}: must be an object of names by number", field="id2label"
        )
    count = config.get("num_labels")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise InputError(f"num_labels = {count!r}: must be an integer", field="num_labels")


def num_labels(config: Config) -> int:
    """Returns a config's number of labels, by default two."""
    return len(config.get("id2label") or ()) or config.get("num_labels") or 2


def text_head(config: Config, *, dropout_rate: float, **shape: Any) -> HeadSpec:
    """Returns the head of `…ForSequenceClassification`.

    Args:
      config: whose `problem_type`, or else a single label, makes it a regression.
      dropout_rate: before the linear layer.
      **shape: further fields of the head; by default BERT's, which reads the pooled first token.

    Raises: InputError for several labels at once, each with its own sigmoid.
    """
    count, problem = num_labels(config), config.get("problem_type")
    if problem not in (None, _CLASSES, _NUMBERS):
        raise unsupported("problem_type", problem, (_CLASSES, _NUMBERS))
    shape = {"pooling": "first", "pooler": True, "dropout_rate": dropout_rate, **shape}
    if problem == _NUMBERS or (problem is None and count == 1):
        return RegressionHeadSpec(num_targets=count, **shape)
    return ClassificationHeadSpec(num_classes=count, **shape)


def spans_head(config: Config) -> SpansHeadSpec:
    """Returns the head of `…ForQuestionAnswering`; InputError unless it has two outputs."""
    if num_labels(config) != 2:
        raise InputError(
            f"id2label has {num_labels(config)} labels; a span has 2: its first and last token",
            field="id2label",
        )
    return SpansHeadSpec()


def makers(
    rate: Callable[[Foreign], float],
    *,
    text_rate: Callable[[Foreign], float] | None = None,
    **shape: Any,
) -> dict[str, Heads]:
    """Returns the heads with labels by architecture.

    Args:
      rate: the dropout rate before the linear layer.
      text_rate: that of `…ForSequenceClassification`, where it differs.
      **shape: see `text_head`.
    """
    of_text = text_rate or rate
    return {
        "ForSequenceClassification": lambda foreign: (
            text_head(foreign.config, dropout_rate=of_text(foreign), **shape),
        ),
        "ForTokenClassification": lambda foreign: (
            TokenLabelsHeadSpec(num_labels=num_labels(foreign.config), dropout_rate=rate(foreign)),
        ),
        "ForQuestionAnswering": lambda foreign: (spans_head(foreign.config),),
    }


def classifier_rate(foreign: Foreign) -> float:
    """Returns BERT's dropout rate before a linear layer for labels."""
    rate = foreign.config.get("classifier_dropout")
    return float(foreign.parts["stack"]["dropout_rate"] if rate is None else rate)


def fields(head: HeadSpec) -> dict[str, Any]:
    """Returns the config fields that name a head's labels."""
    problems: dict[type[HeadSpec], str] = {
        ClassificationHeadSpec: _CLASSES,
        RegressionHeadSpec: _NUMBERS,
    }
    content: dict[str, Any] = {}
    if type(head) in problems:
        content["problem_type"] = problems[type(head)]
    if isinstance(head, _NAMED):
        content |= _by_id([f"LABEL_{index}" for index in range(head.num_outputs)])
    return content


def named_labels(config: Config, labels: Labels) -> dict[str, Any]:
    """Returns a config's label fields with a model's names; {} if it has no labels.

    Args:
      config: made with `fields`; outputs without a name keep the one they have.
      labels: of the model, by label feature.
    """
    names = [*config.get("id2label", {}).values()]
    own = list(labels.get(_FEATURE, ()))[: len(names)]
    return _by_id([*own, *names[len(own) :]]) if own else {}


def labels_of(config: Config, spec: ModelSpec) -> Labels:
    """Returns the label names of a config, unless they are transformers' own."""
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


def names(pooler: str = "", classifier: str = "classifier", tagger: str = "classifier") -> Names:
    """Returns module names of heads with labels: a text's pooler, its labels, tokens' labels."""
    of_text = ("classification", "regression")
    return {
        **{f"{kind}_head/pooler": pooler for kind in of_text},
        **{f"{kind}_head/projection": classifier for kind in of_text},
        "token_labels_head/projection": tagger,
        "spans_head/projection": "qa_outputs",
    }
