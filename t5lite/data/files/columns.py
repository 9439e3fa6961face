"""Columns of a row as features of an example: text, classes, numbers, tags, answers."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from t5lite.data.files.readers import Row
from t5lite.data.files.templates import Template, plain
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.errors import InputError, unknown

OUTSIDE = "O"
NO_LABEL = -1
_LARGEST = float(np.finfo(np.float32).max)

Arrays = dict[str, list[np.ndarray]]


class Column:
    """Base of all columns. By default, they make one feature without classes."""

    makes_labels: ClassVar[bool] = False  # as a second feature, `labels`

    def features(self, feature: str) -> tuple[str, ...]:
        """Returns the names of the features, the one listed in `FileData` first."""
        return (feature, "labels") if self.makes_labels else (feature,)

    def columns(self) -> Mapping[str, Sequence[str]]:
        """Returns the columns that decide the features, by the field that names them."""
        raise NotImplementedError

    def columns_read(self) -> list[str]:
        return [name for names in self.columns().values() for name in names]

    def check(self, columns: Sequence[str]) -> None:
        """Raises an InputError, with the nearest names, if a column is missing."""
        for field, names in self.columns().items():
            for name in names:
                if name not in columns:
                    message = f"{field} = {name!r}: {unknown('column', name, columns)}"
                    raise InputError(message, field=field)

    def problem(self, row: Row) -> str:
        """Returns why a row is broken; "" for a good one. By default, values must not be empty."""
        names = self.columns_read()
        empty = (f"column {name!r} is empty" for name in names if not plain(row[name]))
        return _missing(row, names) or next(empty, "")

    def classes_in(self, row: Row) -> Iterable[str]:
        del row
        return ()

    def with_classes(self, classes: Iterable[str]) -> Self:
        """Returns the column with the classes of the training rows, unless it has its own."""
        del classes
        return self

    def names(self) -> Sequence[str]:
        """Returns the name of each label, by id; empty where labels have no names."""
        return ()

    def with_names(self, names: Sequence[str]) -> Self:
        """Returns the column with a model's names of labels, by id; other names are refused."""
        del names
        return self

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        """Makes the `features` of good rows: 1-D arrays, int32, or float32 for numbers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Text(Column):
    """A template's text as token ids; a plain string among the features stands for it."""

    template: Template

    def columns(self) -> Mapping[str, Sequence[str]]:
        return {"FileData.features": self.template.slots}

    def check(self, columns: Sequence[str]) -> None:
        self.template.check(columns)

    def problem(self, row: Row) -> str:
        return _missing(row, self.template.slots)

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        ids = vocabulary.encode_all([self.template.render(row) for row in rows])
        return {feature: [np.array(tokens, np.int32) for tokens in ids]}


class _Labelled(Column):
    classes: Sequence[str] | None

    def __post_init__(self) -> None:
        names = self._own()
        if repeated := {name for name in names if names.count(name) > 1}:
            field = f"{type(self).__name__}.classes"
            listed = list(self.classes or ())
            message = f"{field} = {listed}: {min(repeated)!r} is repeated"
            raise InputError(message, field=field)

    def _own(self) -> list[str]:
        return [plain(name) for name in self.classes or ()]

    def with_classes(self, classes: Iterable[str]) -> Self:
        return self._with(self._own() or _in_order(classes))

    def names(self) -> Sequence[str]:
        return self.classes or ()

    def with_names(self, names: Sequence[str]) -> Self:
        _check_names(f"{type(self).__name__}.classes", self._own(), names)
        return self._with(list(names))

    def _with(self, classes: list[str]) -> Self:
        return dataclasses.replace(self, classes=classes)  # type: ignore[type-var]

    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names())}


@dataclasses.dataclass(frozen=True)
class Class(_Labelled):
    """A class, as its number from 0: int32 `[1]`.

    Attributes:
      column: holds the class's name.
      classes: all classes, in order; None: those of the training rows, sorted, as numbers if all
        are integers.
    """

    column: str
    _: dataclasses.KW_ONLY
    classes: Sequence[str] | None = None

    def columns(self) -> Mapping[str, Sequence[str]]:
        return {"Class.column": [self.column]}

    def classes_in(self, row: Row) -> Iterable[str]:
        return (plain(row[self.column]),)

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        numbers = self._numbers()
        return {feature: [np.array([numbers[plain(row[self.column])]], np.int32) for row in rows]}


