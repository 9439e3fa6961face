"""How the features of an example come from the columns of a row: text, classes, numbers, spans."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    """What becomes of some columns. The default: none of them is a class, and any row will do."""

    def features(self, feature: str) -> tuple[str, ...]:
        """Returns the features that are made, given the one under which this is listed."""
        return (feature,)

    def check(self, columns: Sequence[str]) -> None:
        """Raises an InputError, with the nearest names, if a column is missing."""
        raise NotImplementedError

    def columns_read(self) -> Sequence[str]:
        """Returns the columns that decide what is made."""
        raise NotImplementedError

    def problem(self, row: Row) -> str:
        """Returns what is wrong with a row; empty if nothing is."""
        raise NotImplementedError

    def classes_in(self, row: Row) -> Iterable[str]:
        """Returns the classes that a row names."""
        del row
        return ()

    def with_classes(self, found: Iterable[str]) -> "Column":
        """Returns itself with the classes that were found in the training rows, if it needs any."""
        del found
        return self

    def names(self) -> Sequence[str]:
        """Returns what each label means, in the order of their ids; empty if they need no names."""
        return ()

    def with_names(self, names: Sequence[str]) -> "Column":
        """Returns itself with labels of these names, in the order of their ids: a model's.

        Raises:
          InputError: if it was given others.
        """
        del names
        return self

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        """Makes the features of some rows.

        Args:
          feature: under which this is listed.
          rows: without problems.
          vocabulary: encodes texts, all at once.

        Returns:
          For each of `features`, a 1-D array a row: int32, or float32 for numbers.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Text(Column):
    """A template's text as token ids; what a plain string among the features stands for."""

    template: Template

    def check(self, columns: Sequence[str]) -> None:
        self.template.check(columns)

    def columns_read(self) -> Sequence[str]:
        return self.template.slots

    def problem(self, row: Row) -> str:
        return _missing(row, self.template.slots)

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        return {feature: _encoded(vocabulary, [self.template.render(row) for row in rows])}


@dataclasses.dataclass(frozen=True)
class Class(Column):
    """A class, as its number from 0: int32 `[1]`.

    Attributes:
      column: holds the class's name.
      classes: all there are, in order; None: those of the training rows, sorted, as numbers if all
        are whole numbers.
    """

    column: str
    _: dataclasses.KW_ONLY
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_classes("Class.classes", self.classes)

    def check(self, columns: Sequence[str]) -> None:
        _check_columns("Class.column", [self.column], columns)

    def columns_read(self) -> Sequence[str]:
        return [self.column]

    def problem(self, row: Row) -> str:
        return _missing(row, [self.column]) or _empty(row, [self.column])

    def classes_in(self, row: Row) -> Iterable[str]:
        return (plain(row[self.column]),)

    def with_classes(self, found: Iterable[str]) -> "Class":
        return dataclasses.replace(self, classes=_given(self.classes) or _in_order(found))

    def names(self) -> Sequence[str]:
        return self.classes or ()

    def with_names(self, names: Sequence[str]) -> "Class":
        _check_names("Class.classes", _given(self.classes), names)
        return dataclasses.replace(self, classes=list(names))

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        numbers = _numbers(self.classes)
        return {feature: [np.array([numbers[plain(row[self.column])]], np.int32) for row in rows]}


@dataclasses.dataclass(frozen=True)
class Number(Column):
    """One number or several: float32 `[n]`.

    Attributes:
      column: the column, or columns in order, that hold them.
    """

    column: str | Sequence[str]

    def check(self, columns: Sequence[str]) -> None:
        _check_columns("Number.column", self.columns_read(), columns)

    def columns_read(self) -> Sequence[str]:
        return [self.column] if isinstance(self.column, str) else list(self.column)

    def names(self) -> Sequence[str]:
        columns = self.columns_read()
        return columns if len(columns) > 1 else ()  # one number cannot be taken for another

    def with_names(self, names: Sequence[str]) -> "Number":
        _check_names("Number.column", self.names(), names)
        return self

    def problem(self, row: Row) -> str:
        if missing := _missing(row, self.columns_read()) or _empty(row, self.columns_read()):
            return missing
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
        return {feature: [np.array(each, np.float32) for each in values]}


