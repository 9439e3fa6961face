"""Rows of files as examples, and few-shot examples for their prompts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from t5lite.data.files.columns import Column
from t5lite.data.files.index import Hashes, Table
from t5lite.data.files.readers import Row
from t5lite.data.files.templates import SHOTS, Template
from t5lite.data.sources import Example, NumberedSource
from t5lite.data.vocabularies.base import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Shots:
    """Examples for few-shot prompts: other training rows, chosen by a row's content alone."""

    train: Table  # in an order that does not depend on the files'
    _: dataclasses.KW_ONLY
    count: int  # at most `most_shots`
    template: Template
    hashes: Callable[[Row], Hashes]

    def texts(self, rows: Sequence[Row]) -> list[str]:
        """Returns the shots of each row, all different, with an empty line between them.

        None has the row's content or group, either of which would leak the answer in training.
        """
        chosen = [self._choose(self.hashes(row)) for row in rows]
        shots = iter(self.train.read([number for numbers in chosen for number in numbers]))
        return [
            "\n\n".join(self.template.render(next(shots)) for _ in numbers) for numbers in chosen
        ]

    def _choose(self, own: Hashes) -> list[int]:
        rng, train = np.random.default_rng(own.row), self.train.hashes
        chosen: dict[int, int] = {}
        while len(chosen) < self.count:
            number = int(rng.integers(len(train.row)))
            content, group = int(train.content[number]), int(train.group[number])
            if content != own.content and group != own.group:
                chosen.setdefault(content, number)
        return list(chosen.values())


def most_shots(train: Table, validation: Table) -> int:
    """Returns the number of different training rows outside the largest group."""
    groups = [np.stack(table.hashes[1:], axis=1) for table in (train, validation)]
    _, sizes = np.unique(np.unique(np.concatenate(groups), axis=0)[:, 1], return_counts=True)
    return max(len(np.unique(train.hashes.content)) - int(sizes.max(initial=0)), 0)


@dataclasses.dataclass(eq=False)
class FileSource(NumberedSource):
    """The rows of one split as examples; a raw example is a row's number."""

    name: str
    table: Table
    columns: Mapping[str, Column]
    _: dataclasses.KW_ONLY
    features: Sequence[str]  # to yield
    vocabulary: Vocabulary
    shots: Shots | None = None

    def __post_init__(self) -> None:
        self.num_examples = len(self.table)

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        del seed
        rows = self.table.read(window)
        if self.shots is not None:
            texts = self.shots.texts(rows)
            rows = [row | {SHOTS: text} for row, text in zip(rows, texts, strict=True)]
        arrays: dict[str, list[np.ndarray]] = {}
        for feature, column in self.columns.items():
            vocabulary = self.vocabulary.targets if feature == "targets" else self.vocabulary
            arrays |= column.arrays(feature, rows, vocabulary=vocabulary)
        for values in zip(*(arrays[name] for name in self.features), strict=True):
            yield dict(zip(self.features, values, strict=True))