@dataclasses.dataclass(frozen=True)
class Number(Column):
    """One number or several: float32 `[n]`, of the `column`, or of several columns in order."""

    column: str | Sequence[str]

    def columns(self) -> Mapping[str, Sequence[str]]:
        return {"Number.column": [self.column] if isinstance(self.column, str) else self.column}

    def names(self) -> Sequence[str]:
        columns = self.columns_read()
        return columns if len(columns) > 1 else ()  # one number cannot be taken for another

    def with_names(self, names: Sequence[str]) -> Self:
        _check_names("Number.column", self.names(), names)
        return self

    def problem(self, row: Row) -> str:
        if problem := super().problem(row):
            return problem
        for column in self.columns_read():
            try:
                if "_" in str(row[column]):  # Python's own 1_000
                    raise ValueError
                value = float(row[column])
            except (TypeError, ValueError):
                return f"column {column!r} is {str(row[column])[:40]!r}, not a number"
            except OverflowError:  # an integer of hundreds of digits
                value = math.inf
            if not abs(value) <= _LARGEST:
                return f"column {column!r} is {value}, not a finite number of float32"
        return ""

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        values = [[float(row[column]) for column in self.columns_read()] for row in rows]
        return {feature: [np.array(numbers, np.float32) for numbers in values]}


@dataclasses.dataclass(frozen=True)
class Tags(_Labelled):
    """Words with a tag each, as tokens and `labels` aligned with them: both int32 `[tokens]`.

    The words are joined by spaces and encoded as one text. A word's tag is at its first token, the
    space in front included; its other tokens have none (-1). A word without a token, which the
    vocabulary drops or joins to the word before it, loses its tag.

    Attributes:
      words_column: a list of words, or a text of them with spaces between.
      tags_column: the words' tags, likewise.
      classes: all tags, in order; None: those of the training rows, sorted, "O" (outside) first.
    Source: Devlin et al. 2019, arXiv:1810.04805, §5.3 (the first sub-token stands for the word).
    """

    makes_labels = True

    words_column: str
    tags_column: str
    _: dataclasses.KW_ONLY
    classes: Sequence[str] | None = None

    def columns(self) -> Mapping[str, Sequence[str]]:
        return {"Tags.words_column": [self.words_column], "Tags.tags_column": [self.tags_column]}

    def problem(self, row: Row) -> str:
        if problem := _missing(row, self.columns_read()):
            return problem
        for column in self.columns_read():
            if not isinstance(row[column], str | list):
                return f"column {column!r} is {str(row[column])[:40]!r}, not a list or a text"
            if isinstance(row[column], list) and None in row[column]:
                return f"column {column!r} holds a null"
        words, tags = _items(row[self.words_column]), _items(row[self.tags_column])
        return "" if len(words) == len(tags) else f"{len(words)} words and {len(tags)} tags"

    def classes_in(self, row: Row) -> Iterable[str]:
        return _items(row[self.tags_column])

    def with_classes(self, classes: Iterable[str]) -> Self:
        in_order = sorted(_in_order(classes), key=lambda tag: tag != OUTSIDE)  # stable
        return self._with(self._own() or in_order)

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        numbers = self._numbers()
        arrays: Arrays = {feature: [], "labels": []}
        for row in rows:
            words = _items(row[self.words_column])
            ids, offsets = vocabulary.encode_with_offsets(" ".join(words))
            tags = np.array([numbers[tag] for tag in _items(row[self.tags_column])], np.int32)
            arrays[feature].append(np.array(ids, np.int32))
            arrays["labels"].append(labels_at_first_tokens(tags, words, offsets))
        return arrays


