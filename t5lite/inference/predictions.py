"""Predictions: classes, numbers, tagged spans, answers."""

import dataclasses
from typing import Any

Name = str | int
"""Of a class or a tag: its name; where none was saved, its number from 0."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Any prediction.

    Attributes:
      num_cut: tokens by which the text was truncated.
    """

    num_cut: int = dataclasses.field(default=0, kw_only=True)

    def record(self) -> dict[str, Any]:
        """Returns the JSON object of a prediction; with `num_cut` only if it is not 0."""
        return self._fields() | ({"num_cut": self.num_cut} if self.num_cut else {})

    def _fields(self) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__}._fields")


@dataclasses.dataclass(frozen=True)
class Classes(Prediction):
    """The classes of a text.

    Attributes:
      classes: the likeliest with their probabilities, the likeliest first.
    """

    classes: tuple[tuple[Name, float], ...]

    @property
    def label(self) -> Name:
        """The likeliest class."""
        return self.classes[0][0]

    @property
    def probability(self) -> float:
        """The likeliest class's."""
        return self.classes[0][1]

    def _fields(self) -> dict[str, Any]:
        classes = [{"label": name, "probability": share} for name, share in self.classes]
        return {"label": self.label, "probability": self.probability, "classes": classes}


@dataclasses.dataclass(frozen=True)
class Numbers(Prediction):
    """The numbers of a text, in the unit of the training labels.

    Attributes:
      values: in the order of the labels.
      names: of each, where there are several and they have names; else ().
    """

    values: tuple[float, ...]
    names: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The first number, which may be the only one."""
        return self.values[0]

    def _fields(self) -> dict[str, Any]:
        if self.names:
            return {"values": dict(zip(self.names, self.values, strict=True))}
        return {"value": self.value} if len(self.values) == 1 else {"values": [*self.values]}


@dataclasses.dataclass(frozen=True)
class TagSpan:
    """A part of a text with a tag, without its prefix `B-` or `I-`.

    Attributes:
      tag: of all of it.
      start: its first character in the text, from 0.
      end: the character after it.
      text: `text[start:end]`.
      probability: the mean of its words' probabilities.
    """

    tag: Name
    start: int
    end: int
    text: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Tagged(Prediction):
    """The parts of a text that have a tag.

    Attributes:
      text: that was read.
      spans: in order.
    """

    text: str
    spans: tuple[TagSpan, ...]

    def _fields(self) -> dict[str, Any]:
        return {"text": self.text, "spans": [dataclasses.asdict(span) for span in self.spans]}


@dataclasses.dataclass(frozen=True)
class AnswerSpan:
    """A part of a text that answers.

    Attributes:
      text: it.
      start: its first character, from 0, in the text, or in the column that holds the answers.
      end: the character after it.
      probability: of its first token times that of its last one.
    """

    text: str
    start: int
    end: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Answers(Prediction):
    """The answers in a text.

    Attributes:
      answers: the likeliest, the likeliest first; () where no token can be one.
      no_answer: the probability of no answer; None for a model that was not trained for it.
    """

    answers: tuple[AnswerSpan, ...]
    no_answer: float | None = None

    @property
    def best(self) -> AnswerSpan | None:
        """The likeliest answer; None where having none is likelier."""
        best = self.answers[0] if self.answers else None
        return None if best is None or best.probability < (self.no_answer or 0.0) else best

    def _fields(self) -> dict[str, Any]:
        best = self.best
        fields: dict[str, Any] = {"answer": None if best is None else best.text}
        if best is not None:
            fields |= {"start": best.start, "end": best.end, "probability": best.probability}
        if self.no_answer is not None:
            fields["no_answer"] = self.no_answer
        return fields | {"answers": [dataclasses.asdict(answer) for answer in self.answers]}