@dataclasses.dataclass(frozen=True)
class Tags(Column):
    """Words with a tag each, as tokens and `labels` aligned with them: both int32 `[tokens]`.

    The words are encoded as one text, a space between two. A word's tag is at its first token, the
    space in front included; its other tokens have none (-1). A word without a token of its own,
    which the vocabulary drops or joins to the word before it, loses its tag.

    Attributes:
      words_column: a list of words, or a text of them with spaces between.
      tags_column: the words' tags, likewise.
      classes: all tags, in order; None: those of the training rows, sorted, with the tag outside of
        everything, "O", first.

    Source: Devlin et al. 2019, arXiv:1810.04805, §5.3 (the first sub-token stands for the word).
    """

    words_column: str
    tags_column: str
    _: dataclasses.KW_ONLY
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_classes("Tags.classes", self.classes)

    def features(self, feature: str) -> tuple[str, ...]:
        return (feature, "labels")

    def check(self, columns: Sequence[str]) -> None:
        _check_columns("Tags.words_column", [self.words_column], columns)
        _check_columns("Tags.tags_column", [self.tags_column], columns)

    def columns_read(self) -> Sequence[str]:
        return [self.words_column, self.tags_column]

    def problem(self, row: Row) -> str:
        if missing := _missing(row, self.columns_read()):
            return missing
        for column in self.columns_read():
            if not isinstance(row[column], str | list):
                return f"column {column!r} is {str(row[column])[:40]!r}, not a list or a text"
            if isinstance(row[column], list) and None in row[column]:
                return f"column {column!r} holds a null"
        words, tags = _items(row[self.words_column]), _items(row[self.tags_column])
        return "" if len(words) == len(tags) else f"{len(words)} words and {len(tags)} tags"

    def classes_in(self, row: Row) -> Iterable[str]:
        return _items(row[self.tags_column])

    def with_classes(self, found: Iterable[str]) -> "Tags":
        in_order = sorted(_in_order(found), key=lambda tag: tag != OUTSIDE)  # stable
        return dataclasses.replace(self, classes=_given(self.classes) or in_order)

    def names(self) -> Sequence[str]:
        return self.classes or ()

    def with_names(self, names: Sequence[str]) -> "Tags":
        _check_names("Tags.classes", _given(self.classes), names)
        return dataclasses.replace(self, classes=list(names))

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        numbers = _numbers(self.classes)
        made: Arrays = {feature: [], "labels": []}
        for row in rows:
            words = _items(row[self.words_column])
            ids, offsets = vocabulary.encode_with_offsets(" ".join(words))
            tags = np.array([numbers[tag] for tag in _items(row[self.tags_column])], np.int32)
            made[feature].append(np.array(ids, np.int32))
            made["labels"].append(_at_first_tokens(tags, words, offsets))
        return made