@dataclasses.dataclass(frozen=True)
class Answer(Column):
    """A text and the position of the answer in it: tokens, and `labels` int32 `[2]`.

    `labels` are the answer's first and last token; (-1, -1) without an answer, where its column is
    empty or null. An answer past the length trains as no answer; `FileData.describe` counts those.

    Attributes:
      context: a column, or a template such as `"{question} {context}"`, whose last slot holds the
        answer.
      answer: the column with the answer's text, word for word as in the context.
      start: the column with the answer's first character in the context's column, from 0; None: the
        first occurrence of the answer.
    Source: Devlin et al. 2019, arXiv:1810.04805, §4.2-4.3.
    """

    makes_labels = True

    context: str
    answer: str
    _: dataclasses.KW_ONLY
    start: str | None = None

    def columns(self) -> Mapping[str, Sequence[str]]:
        own = [self.answer] if self.start is None else [self.answer, self.start]
        return {"Answer.context": self.template.slots, "Answer.answer or Answer.start": own}

    def check(self, columns: Sequence[str]) -> None:
        if not self.template.slots:
            raise InputError(
                f"Answer.context = {self.context!r}: has no slot that holds answers",
                field="Answer.context",
            )
        if "{" in self.context:
            self.template.check(columns)
        super().check(columns)

    def problem(self, row: Row) -> str:
        missing = _missing(row, self.template.slots)
        answer = plain(row.get(self.answer))
        if missing or not answer:
            return missing
        context = plain(row[self._slot])
        if self.start is None:
            return "" if answer in context else f"the answer {answer[:40]!r} is not in the context"
        if not plain(row.get(self.start)).strip().removeprefix("-").isdecimal():
            return f"column {self.start!r} is {row.get(self.start)!r}, not an integer"
        start = int(plain(row[self.start]))
        if start >= 0 and context.startswith(answer, start):
            return ""
        return f"the answer {answer[:40]!r} is not at character {start} of the context"

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        arrays: Arrays = {feature: [], "labels": []}
        for row in rows:
            ids, offsets = vocabulary.encode_with_offsets(self.template.render(row))
            arrays[feature].append(np.array(ids, np.int32))
            arrays["labels"].append(np.array(self._span(row, offsets), np.int32))
        return arrays

    def _span(self, row: Row, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Returns the first and last token that share a character with the answer."""
        answer = plain(row.get(self.answer))
        if not answer:
            return -1, -1
        at = int(plain(row[self.start])) if self.start else plain(row[self._slot]).index(answer)
        start = self.template.start_of(self._slot, row) + at
        end = start + len(answer)
        inside = [i for i, (first, after) in enumerate(offsets) if first < end and after > start]
        return (inside[0], inside[-1]) if inside else (-1, -1)

    @property
    def template(self) -> Template:
        """The template of the text, whose last slot holds the answer."""
        return Template(self.context if "{" in self.context else f"{{{self.context}}}")

    @property
    def _slot(self) -> str:
        return self.template.slots[-1]


@dataclasses.dataclass(frozen=True)
class SplitKey(Column):
    """The columns whose values decide the split of a row; makes no feature."""

    keys: Sequence[str]

    def columns(self) -> Mapping[str, Sequence[str]]:
        return {"FileData.split_by": self.keys}


def as_column(feature: str, value: Any) -> Column:
    """Returns a column as it is, and a template or plain string as `Text`."""
    if isinstance(value, Column):
        return value
    if isinstance(value, str | Template):
        return Text(Template(value) if isinstance(value, str) else value)
    raise InputError(
        f"features[{feature!r}] is {value!r}: must be a template such as '{{question}}', or a "
        "Class, Number, Tags or Answer",
        field="features",
    )


def _missing(row: Row, columns: Iterable[str]) -> str:
    for column in columns:
        if row.get(column) is None:
            return f"column {column!r} is {'null' if column in row else 'missing'}"
    return ""


def labels_at_first_tokens(
    tags: np.ndarray, words: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Returns `[tokens]` int32: the tags `[words]` at the first tokens of their words, else -1.

    `offsets` are the tokens' character spans in the words joined by spaces.
    """
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1] - 1  # with the space in front
    word_of = np.searchsorted(starts, [first for first, _ in offsets], side="right") - 1
    is_first = np.diff(word_of, prepend=-1) > 0  # [tokens]
    labels = np.full(len(offsets), NO_LABEL, np.int32)
    labels[is_first] = tags[word_of[is_first]]
    return labels


def _items(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [plain(item) for item in value]


def _check_names(field: str, own: Sequence[str], names: Sequence[str]) -> None:
    if own and list(own) != list(names):
        raise InputError(
            f"{field} = {list(own)}: the model's labels are {list(names)}; "
            "set these, in this order, or leave the field out",
            field=field,
        )


def _in_order(classes: Iterable[str]) -> list[str]:
    names = set(classes)
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # "1" and "01" are two classes
    return sorted(names)
