"""Batches for training and validation: the base of all datasets.

Every global batch is made of a fixed number of virtual shards: rows `[s * B/V, (s + 1) * B/V)` are
shard `s`'s, which has its own examples, order and packing. A process makes the rows that its
devices hold, which are whole shards, contiguous or not; processes that hold the same rows make them
twice. So batches are the same with any number and order of processes, and the position in the data
is a few integers for each shard.

An epoch is as many examples as there are, counted before the objective makes none, one or several
of each. Every epoch deals all of them to the shards, so that rows of one example each are all seen
once in it; where rows are packed, a shard with larger examples is a little behind the others.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_MOST_SHARDS = 1024  # unless more are wanted: as many processes can read
_EARLIER_SHARDS = 64  # likewise in 0.1.0, whose runs go on with as many
_GROUPS = 64  # batches' worth of a shard's rows that are ordered by length together
# Raw examples that are prepared together: of all shards, and of one; likewise rows packed together.
_WINDOWS, _WINDOW = 65536, 1024
_BLOCKS, _BLOCK, _SMALLEST_BLOCK = 4096, 64, 16


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Base of all datasets: turns sources of examples into packed, resumable batches.

    A dataset of one's own derives from it and gives `vocabulary`, `describe` and `components`: the
    sources of a split, such as a `NumberedSource`. All else follows: shuffling, packing, any number
    of processes and workers, resuming, validation, mixtures, caches.

    Attributes:
      lengths: the room for each of the objective's features, in tokens, EOS included.
      batch_size: rows of a global batch.
      pack: whether rows hold several examples; an objective that is not `packable` (one label a
        text, say) has one example to a row all the same.
      num_shards: virtual shards V, a divisor of `batch_size`; each process's devices must hold
        whole shards, so a multiple of the number of parts that the mesh divides a batch into always
        works. None: the largest divisor that is also one of 1,024. It decides the order of the
        data, and cannot change within a run.
      window: raw examples of a shard that are read, shuffled and prepared together; resuming redoes
        at most as many. None: 1,024, or as many as make 65,536 in all shards.
      block_rows: rows of a shard that are packed together. None: 64, or as many as make 4,096 in
        all shards, and at least 16.
      like_lengths: whether training batches of an objective that is not `packable` are of rows of
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
        """Returns the fields alone: what they opened belongs to this process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __post_init__(self) -> None:
        for name in ("batch_size", "prefetch"):
            require_integer(name, getattr(self, name))
        for name in ("num_shards", "window", "block_rows"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name))
        if self.workers != 0:
            require_integer("workers", self.workers)
        for name, length in self.lengths.items():
            require_integer(f"lengths[{name!r}]", length)
        if self.num_shards is not None and self.batch_size % self.num_shards:
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

    def num_examples(self, split: str) -> int | None:
        """Returns how many examples a split has before the objective; None if that is unknown."""
        del split
        return None

    def validation_name(self, objective: HostHalf) -> str:
        """Returns what the validation split is read from: it tells data sets apart.

        Raises:
          InputError: if there is no such split.
        """
        found = self.components(self.split_of("validation"), objective)
        known = ([each.source.name, getattr(each.source, "content", None)] for each in found)
        return " + ".join(":".join(filter(None, each)) for each in known)

    def class_counts(self, split: str) -> dict[str, dict[str, int]]:
        """Returns how often each class occurs, by label feature and class name; {} if none do."""
        del split
        return {}

    def shards_of(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Returns the virtual shards that rows of a batch belong to, in order.

        Args:
          rows: those that a process's devices hold, see `parallel.process_rows`.

        Raises:
          InputError: if they are not whole shards.
        """
        size = self.batch_size // self._num_shards()
        shards = np.unique(np.asarray(rows) // size)
        if np.array_equal(np.sort(rows), self._rows_of(shards.tolist())):
            return tuple(shards.tolist())
        held = np.isin(np.arange(self.batch_size + 1), rows)
        edges = np.flatnonzero(np.diff(held, prepend=False))  # where runs of rows begin and end
        fitting = self.batch_size // math.gcd(self.batch_size, *edges.tolist())
        raise InputError(
            f"num_shards {self._num_shards()}: the {len(rows)} rows of a batch from row "
            f"{min(rows)} on, which one process holds, are not whole shards of {size} rows; set "
            f"num_shards to {fitting}, or to a multiple that divides batch_size {self.batch_size}"
        )

    def add_eos(self) -> dict[str, bool]:
        """Returns whether each feature ends with EOS, as a SeqIO task says; {} where none does."""
        return {}

    def labels(self) -> dict[str, list[str]]:
        """Returns the names of each label feature's labels, in the order of their ids."""
        return {}

    def with_labels(self, labels: Labels) -> Self:
        """Returns the same data with its labels numbered as a model's are.

        Args:
          labels: the model's names by feature; data may lack some of them.

        Raises:
          InputError: if the labels have other numbers, and cannot be given new ones.
        """
        ours = self.labels()
        # Fewer labels are fine where they have the same ids.
        check_labels(
            ours, {name: known[: len(ours.get(name, ()))] for name, known in labels.items()}
        )
        return self

    def input_format(self) -> InputFormat:
        """Returns how `inputs` are made of rows, as far as that is known."""
        return InputFormat(length=self.lengths.get("inputs"))

    def metric_tasks(self) -> list["MetricTask"]:
        """Returns the SeqIO tasks in this data whose validation split has metrics of its own."""
        return []

    def train_batches(
        self, objective: HostHalf, *, seed: int, shards: Sequence[int] | None = None
    ) -> Batches:
        """Starts reading the training data.

        Args:
          objective: prepares examples and names the batch's arrays.
          seed: decides the order and all other chance.
          shards: the virtual shards whose rows are made, ascending, see `shards_of`; None for all.

        Raises:
          InputError: if a split, feature or length is missing or numbers do not divide.
        """
        specs, packed = objective.rows(self.lengths), self.packs(objective)
        components = self.components(self.split_of("train"), objective)
        num_shards = self._num_shards()
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
            )
        fingerprint = {
            "sources": [[each.source.name, each.rate] for each in components],
            "sources_content": [
                # A user's own source may lack both.
                [getattr(each.source, "num_examples", None), getattr(each.source, "content", None)]
                for each in components
            ],
            "seed": seed,
            "num_shards": num_shards,
            "lengths": dict(self.lengths),
            "pack": packed,
            "objective": objective.identity(),
            "objectives": [
                each.objective.identity() for each in components if each.objective is not objective
            ],
            "start_id": objective.first_id,
            "vocabulary": getattr(self.vocabulary(), "fingerprint", None),
            "window": self._window(),
            "block_rows": block_rows,
            "like_lengths": ordered,
        }

        def earlier() -> Batches:
            data = dataclasses.replace(self, num_shards=of_then)
            rows = self._rows_of(self._chosen(shards))
            return data.train_batches(objective, seed=seed, shards=data.shards_of(rows.tolist()))

        of_then = math.gcd(num_shards, _EARLIER_SHARDS if self.num_shards is None else 0)
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
            threads=any(getattr(each.source, "waits", False) for each in components),
            earlier=(of_then, earlier) if of_then < num_shards else None,
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
        """Reads the whole validation split once, in a fixed random order; the same on every call.

        The split is dealt to the virtual shards as the training split is, so that each process
        reads and prepares its own part, and any number of processes makes the same rows.

        Args:
          objective: prepares examples, with a fixed generator, and names the batch's arrays.
          max_batches: stop there, after a sample of the split; None: at the end.
          shards: as in `train_batches`.
          agree: tells, before each batch, whether any process has more rows, from whether this one
            has; of several processes all must call it.
          part: of a mixture, one of `validation_parts`; None: all of it.

        Returns:
          This process's rows of every batch; can be iterated over again. Rows of zeros fill the
          last batches. Of a mixture each part is read in proportion to its size.

        Raises:
          InputError: if there is no such split, or it has no examples.
        """
        specs, packed = objective.rows(self.lengths), self.packs(objective)
        components = self.components(self.split_of("validation"), objective)
        components = [each for each in components if part in (None, each.part)]
        mine, num_shards = self._chosen(shards), self._num_shards()
        size = self.batch_size // num_shards
        # No more rows are made than are wanted, where that is less than a block of every shard.
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
                        names = ", ".join(each.source.name for each in components)
                        raise InputError(f"{names} has no examples, or preprocessing left none")
                    break
                epoch = mean_epoch(streams)
                share = epoch if isinstance(epoch, float) else None
                yield objective.batch(joined(parts, size)), share

        counts = [count_of(each.source) for each in components]
        known = [count for count in counts if count is not None]
        return Validation(
            begin,
            part=len(mine) / num_shards,
            num_examples=sum(known) if len(known) == len(counts) else None,
        )

    def validation_parts(self, objective: HostHalf) -> list[str]:
        """Returns the parts of a mixture that have a validation split; [] of other data."""
        del objective
        return []

    def examples(self, objective: HostHalf, *, split: str, count: int, seed: int) -> list[Example]:
        """Returns some prepared examples from all over a split, in random order.

        Args:
          objective: prepares them.
          split: a split of the task, `"train"` or `"validation"`.
          count: how many; fewer if the split is smaller.
          seed: decides which.
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
        """Returns the sources of a split, each with its rate and what prepares its examples.

        Raises:
          NoSplit: if there is no such split, or it is empty.
        """
        raise NotImplementedError(f"{type(self).__name__}.components")

    def split_of(self, use: str) -> str:
        """Returns the split that is read to "train" or for "validation"; others are their own.

        Raises:
          NoSplit: if there is none.
        """
        return use

    def _workers(self, objective: HostHalf, seed: int) -> Workers:
        data = dataclasses.replace(self, workers=0)
        return Workers(self.workers, functools.partial(_opened, data, objective, seed))

    def can_prepare(self, source: Source, objective: HostHalf) -> bool:
        """Whether the objective can prepare example 0 of a source whose raw examples are numbers.

        It may make features that it names; an example tells, before any batch does.
        """
        rng = np.random.default_rng(0)
        try:
            next(self._prepare(objective)(source.examples(np.arange(1), seed=0), rng), None)
        except (InputError, KeyError):
            return False
        return True

    def _num_shards(self) -> int:
        return self.num_shards or math.gcd(self.batch_size, _MOST_SHARDS)

    def _window(self) -> int:
        return self.window or max(min(_WINDOW, _WINDOWS // self._num_shards()), 1)

    def rows_per_block(self) -> int:
        """Returns the rows of a shard that are packed together."""
        fair = max(_BLOCKS // self._num_shards(), _SMALLEST_BLOCK)
        return self.block_rows or min(_BLOCK, fair)

    def _chosen(self, shards: Sequence[int] | None) -> Sequence[int]:
        return range(self._num_shards()) if shards is None else shards

    def _rows_of(self, shards: Sequence[int]) -> np.ndarray:
        """Returns the rows of a batch that shards have."""
        size = self.batch_size // self._num_shards()
        return (np.asarray(shards, int)[:, np.newaxis] * size + np.arange(size)).ravel()

    def packs(self, objective: HostHalf) -> bool:
        """Returns whether rows hold several examples."""
        return self.pack and objective.packable

    def _prepare(self, objective: HostHalf, add_eos: Mapping[str, bool] | None = None) -> Prepare:
        vocabulary = self.vocabulary()
        if add_eos is not None:
            objective = objective.for_features(add_eos)

        def prepare(examples: Iterator[Example], rng: np.random.Generator) -> Iterator[Example]:
            return objective.prepare(examples, lengths=self.lengths, vocabulary=vocabulary, rng=rng)

        return prepare

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
          components: what is read.
          seed: of order and preparation.
          shard: in `[0, num_shards)`.
          num_shards: among how many the components are dealt.
          repeat: whether passes follow one another, components being drawn at their rates; False:
            one pass over all of them.
        """
        streams: list[Stream] = []
        for component in components:
            source = component.source
            streams.append(
                ExampleStream(
                    source,
                    self._prepare(component.objective, getattr(source, "add_eos", None)),
                    shard=shard,
                    num_shards=num_shards,
                    seed=seed + component.order,
                    window=self._window(),
                    repeat=repeat,
                )
            )
        if len(streams) == 1:
            return streams[0]
        rates = [component.rate for component in components] if repeat else None
        return MixtureStream(streams, rates, seed=seed, shard=shard)


def _opened(
    data: Dataset, objective: HostHalf, seed: int, shards: Sequence[int]
) -> Mapping[int, Rows]:
    return data.train_batches(objective, seed=seed, shards=shards).shards
