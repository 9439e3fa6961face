"""Training on packed caches, at the speed of memory."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5lite.data.batches import Batch, Batches
from t5lite.data.dataset import Dataset
from t5lite.data.input_format import InputFormat
from t5lite.data.order import permuted
from t5lite.data.packed import format as packed_files
from t5lite.data.packed.format import Rows
from t5lite.data.sources import Component, Example, NoSplit
from t5lite.data.streams.rows import concatenate
from t5lite.data.validation import Validation, joined, num_rows
from t5lite.errors import InputError
from t5lite.rows import HostHalf, RowSpec

if TYPE_CHECKING:
    from t5lite.data.vocabularies.base import Vocabulary

_ORDERED, _SHOWN = 8192, 64  # rows whose order is computed at a time, in training and examples


@dataclasses.dataclass(frozen=True, eq=False)
class PackedData(Dataset):
    """Packed cache of `t5lite cache`. Needs no TensorFlow.

    Every epoch has all rows in another random order; cached passes take turns. A batch is the next
    `batch_size` rows of that order, each of them a virtual shard; `num_shards`, `window` and
    `block_rows` have no effect.

    Attributes:
      folder: local; other processes may read it at the same time.
      vocab: the expected vocabulary; None: that of the cache.
    """

    folder: str
    _: dataclasses.KW_ONLY
    vocab: "Vocabulary | None" = None

    def vocabulary(self) -> "Vocabulary | None":
        """Returns the cache's vocabulary; raises an InputError if it is not `vocab`."""
        return self._vocabulary

    def add_eos(self) -> dict[str, bool]:
        return dict(self._description.get("add_eos", {}))

    def describe(self) -> str:
        train = self._description["passes"]["train"]
        first = train[0]
        tokens = sum(first["tokens"].values())
        passes = f", {len(train)} passes" if len(train) > 1 else ""
        return (
            f"packed cache {self.folder}: {first['rows']:,} rows, {tokens:,} tokens{passes}, made "
            f"from {self._description['described']}"
        )

    def num_examples(self, split: str) -> int | None:
        passes = self._description["passes"].get(split)
        return passes[0]["examples"] if passes else None

    def validation_name(self, objective: HostHalf) -> str:
        del objective
        self._passes("validation")
        return f"{self._root.name}:validation:{self._description['sha256'][:16]}"

    def class_counts(self, split: str) -> dict[str, dict[str, int]]:
        return self._description["classes"].get(split, {})

    def labels(self) -> dict[str, list[str]]:
        counted = {name: list(classes) for name, classes in self.class_counts("train").items()}
        return self._description.get("labels", counted)

    def input_format(self) -> InputFormat:
        inputs = self._description.get("inputs")
        return super().input_format() if inputs is None else InputFormat(**inputs)

    def train_batches(
        self, objective: HostHalf, *, seed: int, shards: Sequence[int] | None = None
    ) -> Batches:
        self._check(objective)
        key = (seed, self._description["sha256"])
        mine = self._rows_of(self._chosen(shards))
        rows = ShuffledRows(
            self._passes("train"),
            self._columns("train"),
            key=key,
            rows=mine,
            batch_size=self.batch_size,
        )
        sources = [[f"packed:{self._description['sha256']}", 1.0]]
        # One order, so one position: each process takes its rows of the batch at it.
        return Batches(
            {0: rows},
            len(mine),
            objective,
            specs=objective.rows(self.lengths),
            fingerprint={"sources": sources, "seed": seed, "lengths": dict(self.lengths)},
            prefetch=self.prefetch,
        )

    def validation_batches(
        self,
        objective: HostHalf,
        *,
        max_batches: int | None = None,
        shards: Sequence[int] | None = None,
        agree: Callable[[bool], bool] = bool,
        part: str | None = None,
    ) -> Validation:
        del agree, part  # all processes know the number of rows; a cache has no parts
        self._check(objective)
        mine = self._rows_of(self._chosen(shards))
        (rows,) = self._passes("validation")
        total = num_rows(rows)

        def begin() -> Iterator[tuple[Batch, float | None]]:
            for start in range(0, total, self.batch_size)[:max_batches]:
                positions = start + mine
                order = permuted(positions[positions < total], total, "validation")
                part = packed_files.widened(rows, order, self._columns("validation"))
                batch = objective.batch(joined([part], len(mine)))
                yield batch, min((start + self.batch_size) / total, 1.0)

        share, num_examples = len(mine) / self.batch_size, self.num_examples("validation")
        return Validation(begin, part=share, num_examples=num_examples)

    def examples(self, objective: HostHalf, *, split: str, count: int, seed: int) -> list[Example]:
        self._check(objective)
        rows, specs = self._passes(split)[0], objective.rows(self.lengths)
        total = num_rows(rows)

        def unpacked() -> Iterator[Example]:
            for start in range(0, total, _SHOWN):
                positions = np.arange(start, min(start + _SHOWN, total))
                for number in permuted(positions, total, "examples", seed):
                    row = packed_files.widened(rows, [number], self._columns(split))
                    yield from _unpacked(row, specs)

        return list(itertools.islice(unpacked(), count))

    @functools.cached_property
    def _root(self) -> Path:
        return packed_files.local_folder(self.folder)

    @functools.cached_property
    def _description(self) -> dict[str, Any]:
        return packed_files.read_description(self._root)

    @functools.cached_property
    def _vocabulary(self) -> "Vocabulary | None":
        from t5lite.data.vocabularies.opening import load_vocabulary

        cached = self._description["vocabulary"]
        if self.vocab is not None and self.vocab.fingerprint != cached:
            raise InputError(
                f"vocab = {self.vocab!r}: the cache {self.folder} was made with another vocabulary "
                f"(sha256 {str(cached)[:12]}, not {self.vocab.fingerprint[:12]}); write it again",
                field="vocab",
            )
        if cached is None:
            return None
        vocabulary = load_vocabulary(self._root / "vocabulary")
        if vocabulary.fingerprint != cached:
            raise InputError(
                f"{self._root / 'vocabulary'} is damaged: it is not the vocabulary that the cache "
                "was made with; write the cache again"
            )
        return vocabulary

    def _check(self, objective: HostHalf) -> None:
        """Raises an InputError if the cache holds other rows than the objective would make."""
        self.vocabulary()
        expected = {
            "objective": objective.identity(),
            "start_id": objective.first_id,
            "lengths": dict(self.lengths),
            "rows": _specs(objective.rows(self.lengths)),
            "pack": self.packs(objective),
        }
        for name, value in expected.items():
            cached = self._description.get(name, value)  # earlier versions wrote fewer
            if cached != value:
                was, now = _differing(cached, value)
                raise InputError(
                    f"{name} = {now}: the cache {self.folder} was made with {was}; "
                    "write it again with t5lite cache, or set the earlier value",
                    field=name,
                )

    def _num_shards(self) -> int:
        return self.batch_size

    def _columns(self, split: str) -> dict[str, Any]:
        return self._description["passes"][split][0]["columns"]

    def _passes(self, split: str) -> list[Rows]:
        passes = self._description["passes"].get(split)
        if not passes:
            raise NoSplit(
                f"the cache {self.folder} has no split {split!r}: the data it was made from has "
                "none; write it again with a validation split"
            )
        return [
            packed_files.open_rows(self._root / f"{split}-{number}", info["columns"], info["rows"])
            for number, info in enumerate(passes)
        ]

    def components(self, split: str, objective: HostHalf) -> list[Component]:
        raise InputError(
            f"the packed cache {self.folder} holds rows, which cannot be mixed or cached again; "
            "mix what it was made from, and cache the mixture"
        )


