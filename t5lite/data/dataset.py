"""The base of all datasets: batches for training and validation.

A global batch of B rows consists of V virtual shards, each with its own examples, order and
packing: rows `[s * B/V, (s + 1) * B/V)` are shard `s`. A process makes the shards that its devices
hold, so batches are the same with any number and order of processes, and the position in the data
is a few integers for each shard. An epoch has as many examples as the split, before the objective.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from t5lite.data.batches import Batch, Batches, mean_epoch
from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels, check_labels
from t5lite.data.packing import empty_rows
from t5lite.data.sources import Component, Example, Source, count_of
from t5lite.data.streams.examples import ExampleStream, Prepare, Stream
from t5lite.data.streams.mixture import MixtureStream
from t5lite.data.streams.rows import RowStream
from t5lite.data.validation import Validation, joined, num_rows
from t5lite.data.workers import Rows, Workers
from t5lite.errors import InputError, require_integer
from t5lite.rows import HostHalf

if TYPE_CHECKING:
    import jax

    from t5lite.data.tasks.metric_tasks import MetricTask
    from t5lite.data.vocabularies.base import Vocabulary

_DEFAULT_SHARDS = 1024  # also the most processes that can read
_EARLIER_SHARDS = 64  # the default of 0.1.0, whose runs resume with it
_GROUPS = 64  # batches of a shard's rows that are ordered by length together
# Default windows and blocks: of all shards together, and of one.
_WINDOWS, _WINDOW = 65536, 1024
_BLOCKS, _BLOCK, _SMALLEST_BLOCK = 4096, 64, 16


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Base of all datasets: turns sources of examples into packed, resumable batches.

    A subclass defines `vocabulary`, `describe` and `components`, the sources of a split, such as a
    `NumberedSource`. Shuffling, packing, any number of processes and workers, resuming, validation,
    mixtures and caches follow.

    Attributes:
      lengths: of each of the objective's features, in tokens, EOS included.
      batch_size: rows of a global batch.
      pack: whether rows hold several examples, if the objective is `packable`.
      num_shards: virtual shards V, a divisor of `batch_size`, which decides the data's order and
        cannot change within a run; each process's devices must hold whole shards, so a multiple of
        the number of parts that the mesh divides a batch into always works. None: the largest
        divisor that also divides 1,024.
      window: raw examples of a shard that are read, shuffled and prepared together; resuming redoes
        at most one window. None: 1,024, but at most 65,536 in all shards.
      block_rows: rows of a shard that are packed together. None: 64, but at most 4,096 in all
        shards, and at least 16.
      like_lengths: whether training batches of an objective that is not `packable` have rows of
        like lengths, cut to few lengths: see `data.like_lengths`.
      prefetch: batches made ahead.
      workers: processes that prepare training batches, which are the same with any number; 0: the
        main process, in one thread, or in several if a source `waits`.
    """

    lengths: Mapping[str, int]
    batch_size: int
    pack: bool = True
    num_shards: int | None = None
    window: int | None = None
    block_rows: int | None = None
    prefetch: int = 2
    like_lengths: bool = True
    workers: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields alone: opened files belong to this process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __post_init__(self) -> None:
        optional = {"num_shards": None, "window": None, "block_rows": None, "workers": 0}
        for name in ("batch_size", "prefetch", *optional):
            if name not in optional or getattr(self, name) != optional[name]:
                require_integer(name, getattr(self, name), least=0 if name == "workers" else 1)
        for name, length in self.lengths.items():
            require_integer(f"lengths[{name!r}]", length)
        if self.num_shards is not None and self.batch_size % self.num_shards:
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of num_shards "
                f"{self.num_shards}; set num_shards to one of its divisors"
            )

    def vocabulary(self) -> "Vocabulary | None":
        """Returns the vocabulary of the token ids, if any."""
        raise NotImplementedError

    def describe(self) -> str:
        """Returns a line or two on the data, for the start of a run."""
        raise NotImplementedError

    def num_examples(self, split: str) -> int | None:
        """Returns the examples of a split, before the objective; None if unknown."""
        del split
        return None

    def validation_name(self, objective: HostHalf) -> str:
        """Returns the names and content of the validation split's sources, which must exist."""
        components = self.components(self.split_of("validation"), objective)
        sources = ([c.source.name, getattr(c.source, "content", None)] for c in components)
        return " + ".join(":".join(filter(None, source)) for source in sources)

    def class_counts(self, split: str) -> dict[str, dict[str, int]]:
        """Returns the number of examples of each class, by label feature and class name."""
        del split
        return {}

    def shards_of(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Returns the virtual shards of some rows of a batch, in order.

        Args:
          rows: of a process's devices, see `parallel.process_rows`.
        Raises: InputError if they are not whole shards.
        """
        size = self.batch_size // self._num_shards()
        shards = np.unique(np.asarray(rows) // size)
        if np.array_equal(np.sort(rows), self._rows_of(shards.tolist())):
            return tuple(shards.tolist())
        present = np.isin(np.arange(self.batch_size + 1), rows)
        edges = np.flatnonzero(np.diff(present, prepend=False))  # of runs of rows
        fitting = self.batch_size // math.gcd(self.batch_size, *edges.tolist())
        raise InputError(
            f"num_shards {self._num_shards()}: the {len(rows)} rows of a batch from row "
            f"{min(rows)} on, which one process holds, are not whole shards of {size} rows; set "
            f"num_shards to {fitting}, or to a multiple that divides batch_size {self.batch_size}"
        )

    def add_eos(self) -> dict[str, bool]:
        """Returns whether each feature of a SeqIO task ends with EOS; {} for other data."""
        return {}

    def labels(self) -> dict[str, list[str]]:
        """Returns the names of each label feature's labels, in the order of their ids."""
        return {}

    def with_labels(self, labels: Labels) -> Self:
        """Returns the data, numbered as a model's `labels`; raises InputError if impossible."""
        own = self.labels()
        # Fewer labels are fine if they have the same ids.
        check_labels(own, {name: names[: len(own.get(name, ()))] for name, names in labels.items()})
        return self

    def input_format(self) -> InputFormat:
        """Returns the format of `inputs`, as far as it is known."""
        return InputFormat(length=self.lengths.get("inputs"))

    def metric_tasks(self) -> list["MetricTask"]:
        """Returns the SeqIO tasks in this data that have metrics."""
        return []

    def train_batches(
        self, objective: HostHalf, *, seed: int, shards: Sequence[int] | None = None
    ) -> Batches:
        """Returns the endless training batches.

        Args:
          objective: prepares examples and names the batch's arrays.
          seed: of the order and all other randomness.
          shards: virtual shards of this process, ascending, see `shards_of`; None for all.
        Raises: InputError if a split, feature or length is missing or numbers do not divide.
        """
        specs, packed = objective.rows(self.lengths), self.packs(objective)
        components = self.components(self.split_of("train"), objective)
        sources, num_shards = [component.source for component in components], self._num_shards()
        ordered = self.like_lengths and objective.like_lengths and not packed
        group_rows = self.batch_size // num_shards
        block_rows = max(self.rows_per_block(), _GROUPS * group_rows if ordered else 0)
        streams = {}
        for shard in self._chosen(shards):
            streams[shard] = RowStream(
                self.stream(components, seed=seed, shard=shard, num_shards=num_shards),
                specs,
                packed=packed,
                block_rows=block_rows,
                like_lengths=ordered,
                group_rows=group_rows,
                seed=seed,
                phase=shard * block_rows // num_shards,
            )
        fingerprint = {
            "sources": [[component.source.name, component.rate] for component in components],
            "sources_content": [  # a user's own source may lack both
                [getattr(source, name, None) for name in ("num_examples", "content")]
                for source in sources
            ],
            "seed": seed,
            "num_shards": num_shards,
            "lengths": dict(self.lengths),
            "pack": packed,
            "objective": objective.identity(),
            "objectives": [
                c.objective.identity() for c in components if c.objective is not objective
            ],
            "start_id": objective.first_id,
            "vocabulary": getattr(self.vocabulary(), "fingerprint", None),
            "window": self._window(),
            "block_rows": block_rows,
            "like_lengths": ordered,
        }

        def earlier() -> Batches:
            data = dataclasses.replace(self, num_shards=earlier_shards)
            rows = self._rows_of(self._chosen(shards))
            return data.train_batches(objective, seed=seed, shards=data.shards_of(rows.tolist()))

        earlier_shards = math.gcd(num_shards, _EARLIER_SHARDS if self.num_shards is None else 0)
        return Batches(
            streams,
            group_rows,
            objective,
            specs=specs,
            fingerprint=fingerprint,
            prefetch=self.prefetch,
            cuts=ordered and len(streams) == num_shards,
            period=_GROUPS if ordered else 1,
            workers=self._workers(objective, seed) if self.workers else None,
            threads=any(getattr(source, "waits", False) for source in sources),
            earlier=(earlier_shards, earlier) if earlier_shards < num_shards else None,
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
        """Returns this process's rows of one pass over the validation split, in fixed random order.

        The split is dealt to the virtual shards, so any number of processes makes the same rows.
        Rows of zeros fill the last batches. A mixture's parts are read in proportion to their size.

        Args:
          objective: prepares examples, with a fixed generator, and names the batch's arrays.
          max_batches: size of a sample of the split; None: all of it.
          shards: as in `train_batches`.
          agree: called before each batch, by all of several processes, with whether this process
            has more rows; returns whether any process has.
          part: of a mixture, one of `validation_parts`; None: all of it.
        Raises: InputError if the split is missing or has no examples.
        """
        specs, packed = objective.rows(self.lengths), self.packs(objective)
        components = self.components(self.split_of("validation"), objective)
        components = [component for component in components if part in (None, component.part)]
        mine, num_shards = self._chosen(shards), self._num_shards()
        size = self.batch_size // num_shards
        # A sample of less than a block of every shard packs no more rows than it has.
        block = min(self.rows_per_block(), size * (max_batches or self.rows_per_block()))

        def rows_of(shard: int) -> RowStream:
            examples = self.stream(
                components, seed=0, shard=shard, num_shards=num_shards, repeat=False
            )
            return RowStream(examples, specs, packed=packed, block_rows=block)

        def begin() -> Iterator[tuple[Batch, float | None]]:
            streams = [rows_of(shard) for shard in mine]
            for number in itertools.islice(itertools.count(), max_batches):
                parts = [stream.take(size) for stream in streams]
                if not agree(any(map(num_rows, parts))):
                    if not number:
                        names = ", ".join(component.source.name for component in components)
                        raise InputError(f"{names} has no examples, or preprocessing left none")
                    break
                epoch = mean_epoch(streams)
                share = epoch if isinstance(epoch, float) else None
                yield objective.batch(joined(parts, size)), share

        total = sum_or_none(count_of(component.source) for component in components)
        return Validation(begin, part=len(mine) / num_shards, num_examples=total)

    def validation_parts(self, objective: HostHalf) -> list[str]:
        """Returns the parts of a mixture that have a validation split; [] for other data."""
        del objective
        return []

    def examples(self, objective: HostHalf, *, split: str, count: int, seed: int) -> list[Example]:
        """Returns at most `count` prepared examples of a split, drawn at random from all of it.

        Of a SeqIO task too large for memory, they are the first of its shuffled files.
        """
        stream = self.stream(self.components(split, objective), seed=seed, repeat=False)
        return list(itertools.islice(stream, count))

    def batch_shapes(self, objective: HostHalf) -> "dict[str, jax.ShapeDtypeStruct]":
        """Returns the shapes and types of a global batch, without reading any data."""
        import jax

        specs = objective.rows(self.lengths)
        batch = objective.batch(empty_rows(specs, 1, packed=self.packs(objective)))
        return {
            name: jax.ShapeDtypeStruct((self.batch_size, *rows.shape[1:]), rows.dtype)
            for name, rows in batch.items()
        }

    def components(self, split: str, objective: HostHalf) -> list[Component]:
        """Returns the sources of a split, with their rates and objectives.

        Raises: NoSplit if the split is missing or empty.
        """
        raise NotImplementedError(f"{type(self).__name__}.components")

    def split_of(self, use: str) -> str:
        """Returns the name of the split for "train" or "validation"; other names are unchanged.

        Raises: NoSplit if it is missing.
        """
        return use

    def _workers(self, objective: HostHalf, seed: int) -> Workers:
        data = dataclasses.replace(self, workers=0)
        return Workers(self.workers, functools.partial(_opened, data, objective, seed))

    def can_prepare(self, source: Source, objective: HostHalf) -> bool:
        """Whether the objective can prepare example 0 of a source of numbers.

        It may make features that the source lacks; this tells before the first batch.
        """
        rng = np.random.default_rng(0)
        try:
            next(self._prepare(objective)(source.examples(np.arange(1), seed=0), rng), None)
        except (InputError, KeyError):
            return False
        return True

    def _num_shards(self) -> int:
        return self.num_shards or math.gcd(self.batch_size, _DEFAULT_SHARDS)

    def _window(self) -> int:
        return self.window or max(min(_WINDOW, _WINDOWS // self._num_shards()), 1)

    def rows_per_block(self) -> int:
        """Returns the number of a shard's rows that are packed together."""
        fair = max(_BLOCKS // self._num_shards(), _SMALLEST_BLOCK)
        return self.block_rows or min(_BLOCK, fair)

    def _chosen(self, shards: Sequence[int] | None) -> Sequence[int]:
        return range(self._num_shards()) if shards is None else shards

    def _rows_of(self, shards: Sequence[int]) -> np.ndarray:
        size = self.batch_size // self._num_shards()
        return (np.asarray(shards, int)[:, np.newaxis] * size + np.arange(size)).ravel()

    def packs(self, objective: HostHalf) -> bool:
        return self.pack and objective.packable

    def _prepare(self, objective: HostHalf, add_eos: Mapping[str, bool] | None = None) -> Prepare:
        objective = objective if add_eos is None else objective.for_features(add_eos)
        options: Any = {"lengths": self.lengths, "vocabulary": self.vocabulary()}
        return lambda examples, rng: objective.prepare(examples, rng=rng, **options)

    def stream(
        self,
        components: Sequence[Component],
        *,
        seed: int,
        shard: int = 0,
        num_shards: int = 1,
        repeat: bool = True,
    ) -> Stream:
        """Returns a shard's prepared examples.

        Args:
          components: sources to read.
          seed: of order and preparation.
          shard: in `[0, num_shards)`.
          num_shards: to which the components are dealt.
          repeat: endlessly, drawing components at their rates; False: one pass over all of them.
        """
        streams: list[Stream] = [
            ExampleStream(
                source,
                self._prepare(objective, getattr(source, "add_eos", None)),
                shard=shard,
                num_shards=num_shards,
                seed=seed + order,
                window=self._window(),
                repeat=repeat,
            )
            for source, _, objective, _, order in components
        ]
        if len(streams) == 1:
            return streams[0]
        rates = [component.rate for component in components] if repeat else None
        return MixtureStream(streams, rates, seed=seed, shard=shard)


def sum_or_none(counts: Iterable[int | None]) -> int | None:
    """Returns the sum of counts; None if one is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _opened(
    data: Dataset, objective: HostHalf, seed: int, shards: Sequence[int]
) -> Mapping[int, Rows]:
    return data.train_batches(objective, seed=seed, shards=shards).shards