@dataclasses.dataclass(frozen=True)
class Answer(Column):
    """A text and where the answer is in it: tokens, and `labels` int32 `[2]`.

    `labels` are the answer's first and last token; (-1, -1) where there is no answer: its column is
    empty or null. An answer past the length trains as no answer; `FileData.describe` counts those.

    Attributes:
      context: a column, or a template such as `"{question} {context}"`, whose last slot holds the
        answer.
      answer: the column with the answer's text, word for word as in the context.
      start: the column with the answer's first character in the context's column, from 0; None: the
        answer is where it first occurs.

    Source: Devlin et al. 2019, arXiv:1810.04805, §4.2-4.3.
    """

    context: str
    answer: str
    _: dataclasses.KW_ONLY
    start: str | None = None

    def features(self, feature: str) -> tuple[str, ...]:
        return (feature, "labels")

    def check(self, columns: Sequence[str]) -> None:
        if "{" not in self.context:
            _check_columns("Answer.context", [self.context], columns)
        elif not self.template.slots:
            raise InputError(
                f"Answer.context = {self.context!r}: has no slot that holds answers",
                field="Answer.context",
            )
        self.template.check(columns)
        _check_columns("Answer.answer or Answer.start", self._named, columns)

    def columns_read(self) -> Sequence[str]:
        return [*self.template.slots, *self._named]

    def problem(self, row: Row) -> str:
        missing = _missing(row, self.template.slots)
        answer = plain(row.get(self.answer))
        if missing or not answer:
            return missing
        context = plain(row[self._slot])
        if self.start is None:
            return "" if answer in context else f"the answer {answer[:40]!r} is not in the context"
        if not plain(row.get(self.start)).strip().removeprefix("-").isdecimal():
            return f"column {self.start!r} is {row.get(self.start)!r}, not a whole number"
        start = int(plain(row[self.start]))
        if start >= 0 and context.startswith(answer, start):
            return ""
        return f"the answer {answer[:40]!r} is not at character {start} of the context"

    def arrays(self, feature: str, rows: Sequence[Row], *, vocabulary: Vocabulary) -> Arrays:
        made: Arrays = {feature: [], "labels": []}
        for row in rows:
            ids, offsets = vocabulary.encode_with_offsets(self.template.render(row))
            made[feature].append(np.array(ids, np.int32))
            made["labels"].append(np.array(self._span(row, offsets), np.int32))
        return made

    def _span(self, row: Row, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Returns the first and last token that share a character with the answer."""
        answer = plain(row.get(self.answer))
        if not answer:
            return -1, -1
        at = int(plain(row[self.start])) if self.start else plain(row[self._slot]).index(answer)
        begin = self.template.place(self._slot, row) + at
        end = begin + len(answer)
        inside = [i for i, (first, after) in enumerate(offsets) if first < end and after > begin]
        return (inside[0], inside[-1]) if inside else (-1, -1)

    @property
    def _named(self) -> list[str]:
        return [self.answer] if self.start is None else [self.answer, self.start]

    @property
    def template(self) -> Template:
        """The template of the text, whose last slot holds the answer."""
        return Template(self.context if "{" in self.context else f"{{{self.context}}}")

    @property
    def _slot(self) -> str:
        return self.template.slots[-1]


@dataclasses.dataclass(frozen=True)
class SplitKey(Column):
    """The columns that decide the split of a row; they must be there, and make no feature."""

    columns: Sequence[str]

    def check(self, columns: Sequence[str]) -> None:
        _check_columns("FileData.split_by", self.columns, columns)

    def columns_read(self) -> Sequence[str]:
        return self.columns

    def problem(self, row: Row) -> str:
        return _missing(row, self.columns) or _empty(row, self.columns)


def as_column(feature: str, value: Any) -> Column:
    """Returns what makes a feature: a column object as it is, a template for a plain string."""
    if isinstance(value, Column):
        return value
    if isinstance(value, str | Template):
        return Text(Template(value) if isinstance(value, str) else value)
    raise InputError(
        f"features[{feature!r}] is {value!r}: must be a template such as '{{question}}', or a "
        "Class, Number, Tags or Answer"
    )


def _encoded(vocabulary: Vocabulary, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in vocabulary.encode_all(texts)]


def _missing(row: Row, columns: Iterable[str]) -> str:
    for column in columns:
        if row.get(column) is None:
            there = "is null" if column in row else "is missing"
            return f"column {column!r} {there}"
    return ""


def _empty(row: Row, columns: Iterable[str]) -> str:
    """Returns what is wrong with a row where a value must be: an empty field of CSV is missing."""
    return next((f"column {name!r} is empty" for name in columns if not plain(row[name])), "")


def _at_first_tokens(
    tags: np.ndarray, words: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Returns `[tokens]` int32: each tag `[words]` at the first token of its word, else -1.

    Args:
      tags: numbers of the words' tags.
      words: of which the text is made, a space between two.
      offsets: of each token, its first character and the one after it.
    """
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1] - 1  # with the space in front
    word_of = np.searchsorted(starts, [first for first, _ in offsets], side="right") - 1
    is_first = np.diff(word_of, prepend=-1) > 0  # [tokens]
    labels = np.full(len(offsets), NO_LABEL, np.int32)
    labels[is_first] = tags[word_of[is_first]]
    return labels


def _check_columns(field: str, named: Iterable[str], columns: Sequence[str]) -> None:
    for name in named:
        if name not in columns:
            message = f"{field} = {name!r}: {unknown('column', name, columns)}"
            raise InputError(message, field=field)


def _items(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [plain(item) for item in value]


def _given(classes: Sequence[Any] | None) -> list[str]:
    return [plain(each) for each in classes or ()]


def _check_classes(field: str, classes: Sequence[Any] | None) -> None:
    given = _given(classes)
    if twice := {name for name in given if given.count(name) > 1}:
        raise InputError(
            f"{field} = {list(classes or ())}: {min(twice)!r} is there twice", field=field
        )


def _check_names(field: str, own: Sequence[str], names: Sequence[str]) -> None:
    if own and list(own) != list(names):
        raise InputError(
            f"{field} = {list(own)}: the model's labels are {list(names)}; "
            "set these, in this order, or leave the field out",
            field=field,
        )


def _in_order(classes: Iterable[str]) -> list[str]:
    found = set(classes)
    if all(name.removeprefix("-").isdecimal() for name in found):
        return sorted(found, key=lambda name: (int(name), name))  # "1" and "01" are two classes
    return sorted(found)


def _numbers(classes: Sequence[str] | None) -> Mapping[str, int]:
    assert classes is not None  # bound by FileData
    return {name: number for number, name in enumerate(classes)}
