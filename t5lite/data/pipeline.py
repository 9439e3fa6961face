"""Batches for training and validation, from SeqIO tasks or from arrays.

Every global batch is made of a fixed number of virtual shards: rows `[s * B/V, (s + 1) * B/V)` are
shard `s`'s, which has its own examples, order and packing. A process makes the rows of its shards,
so that batches are the same with any number of processes, and the position in the data is a few
integers for each shard.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t5lite.data.batches import Batch, Batches, Objective
from t5lite.data.sources import ArraySource, Example, SeqioSource, Source
from t5lite.data.streams import ExampleStream, MixtureStream, Prepare, RowStream, Stream
from t5lite.errors import InputError

if TYPE_CHECKING:
    import jax

    from t5lite.data.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Data:
    """What both kinds of data share: everything behind the sources.

    Attributes:
      lengths: row length of each of the objective's features, in tokens, EOS included.
      batch_size: rows of a global batch.
      pack: whether rows hold several examples.
      num_shards: virtual shards V, a divisor of `batch_size` and a multiple of the number of
        processes; None: the largest divisor that is also one of 64. It decides the order of the
        data, and cannot change within a run.
      window: raw examples of a shard that are shuffled together; resuming redoes at most as many.
      block_rows: rows of a shard that are packed together.
      prefetch: batches made ahead.
    """

    lengths: Mapping[str, int]
    batch_size: int
    pack: bool = True
    num_shards: int | None = None
    window: int = 1024
    block_rows: int = 16
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_size", "window", "block_rows", "prefetch"):
            _check_positive(name, getattr(self, name))
        for name, length in self.lengths.items():
            _check_positive(f"lengths[{name!r}]", length)
        if self.num_shards is not None:
            _check_positive("num_shards", self.num_shards)
            if self.batch_size % self.num_shards:
                raise InputError(
                    f"batch_size {self.batch_size} is not a multiple of num_shards "
                    f"{self.num_shards}; set num_shards to one of its divisors"
                )

    def vocabulary(self) -> "Vocabulary | None":
        """Returns the vocabulary of the token ids; None if they have none."""
        raise NotImplementedError

    def describe(self) -> str:
        """Returns a line or two on what is read, for the start of a run."""
        raise NotImplementedError

    def train_batches(
        self, objective: Objective, *, seed: int, process_index: int = 0, process_count: int = 1
    ) -> Batches:
        """Starts reading the training data.

        Args:
          objective: prepares examples and names the batch's arrays.
          seed: decides the order and all other chance.
          process_index: in `[0, process_count)`; this process's rows are the ones at
            `[index * B / count, (index + 1) * B / count)`.
          process_count: a divisor of the number of shards.

        Raises:
          InputError: if a split, feature or length is missing or numbers do not divide.
        """
        lengths = self._row_lengths(objective)
        sources = self._sources(self._train_split(), objective)
        num_shards = self._num_shards()
        if num_shards % process_count:
            raise InputError(
                f"num_shards {num_shards} is not a multiple of the {process_count} processes; "
                "set num_shards (it must divide batch_size too)"
            )
        mine = num_shards // process_count
        prepare = self._prepare(objective)
        rates = [rate for _, rate in sources]
        shards = {}
        for shard in range(process_index * mine, (process_index + 1) * mine):
            key: dict[str, Any] = {"shard": shard, "seed": seed}
            streams = [
                ExampleStream(source, prepare, num_shards=num_shards, window=self.window, **key)
                for source, _ in sources
            ]
            shards[shard] = self._rows(
                streams[0] if len(streams) == 1 else MixtureStream(streams, rates, **key), lengths
            )
        fingerprint = {
            "sources": [[source.name, rate] for source, rate in sources],
            "seed": seed,
            "num_shards": num_shards,
            "lengths": lengths,
            "pack": self.pack,
            "window": self.window,
            "block_rows": self.block_rows,
        }
        return Batches(
            shards,
            self.batch_size // num_shards,
            objective,
            fingerprint=fingerprint,
            prefetch=self.prefetch,
        )

    def validation_batches(
        self,
        objective: Objective,
        *,
        max_batches: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterable[Batch]:
        """Reads the whole validation split once, in its own order; the same on every call.

        Args:
          objective: prepares examples, with a fixed generator, and names the batch's arrays.
          max_batches: stop there; None: at the end.
          process_index: as in `train_batches`. Every process reads the whole split.
          process_count: a divisor of `batch_size`.

        Returns:
          This process's rows of every batch; can be iterated over again. Rows of zeros fill the
          last batch. The tasks of a mixture take turns.

        Raises:
          InputError: if there is no such split, or it has no examples.
        """
        if self.batch_size % process_count:
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of the {process_count} processes"
            )
        lengths = self._row_lengths(objective)
        sources = self._sources(self._validation_split(), objective)
        size = self.batch_size // process_count
        mine = slice(process_index * size, (process_index + 1) * size)

        def iterate() -> Iterator[Batch]:
            examples = self._once(objective, sources, shuffle=False, seed=0)
            stream = self._rows(examples, lengths)
            num_rows = self.batch_size
            while num_rows == self.batch_size:
                rows = stream.take(self.batch_size)
                num_rows = len(next(iter(rows.values())))
                if num_rows:
                    yield objective.batch(
                        {
                            name: _filled_up(each, self.batch_size)[mine]
                            for name, each in rows.items()
                        }
                    )

        return _Again(lambda: itertools.islice(iterate(), max_batches))

    def examples(self, objective: Objective, *, split: str, count: int, seed: int) -> list[Example]:
        """Returns the first `count` prepared examples of a split in random order.

        Args:
          objective: prepares them.
          split: a split of the task, `"train"` or `"validation"`.
          count: how many; fewer if the split is smaller.
          seed: decides which.
        """
        stream = self._once(objective, self._sources(split, objective), shuffle=True, seed=seed)
        return list(itertools.islice(stream, count))

    def batch_shapes(self, objective: Objective) -> "dict[str, jax.ShapeDtypeStruct]":
        """Returns the shapes and types of a global batch, without reading any data."""
        import jax

        suffixes = ("", "_segment_ids", "_positions") if self.pack else ("",)
        row = {
            name + suffix: np.zeros((1, length), np.int32)
            for name, length in self._row_lengths(objective).items()
            for suffix in suffixes
        }
        return {
            name: jax.ShapeDtypeStruct((self.batch_size, *value.shape[1:]), value.dtype)
            for name, value in objective.batch(row).items()
        }

    def _train_split(self) -> str:
        return "train"

    def _validation_split(self) -> str:
        return "validation"

    def _sources(self, split: str, objective: Objective) -> list[tuple[Source, float]]:
        """Returns what a split is read from, each with its rate."""
        raise NotImplementedError

    def _num_shards(self) -> int:
        return self.num_shards or math.gcd(self.batch_size, 64)

    def _row_lengths(self, objective: Objective) -> dict[str, int]:
        for name in objective.features:
            if name not in self.lengths:
                raise InputError(
                    f"lengths (TASK_FEATURE_LENGTHS) lacks the feature {name!r} of "
                    f"{type(objective).__name__}; it has {', '.join(sorted(self.lengths))}"
                )
        return {name: int(self.lengths[name]) for name in objective.features}

    def _rows(self, examples: Stream, lengths: Mapping[str, int]) -> RowStream:
        return RowStream(examples, lengths, packed=self.pack, block_rows=self.block_rows)

    def _prepare(self, objective: Objective) -> Prepare:
        vocabulary = self.vocabulary()

        def prepare(examples: Iterator[Example], rng: np.random.Generator) -> Iterator[Example]:
            return objective.prepare(examples, lengths=self.lengths, vocabulary=vocabulary, rng=rng)

        return prepare

    def _once(
        self,
        objective: Objective,
        sources: Sequence[tuple[Source, float]],
        *,
        shuffle: bool,
        seed: int,
    ) -> Stream:
        """Returns one pass over whole sources, taking turns."""
        prepare = self._prepare(objective)
        streams = [
            ExampleStream(
                source, prepare, seed=seed, window=self.window, shuffle=shuffle, repeat=False
            )
            for source, _ in sources
        ]
        return streams[0] if len(streams) == 1 else MixtureStream(streams, None)


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayData(_Data):
    """Examples that are token ids in memory. Needs no TensorFlow.

    Attributes:
      train: examples: 1-D integer arrays by feature.
      validation: likewise; may be empty.
      vocab: what the ids mean, if the objective or a sampler needs to know.
    """

    train: Sequence[Mapping[str, np.ndarray]]
    validation: Sequence[Mapping[str, np.ndarray]] = ()
    _: dataclasses.KW_ONLY
    vocab: "Vocabulary | None" = None

    def vocabulary(self) -> "Vocabulary | None":
        """Returns `vocab`."""
        return self.vocab

    def describe(self) -> str:
        """Returns how many examples there are."""
        return f"arrays: {len(self.train):,} examples to train on, {len(self.validation):,} to test"

    def _sources(self, split: str, objective: Objective) -> list[tuple[Source, float]]:
        del objective
        splits = {"train": self.train, "validation": self.validation}
        if not len(splits.get(split, ())):
            full = [name for name, arrays in splits.items() if len(arrays)]
            raise InputError(
                f"ArrayData has no examples in split {split!r}; it has {', '.join(full) or 'none'}"
            )
        return [(ArraySource(f"arrays:{split}", splits[split]), 1.0)]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData(_Data):
    """A SeqIO Task or Mixture: t5lite's own, or anybody's that was written for T5X.

    Attributes:
      task: name of a task or mixture, or the object itself.
      module: module or modules to import, which register the task.
      split: the split to train on.
      validation_split: the split to validate on; None: there is none.
      use_cached: read what `seqio_cache_tasks` wrote.
    """

    task: Any
    _: dataclasses.KW_ONLY
    module: str | Sequence[str] | None = None
    split: str = "train"
    validation_split: str | None = "validation"
    use_cached: bool = False

    def vocabulary(self) -> "Vocabulary | None":
        """Returns the one vocabulary of the task's features.

        Raises:
          InputError: if they have several, or one of a kind that is not supported.
        """
        return self._vocabulary

    def describe(self) -> str:
        """Returns the task's features, and what the built-in corpus is on this machine."""
        from t5lite.data.tasks import describe

        return describe(self.provider)

    @functools.cached_property
    def provider(self) -> Any:
        """The `seqio.Task` or `seqio.Mixture`."""
        if not isinstance(self.task, str):
            return self.task
        from t5lite.data.tasks import get_task

        return get_task(self.task, module=self.module)

    @functools.cached_property
    def _vocabulary(self) -> "Vocabulary | None":
        from t5lite.data.vocabularies import from_seqio

        found: list[tuple[str, Any]] = []
        for task in self._tasks:
            for name, feature in task.output_features.items():
                if type(feature.vocabulary).__name__ == "PassThroughVocabulary":
                    continue  # ids from elsewhere: beside texts, they are labels and the like
                if found and feature.vocabulary != found[0][1]:
                    raise InputError(
                        f"feature {name!r} of task {task.name!r} has another vocabulary than "
                        f"{found[0][0]}; t5lite trains on one vocabulary"
                    )
                found.append((f"{name!r} of {task.name!r}", feature.vocabulary))
        return from_seqio(found[0][1]) if found else None

    @property
    def _tasks(self) -> list[Any]:
        """The tasks of a mixture, or the one there is."""
        return list(getattr(self.provider, "tasks", [self.provider]))

    @functools.cached_property
    def _opened(self) -> dict[tuple[str, bool], list[tuple[Source, float]]]:
        return {}

    def _train_split(self) -> str:
        return self.split

    def _validation_split(self) -> str:
        if self.validation_split is None:
            raise InputError("validation_split is None; name the split to validate on")
        return self.validation_split

    def _sources(self, split: str, objective: Objective) -> list[tuple[Source, float]]:
        # Preprocessors that know `sequence_length` cut to it. That is meant for tasks that make
        # what the objective trains on, and would rob one that makes it itself out of long texts.
        knows_lengths = set(objective.features) <= set(self.provider.output_features)
        key = (split, knows_lengths)
        if key not in self._opened:  # kept for what they have in memory
            self._opened[key] = self._open(split, self.lengths if knows_lengths else None)
        return self._opened[key]

    def _open(
        self, split: str, sequence_length: Mapping[str, int] | None
    ) -> list[tuple[Source, float]]:
        with_split = [task for task in self._tasks if split in task.splits]
        if not with_split:
            splits = sorted({each for task in self._tasks for each in task.splits})
            raise InputError(
                f"task {self.provider.name!r} has no split {split!r}; it has {', '.join(splits)}"
            )
        sources: list[tuple[Source, float]] = []
        for task in with_split:
            rate = 1.0 if task is self.provider else float(self.provider.get_rate(task))
            if not 0 < rate < math.inf:
                raise InputError(
                    f"mixture {self.provider.name!r} gives task {task.name!r} the rate {rate}; "
                    "rates must be > 0: leave the task out of the mixture"
                )
            source = SeqioSource(
                task, split, sequence_length=sequence_length, use_cached=self.use_cached
            )
            sources.append((source, rate))
        return sources


class _Again:
    """An iterable that begins anew whenever it is iterated over."""

    def __init__(self, begin: Callable[[], Iterator[Batch]]):
        self._begin = begin

    def __iter__(self) -> Iterator[Batch]:
        return self._begin()


def _filled_up(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns `[count, ...]`: the rows, and zeros behind them."""
    missing = np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, missing])


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be an integer of at least 1")
