"""The source and preprocessors of a SeqIO task, as a source of examples."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5lite.data.importing import import_seqio
from t5lite.data.order import generator, permuted
from t5lite.data.sources import Example, dealt, next_epoch
from t5lite.data.tasks.cache import check_vocabularies
from t5lite.data.tasks.dealing import Dealing
from t5lite.data.tasks.preprocessing import Preprocessing
from t5lite.data.tasks.windows import INFINITE, Window, is_text
from t5lite.data.user_code import user_error
from t5lite.errors import InputError

# Smaller splits are read once and dealt to all shards from memory.
_MEMORY_EXAMPLES = 100_000
_MEMORY_BYTES = 2**28
_DEALINGS = 4  # readings that shards may join


class SeqioSource:
    """One split of a SeqIO task.

    Shards are the source's files if it has at least as many files and examples as there are shards,
    otherwise every `num_shards`-th example of a shared reading. Raw examples stay serialised
    tensors, which are general (any type and shape), cheap to shuffle, and need no calls from
    TensorFlow into Python.

    Preprocessors see one window of examples at a time. Their randomness is repeatable if it comes
    from `seqio.map_over_dataset(num_seeds=...)` or fixed seeds; tf.random or `shuffle` without a
    seed cannot be resumed. For the arguments see `Preprocessing` and `TaskData`.
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
        self.add_eos = {name: feature.add_eos for name, feature in task.output_features.items()}
        if split not in task.splits:
            raise InputError(
                f"task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}"
            )
        use_cached = use_cached and task.supports_caching
        if use_cached and not task.cache_dir:
            raise InputError(
                f"use_cached: task {task.name!r} is not in any of SeqIO's cache folders; "
                "run seqio_cache_tasks or call seqio.add_global_cache_dirs",
                field="use_cached",
            )
        if use_cached:
            check_vocabularies(task)
        elif task.requires_caching:
            message = f"task {task.name!r} must be read from its cache: set use_cached"
            raise InputError(message, field="use_cached")
        self.content = "cached" if use_cached else None  # the cache has another order
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
        """The number of raw examples, where the source knows it without being read."""
        try:
            return self._source.num_input_examples(self._split) or None
        except KeyError:  # it knows other splits
            return None

    @property
    def seekable(self) -> bool:
        """Whether any window can be read at once: if the split is in memory."""
        return self._memory is not None

    def count(self) -> int | None:
        """Returns the number of raw examples, reading small splits for it; None if unknown."""
        if self.num_examples is None:
            self._read_small()
        return self.num_examples if self._memory is None else len(self._memory)

    def windows(
        self, *, shard: int, num_shards: int, epoch: int, seed: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's windows; see `Source.windows`.

        Splits in memory are shuffled by example, larger ones by file; every epoch deals the files
        to other shards. With too few files, examples are in the source's order.
        """
        selected = {"shard": shard, "num_shards": num_shards, "epoch": epoch, "seed": seed}
        files = len(self._source.list_shards(self._split))
        # With fewer examples than shards, files would leave some shards without any.
        enough = self.num_examples is None or self.num_examples >= num_shards
        by_files = (num_shards > 1 and enough) and (
            self._source.supports_arbitrary_sharding or files >= num_shards
        )
        if not by_files:
            self._read_small()
        # Counted splits are in memory, and dealt evenly whatever the files' sizes are.
        if (memory := self._memory) is not None:
            windows = dealt(len(memory), self.name, start=start, size=size, **selected)
            return (memory[numbers] for numbers in windows)
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
        """Yields a shard's windows of a reading that it shares with other shards."""
        key = (num_shards, repr(order), start, size)
        with self._memory_lock:
            dealing = self._dealings.get(key)
            if dealing is None or not dealing.join(shard):
                rest = self._open(**order).skip(num_shards * start * size)
                rows = self._arrays(rest, max(1024, 4 * num_shards))
                dealing = Dealing(rows, num_shards, size)
                dealing.join(shard)
                # Shards begin the next epoch one by one; no shard is two epochs late.
                self._dealings = dict([*self._dealings.items(), (key, dealing)][-_DEALINGS:])
        while (window := dealing.window(shard)) is not None:
            if not len(window):
                return
            yield window
            start += 1
        mine = self._open(**order).shard(num_shards, shard)
        yield from self._arrays(mine.skip(start * size), size)

    def next_epoch(self, *, epoch: int, **shard: int) -> int:
        if self._memory is None:
            return epoch
        return next_epoch(len(self._memory), self.name, epoch=epoch, **shard)

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        return self._preprocessing.examples(Window(window, self._spec, seed, self._origin))

    def _open(self, *, shuffle: bool = False, **options: Any) -> Any:
        with self._reading():
            return self._source.get_dataset(split=self._split, shuffle=shuffle, **options)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Names the task in errors of its source: missing or damaged files, user code."""
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
        with self._memory_lock:
            if not self._tried_memory:
                self._memory = self._small()
                self._tried_memory = True

    def _small(self) -> np.ndarray | None:
        """Returns all raw examples; None if there are too many."""
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
        """Describes where raw examples were read: file, line and text as far as possible."""
        files = self._source.list_shards(self._split)
        files = [str(path) for path in files] if files != [self._split] else []
        more = f" and {len(files) - 1} more" if files[1:] else ""
        origin = f"{self.name} ({files[0]}{more})" if files else self.name
        if len(rows) > 1:
            return origin
        if isinstance(self._spec, dict):
            texts = [name for name in sorted(self._spec) if is_text(self._spec[name])]
            shown = {name: _shortened(rows[0, sorted(self._spec).index(name)]) for name in texts}
            return f"{origin}, {shown}" if len(texts) == rows.shape[1] else origin
        if not is_text(self._spec):
            return origin
        numbers = ((path, _line_number(path, rows[0, 0])) for path in files)
        origin = next((f"{path}:{number}" for path, number in numbers if number), origin)
        return f"{origin}, {_shortened(rows[0, 0])!r}"


def _shortened(raw: bytes) -> str:
    return raw[:60].decode(errors="replace") + ("…" if len(raw) > 60 else "")


def _line_number(path: str, line: bytes) -> int | None:
    """Returns the number of a line in a file, unless the file is large."""
    import tensorflow as tf

    with contextlib.suppress(tf.errors.OpError):
        if tf.io.gfile.stat(path).length <= _MEMORY_BYTES:
            with tf.io.gfile.GFile(path, "rb") as file:
                for number, content in enumerate(file, start=1):
                    if content.rstrip(b"\r\n") == line:
                        return number
    return None
