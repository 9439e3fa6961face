"""Predictions: classes, numbers, tagged spans, answers."""

import dataclasses
from typing import Any

Name = str | int
"""Of a class or a tag: its name, or its number from 0 if no names were saved."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Any prediction; `num_cut` counts the tokens by which the text was truncated."""

    num_cut: int = dataclasses.field(default=0, kw_only=True)

    def record(self) -> dict[str, Any]:
        """Returns the JSON object of a prediction; `num_cut` is left out if it is 0."""
        return self._fields() | ({"num_cut": self.num_cut} if self.num_cut else {})

    def _fields(self) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__}._fields")


@dataclasses.dataclass(frozen=True)
class Classes(Prediction):
    """The most probable classes of a text with their probabilities, descending."""

    classes: tuple[tuple[Name, float], ...]

    @property
    def label(self) -> Name:
        """The most probable class."""
        return self.classes[0][0]

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.classes[0][1]

    def _fields(self) -> dict[str, Any]:
        classes = [{"label": name, "probability": share} for name, share in self.classes]
        return {**classes[0], "classes": classes}


@dataclasses.dataclass(frozen=True)
class Numbers(Prediction):
    """The numbers of a text, in the unit and order of the training labels; `names`, if there are
    several labels with names, else ()."""

    values: tuple[float, ...]
    names: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The first number."""
        return self.values[0]

    def _fields(self) -> dict[str, Any]:
        if self.names:
            return {"values": dict(zip(self.names, self.values, strict=True))}
        return {"value": self.value} if len(self.values) == 1 else {"values": [*self.values]}


@dataclasses.dataclass(frozen=True)
class TagSpan:
    """A tagged part of a text.

    Attributes:
      tag: without its prefix `B-` or `I-`.
      start, end: its first character in the text, from 0, and the character after it.
      probability: the mean of its words' probabilities.
    """

    tag: Name
    start: int
    end: int
    text: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Tagged(Prediction):
    """A text, as it was read, and its tagged spans in order."""

    text: str
    spans: tuple[TagSpan, ...]

    def _fields(self) -> dict[str, Any]:
        return {"text": self.text, "spans": [dataclasses.asdict(span) for span in self.spans]}


@dataclasses.dataclass(frozen=True)
class AnswerSpan:
    """An answer in a text, or in the column that holds the answers.

    Attributes:
      start, end: its first character, from 0, and the character after it.
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
      answers: the most probable ones, descending; () if no token can be one.
      no_answer: the probability of no answer; None for a model that was not trained for it.
    """

    answers: tuple[AnswerSpan, ...]
    no_answer: float | None = None

    @property
    def best(self) -> AnswerSpan | None:
        """The most probable answer; None if no answer is more probable."""
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
