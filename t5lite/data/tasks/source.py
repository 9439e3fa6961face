"""The source and preprocessors of a SeqIO task, as a source of examples."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.data.importing import import_seqio
from t5lite.data.order import generator, permuted
from t5lite.data.sources import Example, dealt, next_epoch
from t5lite.data.tasks.cache import check_vocabularies
from t5lite.data.tasks.dealing import Dealing
from t5lite.data.tasks.preprocessing import INFINITE, Preprocessing, is_text
from t5lite.data.user_code import user_error
from t5lite.errors import InputError

# A task that is smaller is read once and then dealt to all shards from memory.
_MEMORY_EXAMPLES = 100_000
_MEMORY_BYTES = 2**28
_DEALINGS = 4  # readings that shards may join


class SeqioSource:
    """One split of a SeqIO task.

    Shards are the source's own files where it has at least as many files, and examples, as there
    are shards, and otherwise every `num_shards`-th example of one reading that they share. Raw
    examples stay serialised tensors in here, which is general (any type and shape), cheap to
    shuffle, and never calls from TensorFlow into Python.

    Preprocessors see one window of examples at a time. Chance in them is repeatable where it comes
    through `seqio.map_over_dataset(num_seeds=...)` or fixed seeds; tf.random without a seed, or
    `shuffle` without one, cannot be resumed.

    Args:
      task: a `seqio.Task`.
      split: one of `task.splits`.
      sequence_length: what preprocessors get for their argument of this name; None: no limit.
      use_cached: read what `seqio_cache_tasks` wrote, and run the preprocessors after it.
      bad_texts: `"stop"`, `"skip"` or `"replace"`; see `Preprocessing`.

    Raises:
      InputError: if the task has no such split, or must be cached and is not.
    """

    waits = True  # for TensorFlow

    def __init__(
        self,
        task: Any,
        split: str,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        bad_texts: str = "stop",
    ):
        self.name, self._split = f"{task.name}:{split}", split
        self.add_eos = {name: each.add_eos for name, each in task.output_features.items()}
        if split not in task.splits:
            raise InputError(
                f"task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}"
            )
        use_cached = use_cached and task.supports_caching
        if use_cached and not task.cache_dir:
            raise InputError(
                f"use_cached: task {task.name!r} is not in any of SeqIO's cache folders; "
                "run seqio_cache_tasks or call seqio.add_global_cache_dirs"
            )
        if use_cached:
            check_vocabularies(task)
        self.content = "cached" if use_cached else None  # which has an order of its own
        if task.requires_caching and not use_cached:
            raise InputError(f"task {task.name!r} must be read from its cache: set use_cached")
        self._source = task._get_cached_source(split) if use_cached else task.source
        self._preprocessing = Preprocessing(
            task, split, sequence_length=sequence_length, cached=use_cached, bad_texts=bad_texts
        )
        self._spec: Any = None
        self._memory: np.ndarray | None = None
        self._memory_lock, self._tried_memory = threading.Lock(), False
        self._dealings: dict[Any, Dealing] = {}  # the latest

    @property
    def num_examples(self) -> int | None:
        """Raw examples of the split, as far as the source tells without being read."""
        try:
            return self._source.num_input_examples(self._split) or None
        except KeyError:  # it tells for other splits
            return None

    @property
    def seekable(self) -> bool:
        """Whether any window can be read at once: of what is in memory."""
        return self._memory is not None

    def count(self) -> int | None:
        """Raw examples of the split, read to be counted if it is small; None if unknown."""
        if self.num_examples is None:
            self._read_small()
        return self.num_examples if self._memory is None else len(self._memory)

    def windows(
        self, *, shard: int, num_shards: int, epoch: int, seed: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's windows; see `Source.windows`.

        In memory examples are shuffled one by one. Files are shuffled as wholes, and every epoch
        deals them to the shards anew. What has too few files comes in its own order.
        """
        which = {"shard": shard, "num_shards": num_shards, "epoch": epoch, "seed": seed}
        files = len(self._source.list_shards(self._split))
        # With fewer examples than shards, files would leave some shards without any.
        enough = self.num_examples is None or self.num_examples >= num_shards
        by_files = (num_shards > 1 and enough) and (
            self._source.supports_arbitrary_sharding or files >= num_shards
        )
        if not by_files:
            self._read_small()
        # What was counted is in memory, and dealt evenly whatever the files' sizes are.
        if (memory := self._memory) is not None:
            numbers = dealt(len(memory), self.name, start=start, size=size, **which)
            return (memory[each] for each in numbers)
        key = (seed, self.name, epoch)
        order: dict[str, Any] = {}
        if files > 1:
            order = {"shuffle": True, "seed": int(generator("files", *key).integers(2**31))}
        if by_files:
            (index,) = permuted(np.array([shard]), num_shards, "shards", *key).tolist()
            info = import_seqio().ShardInfo(index, num_shards)
            dataset = self._open(shard_info=info, **order)
        elif num_shards > 1:
            return self._dealt(shard, num_shards, order=order, start=start, size=size)
        else:
            dataset = self._open(**order)
        return self._arrays(dataset.skip(start * size), size)

    def _dealt(
        self, shard: int, num_shards: int, *, order: Mapping[str, Any], start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's windows out of a reading that it shares with other shards."""
        key = (num_shards, repr(order), start, size)
        with self._memory_lock:
            dealing = self._dealings.get(key)
            if dealing is None or not dealing.begin(shard):
                rest = self._open(**order).skip(num_shards * start * size)
                rows = self._arrays(rest, max(1024, 4 * num_shards))
                dealing = Dealing(rows, num_shards, size)
                dealing.begin(shard)
                # Shards begin the next epoch one by one; no shard is two epochs late.
                self._dealings = dict([*self._dealings.items(), (key, dealing)][-_DEALINGS:])
        while (window := dealing.window(shard)) is not None:
            if not len(window):
                return
            yield window
            start += 1
        mine = self._open(**order).shard(num_shards, shard)
        yield from self._arrays(mine.skip(start * size), size)

    def next_epoch(self, *, epoch: int, **which: int) -> int:
        """Returns the next epoch in which a shard has examples, see `Source`."""
        if self._memory is None:
            return epoch
        return next_epoch(len(self._memory), self.name, epoch=epoch, **which)

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields a window's preprocessed examples: the task's output features, in a fixed order."""
        return self._preprocessing.examples(window, self._spec, seed=seed, origin=self._origin)

    def _open(self, *, shuffle: bool = False, **which: Any) -> Any:
        with self._reading():
            return self._source.get_dataset(split=self._split, shuffle=shuffle, **which)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Names the task where its source fails: files that are missing or damaged, user code."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise user_error(f"cannot read {self.name}: its source", error) from error

    def _arrays(self, dataset: Any, count: int) -> Iterator[np.ndarray]:
        """Yields arrays of `count` raw examples, `[count, tensors]`, serialised."""
        raw = self._serialised(dataset).batch(count).prefetch(1)

        def arrays() -> Iterator[np.ndarray]:
            with self._reading():
                for columns in raw.as_numpy_iterator():
                    yield np.stack(columns, axis=1)

        return arrays()

    def _serialised(self, dataset: Any) -> Any:
        """Returns raw examples as tuples of strings, one for each tensor of an example."""
        import tensorflow as tf

        self._spec = dataset.element_spec

        def serialise(*example: Any) -> tuple[Any, ...]:
            tensors = tf.nest.flatten(example, expand_composites=True)
            return tuple(
                tensor if is_text(tensor) else tf.io.serialize_tensor(tensor) for tensor in tensors
            )

        serialised = dataset.map(serialise, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        options.deterministic = True
        return serialised.with_options(options)

    def _read_small(self) -> None:
        """Reads the split into memory, unless it turns out to be large."""
        with self._memory_lock:
            if not self._tried_memory:
                self._memory = self._small()
                self._tried_memory = True

    def _small(self) -> np.ndarray | None:
        """Returns all raw examples; None if they are many."""
        if (self.num_examples or 0) > _MEMORY_EXAMPLES:
            return None
        dataset = self._open()
        if int(dataset.cardinality()) == INFINITE:
            return None
        parts, num_examples, num_bytes = [], 0, 0
        for part in self._arrays(dataset, 1024):
            parts.append(part)
            num_examples += len(parts[-1])
            num_bytes += sum(map(len, parts[-1].flat))
            if num_examples > _MEMORY_EXAMPLES or num_bytes > _MEMORY_BYTES:
                return None
        return np.concatenate(parts) if parts else np.empty((0, 1), object)

    def _origin(self, rows: np.ndarray) -> str:
        """Returns where raw examples were read, as far as that can be told."""
        files = self._source.list_shards(self._split)
        files = [str(path) for path in files] if files != [self._split] else []
        place = f"{self.name} ({_listed(files)})" if files else self.name
        if len(rows) > 1:
            return place
        if isinstance(self._spec, dict):
            texts = [name for name in sorted(self._spec) if is_text(self._spec[name])]
            shown = {name: _shortened(rows[0, sorted(self._spec).index(name)]) for name in texts}
            return f"{place}, {shown}" if len(texts) == rows.shape[1] else place
        if not is_text(self._spec):
            return place
        numbers = ((path, _line_number(path, rows[0, 0])) for path in files)
        place = next((f"{path}:{number}" for path, number in numbers if number), place)
        return f"{place}, {_shortened(rows[0, 0])!r}"


def _shortened(raw: bytes) -> str:
    return raw[:60].decode(errors="replace") + ("…" if len(raw) > 60 else "")


def _listed(files: Sequence[str]) -> str:
    return files[0] + (f" and {len(files) - 1} more" if files[1:] else "")


def _line_number(path: str, line: bytes) -> int | None:
    """Returns where a line first stands in a file, unless that takes long to find out."""
    import tensorflow as tf

    with contextlib.suppress(tf.errors.OpError):
        if tf.io.gfile.stat(path).length <= _MEMORY_BYTES:
            with tf.io.gfile.GFile(path, "rb") as file:
                for number, each in enumerate(file, start=1):
                    if each.rstrip(b"\r\n") == line:
                        return number
    return None
