"""The rows of files as examples, and other rows told as examples in their prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from t5lite.data.files.columns import Column
from t5lite.data.files.index import Hashes, Table
from t5lite.data.files.readers import Row
from t5lite.data.files.templates import SHOTS, Template
from t5lite.data.sources import Example, NumberedSource
from t5lite.data.vocabularies.base import Vocabulary


class Shots:
    """Examples for few-shot prompts: other training rows, chosen by a row's content alone.

    Args:
      train: the rows to choose from, in an order that does not depend on the files'.
      count: how many for a row; at most `most_shots`.
      template: how one is told.
      hashes: of a row.
    """

    def __init__(
        self, train: Table, *, count: int, template: Template, hashes: Callable[[Row], Hashes]
    ):
        self._train, self._count, self._template = train, count, template
        self._known, self._hashes_of = train.hashes, hashes

    def texts(self, rows: Sequence[Row]) -> list[str]:
        """Returns the examples for each row, an empty line between them.

        They are all different. None has the row's content, or is of its group: either would tell
        in training what is not told in use.
        """
        chosen = [self._choose(self._hashes_of(row)) for row in rows]
        found = iter(self._train.read([number for each in chosen for number in each]))
        return ["\n\n".join(self._template.render(next(found)) for _ in each) for each in chosen]

    def _choose(self, own: Hashes) -> list[int]:
        rng, known = np.random.default_rng(own.row), self._known
        chosen: dict[int, int] = {}
        while len(chosen) < self._count:
            number = int(rng.integers(len(known.row)))
            content, group = int(known.content[number]), int(known.group[number])
            if content != own.content and group != own.group:
                chosen.setdefault(content, number)
        return list(chosen.values())


class FileSource(NumberedSource):
    """The rows of one split as examples; a raw example is a row's number.

    Args:
      name: says what is read; part of every random key.
      table: the rows.
      columns: what makes each feature.
      wanted: the features to give.
      vocabulary: encodes texts.
      shots: fills the slot of templates.
    """

    def __init__(
        self,
        name: str,
        table: Table,
        columns: Mapping[str, Column],
        *,
        wanted: Sequence[str],
        vocabulary: Vocabulary,
        shots: Shots | None = None,
    ):
        self.name, self.num_examples = name, len(table)
        self._table, self._columns, self._wanted = table, columns, wanted
        self._vocabulary, self._shots = vocabulary, shots

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields the rows' features; a window's texts are encoded together."""
        del seed
        rows = self._table.read(window)
        if self._shots is not None:
            texts = self._shots.texts(rows)
            rows = [row | {SHOTS: text} for row, text in zip(rows, texts, strict=True)]
        made: dict[str, list[np.ndarray]] = {}
        for feature, column in self._columns.items():
            written = feature == "targets"
            vocabulary = self._vocabulary.targets if written else self._vocabulary
            made |= column.arrays(feature, rows, vocabulary=vocabulary)
        arrays = [made[name] for name in self._wanted]
        for values in zip(*arrays, strict=True):
            yield dict(zip(self._wanted, values, strict=True))


def most_shots(train: Table, validation: Table) -> int:
    """Returns how many different training rows there are for any row, without those of its group.

    A row's own content is among its group's; so the largest group leaves the fewest.
    """
    sides = [np.stack(table.hashes[1:], axis=1) for table in (train, validation)]
    _, sizes = np.unique(np.unique(np.concatenate(sides), axis=0)[:, 1], return_counts=True)
    return max(len(np.unique(train.hashes.content)) - int(sizes.max(initial=0)), 0)