class ShuffledRows:
    """One process's rows of an endless, globally shuffled sequence of cached rows.

    Args:
      passes: the cached passes; epoch `e` reads pass `e % len(passes)`.
      columns: of the description.
      key: of the order of each epoch.
      rows: of a batch that this process takes, ascending, in `[0, batch_size)`.
      batch_size: of all processes together.
    """

    def __init__(
        self,
        passes: Sequence[Rows],
        columns: Mapping[str, Any],
        *,
        key: tuple[int | str, ...],
        rows: np.ndarray,
        batch_size: int,
    ):
        self._passes, self._columns, self._key = list(passes), columns, key
        self._rows, self._batch_size = rows, batch_size
        self._sizes = list(map(num_rows, passes))
        self._order: tuple[tuple[int, int], np.ndarray] | None = None
        self.load([0, 0])

    @property
    def epoch(self) -> float:
        """Completed passes, plus the fraction of the present one."""
        return self._pass + self._row / self._sizes[self._pass % len(self._sizes)]

    def state(self) -> list[int]:
        """Returns `[pass, rows of it that all processes took]`."""
        return [self._pass, self._row]

    def load(self, state: list[int]) -> None:
        self._pass, self._row = state

    def take(self, count: int) -> dict[str, np.ndarray]:
        if count != len(self._rows):
            raise ValueError(f"take({count}): this process has {len(self._rows)} rows of a batch")
        parts, start = [], 0
        for rows, order in self._walk(self._batch_size):  # several, if a block ends within
            first, end = np.searchsorted(self._rows, (start, start + len(order)))
            if first < end:
                numbers = order[self._rows[first:end] - start]
                parts.append(packed_files.widened(rows, numbers, self._columns))
            start += len(order)
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _walk(self, count: int) -> list[tuple[Rows, np.ndarray]]:
        """Advances by `count` rows, and returns their passes and numbers."""
        steps = []
        while count:
            index = self._pass % len(self._passes)
            block, at = divmod(self._row, _ORDERED)
            order = self._ordered(block)[at:][:count]
            steps.append((self._passes[index], order))
            self._row, count = self._row + len(order), count - len(order)
            if self._row == self._sizes[index]:
                self._pass, self._row = self._pass + 1, 0
        return steps

    def _ordered(self, block: int) -> np.ndarray:
        """Returns a block of the pass's order, in the memory of that block alone."""
        if self._order is None or self._order[0] != (self._pass, block):
            size = self._sizes[self._pass % len(self._passes)]
            positions = np.arange(block * _ORDERED, min((block + 1) * _ORDERED, size))
            order = permuted(positions, size, "rows", *self._key, self._pass)
            self._order = (self._pass, block), order
        return self._order[1]


def _unpacked(row: Rows, specs: Mapping[str, RowSpec]) -> Iterator[Example]:
    """Yields the examples of one row `[1, ...]`."""
    segments = {
        name: row[f"{spec.along or name}_segment_ids"][0]
        for name, spec in specs.items()
        if spec.kind != "per_example"
    }
    for segment in range(1, max(int(ids.max()) for ids in segments.values()) + 1):
        yield {
            name: row[name][0][segments[name] == segment if name in segments else segment - 1]
            for name in specs
        }


def _specs(specs: Mapping[str, RowSpec]) -> dict[str, Any]:
    return {name: {**vars(spec), "inner": list(spec.inner)} for name, spec in specs.items()}


def _differing(cached: Any, expected: Any) -> tuple[Any, Any]:
    """Returns the differing entries of two mappings; other values as they are."""
    if isinstance(cached, Mapping) and isinstance(expected, Mapping):
        keys = [key for key in {**cached, **expected} if cached.get(key) != expected.get(key)]
        return {key: cached.get(key) for key in keys}, {key: expected.get(key) for key in keys}
    return cached, expected
