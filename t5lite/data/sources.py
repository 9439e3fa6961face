"""Where examples come from: arrays in memory, or the source and preprocessors of a SeqIO task.

A source gives each of a fixed number of shards the same raw examples in the same order on every
pass, in windows; and it turns a window, shuffled by whoever asked, into tokenised examples. Both
are repeatable, which is all that resuming needs: nothing of TensorFlow's state is ever saved.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from t5lite.data.files import decode_text
from t5lite.data.importing import import_seqio
from t5lite.errors import InputError

Example = dict[str, np.ndarray]

# A task that is smaller is read once and then dealt to all shards from memory.
_MEMORY_EXAMPLES = 100_000
_MEMORY_BYTES = 2**28
# Examples that leave TensorFlow at a time: a call for each would take longer than tokenising it.
_CHUNK = 64
# seqio.map_over_dataset's seeds live in a global of SeqIO's.
_SEQIO_SEED = threading.Lock()
# Ending of the features in which SeqIO's `tokenize` keeps the text.
_PRETOKENIZED = "_pretokenized"


class Source(Protocol):
    """Raw examples by shard, and what becomes of them."""

    @property
    def name(self) -> str:
        """Says what is read, in messages and as a part of every random key."""
        ...

    def windows(
        self, *, shard: int, num_shards: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields one pass over a shard's raw examples, from window `start` to the end.

        Args:
          shard: in `[0, num_shards)`. With fewer raw examples than shards in all, every shard has
            all of them; otherwise every raw example is in exactly one shard.
          num_shards: a part of the order; never the number of hosts.
          start: windows to skip.
          size: raw examples in a window; the last one of a pass may have fewer.

        Yields:
          Object arrays whose first axis counts raw examples.
        """
        ...

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields the tokenised examples of a window of raw ones: 1-D arrays by feature.

        Args:
          window: raw examples, in the order in which to take them.
          seed: in `[0, 2**30)`; all randomness comes from it.
        """
        ...


class ArraySource:
    """Examples that are arrays already. Needs no TensorFlow."""

    def __init__(self, name: str, arrays: Sequence[Mapping[str, np.ndarray]]):
        self.name = name
        self._raw = np.empty(len(arrays), object)
        for i, example in enumerate(arrays):
            self._raw[i] = {key: np.asarray(value) for key, value in example.items()}

    def windows(
        self, *, shard: int, num_shards: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's windows; see `Source.windows`."""
        return _dealt(self._raw, shard, num_shards, start, size)

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields the arrays as they are."""
        del seed
        return iter(window)


class SeqioSource:
    """One split of a SeqIO task.

    Shards are the source's own files where it has at least as many files as there are shards, and
    otherwise every `num_shards`-th example. Raw examples stay serialised tensors in here, which is
    general (any type and shape), cheap to shuffle, and never calls from TensorFlow into Python.

    Preprocessors see one window of examples at a time. Chance in them is repeatable where it comes
    through `seqio.map_over_dataset(num_seeds=...)` or fixed seeds; tf.random without a seed, or
    `shuffle` without one, cannot be resumed.

    Args:
      task: a `seqio.Task`.
      split: one of `task.splits`.
      sequence_length: what preprocessors get for their argument of this name; None: no limit.
      use_cached: read what `seqio_cache_tasks` wrote, and run the preprocessors behind it.

    Raises:
      InputError: if the task has no such split, or must be cached and is not.
    """

    def __init__(
        self,
        task: Any,
        split: str,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
    ):
        self.name = f"{task.name}:{split}"
        self._task, self._split, self._lengths = task, split, sequence_length
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
        if task.requires_caching and not use_cached:
            raise InputError(f"task {task.name!r} must be read from its cache: set use_cached")
        self._source = task._get_cached_source(split) if use_cached else task.source
        # Where preprocessing starts, and from where on it may know the sequence lengths.
        cache = import_seqio().CacheDatasetPlaceholder
        is_cache = [isinstance(step, cache) for step in task.preprocessors]
        self._behind_cache = is_cache.index(True) + 1 if any(is_cache) else 0
        self._first = self._behind_cache if use_cached else 0
        self._spec: Any = None
        self._memory: np.ndarray | None = None
        self._tried_memory = False
        self._function: Any = None
        self._tried_function = False

    def windows(
        self, *, shard: int, num_shards: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's windows; see `Source.windows`."""
        by_files = num_shards > 1 and (
            self._source.supports_arbitrary_sharding
            or len(self._source.list_shards(self._split)) >= num_shards
        )
        if by_files:
            info = import_seqio().ShardInfo(shard, num_shards)
            dataset = self._open(shard_info=info)
        else:
            self._read_small()
            if self._memory is not None:
                return _dealt(self._memory, shard, num_shards, start, size)
            dataset = self._open().shard(num_shards, shard)
        raw = self._serialised(dataset.skip(start * size)).batch(size).prefetch(1)
        return (np.stack(columns, axis=1) for columns in raw.as_numpy_iterator())

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields a window's preprocessed examples: the task's output features, in a fixed order."""
        with _SEQIO_SEED:
            dataset = self._preprocessed(window, seed)
        for chunk in dataset.as_numpy_iterator():
            self._check_texts(chunk)
            arrays = {
                name: _split_rows(value)
                for name, value in chunk.items()
                if not name.endswith(_PRETOKENIZED)
            }
            for values in zip(*arrays.values(), strict=True):
                yield dict(zip(arrays, values, strict=True))

    def _open(self, **shard_info: Any) -> Any:
        try:
            return self._source.get_dataset(split=self._split, shuffle=False, **shard_info)
        except ValueError as error:  # files that are not there
            raise InputError(f"cannot read {self.name}: {error}") from error

    def _serialised(self, dataset: Any) -> Any:
        """Returns raw examples as tuples of strings, one for each tensor of an example."""
        import tensorflow as tf

        self._spec = dataset.element_spec

        def serialise(*example: Any) -> tuple[Any, ...]:
            tensors = tf.nest.flatten(example, expand_composites=True)
            return tuple(
                tensor if _is_text(tensor) else tf.io.serialize_tensor(tensor) for tensor in tensors
            )

        serialised = dataset.map(serialise, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        options.deterministic = True
        return serialised.with_options(options)

    def _read_small(self) -> None:
        """Reads the split into memory, unless it turns out to be large."""
        if self._tried_memory:
            return
        self._tried_memory = True
        if (self._source.num_input_examples(self._split) or 0) > _MEMORY_EXAMPLES:
            return
        parts, num_examples, num_bytes = [], 0, 0
        raw = self._serialised(self._open())
        for columns in raw.batch(1024).as_numpy_iterator():
            parts.append(np.stack(columns, axis=1))
            num_examples += len(parts[-1])
            num_bytes += sum(map(len, parts[-1].flat))
            if num_examples > _MEMORY_EXAMPLES or num_bytes > _MEMORY_BYTES:
                return
        self._memory = np.concatenate(parts) if parts else np.empty((0, 1), object)

    def _preprocessed(self, window: np.ndarray, seed: int) -> Any:
        """Returns the window's dataset, from a traced function if its graph has no seeds in it.

        Tracing takes 0.1 s and more, which would tell with small windows. Seeds are constants of
        the graph, so that a task that uses them is traced anew for every window.
        """
        import tensorflow as tf

        columns = [tf.constant(list(column), tf.string) for column in window.T]
        if not self._tried_function:
            self._tried_function = True
            used: list[bool] = []

            def build(*columns: Any) -> Any:
                dataset, uses_seeds = self._build(columns, seed)
                used.append(uses_seeds)
                return dataset

            signature = [tf.TensorSpec([None], tf.string)] * len(columns)
            function = tf.function(build, input_signature=signature, autograph=False)
            try:
                function.get_concrete_function()
            except InputError:
                raise
            except Exception:  # some preprocessors, lookup tables say, need eager mode: see below
                used.append(True)
            if not any(used):
                self._function = function
        if self._function is not None:
            return self._function(*columns)
        return self._build(columns, seed)[0]

    def _build(self, columns: Sequence[Any], seed: int) -> tuple[Any, bool]:
        """Returns the dataset of preprocessed examples in chunks, and whether it used seeds."""
        seqio = import_seqio()
        import tensorflow as tf

        specs = tf.nest.flatten(self._spec, expand_composites=True)

        def parse(*strings: Any) -> Any:
            tensors = [
                string
                if _is_text(spec)
                else tf.ensure_shape(tf.io.parse_tensor(string, spec.dtype), spec.shape)
                for string, spec in zip(strings, specs, strict=True)
            ]
            return tf.nest.pack_sequence_as(self._spec, tensors, expand_composites=True)

        if all(map(_is_text, specs)):  # the common case, in which parsing has nothing to do
            slices = tf.nest.pack_sequence_as(self._spec, columns)
            dataset = tf.data.Dataset.from_tensor_slices(slices)
        else:
            dataset = tf.data.Dataset.from_tensor_slices(tuple(columns)).map(parse)
        # What map_seed_manager does; but that leaves the seed behind if a preprocessor raises.
        outer, seqio.utils._NEXT_MAP_SEED = seqio.utils._NEXT_MAP_SEED, seed
        try:
            for i, step in enumerate(self._task.preprocessors):
                if i < self._first or i == self._behind_cache - 1:
                    continue
                step = seqio.utils.add_kwargs_to_transform(
                    step,
                    sequence_length=self._lengths if i >= self._behind_cache else None,
                    output_features=self._task.output_features,
                )
                dataset = step(dataset)
            uses_seeds = seed != seqio.utils._NEXT_MAP_SEED
        finally:
            seqio.utils._NEXT_MAP_SEED = outer
        names = self._output_names(dataset.element_spec)
        # What SeqIO's `tokenize` leaves of the text it read: see `_check_texts`.
        texts = [name + _PRETOKENIZED for name in names]
        names += [name for name in texts if _is_text(dataset.element_spec.get(name))]
        dataset = dataset.map(lambda example: {name: example[name] for name in names})
        chunks = dataset.ragged_batch(_CHUNK, row_splits_dtype=tf.int64)
        # Rewriting the graph takes 20 ms, and windows may be small.
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        options.experimental_optimization.inject_prefetch = False
        return chunks.with_options(options), uses_seeds

    def _check_texts(self, chunk: Mapping[str, Any]) -> None:
        """Raises an InputError at text that is not UTF-8: SentencePiece would take it silently."""
        for name, texts in chunk.items():
            if name.endswith(_PRETOKENIZED):
                for text in texts:
                    decode_text(text, where=f"{name.removesuffix(_PRETOKENIZED)!r} of {self.name}")

    def _output_names(self, spec: Any) -> list[str]:
        """Returns the features that examples have, checked against what the task declares."""
        names = []
        for name, feature in self._task.output_features.items():
            if name in spec:
                if spec[name].shape.rank != 1:
                    raise InputError(
                        f"feature {name!r} of task {self._task.name!r} has shape "
                        f"{spec[name].shape} after preprocessing; only sequences can be used"
                    )
                names.append(name)
            elif feature.required:
                raise InputError(
                    f"task {self._task.name!r} declares the feature {name!r} and its "
                    f"preprocessors return {', '.join(sorted(spec))}"
                )
        return names


def _dealt(
    raw: np.ndarray, shard: int, num_shards: int, start: int, size: int
) -> Iterator[np.ndarray]:
    """Yields windows of every `num_shards`-th example; of all, if there are not enough to deal."""
    mine = raw[shard::num_shards] if len(raw) >= num_shards else raw
    return (mine[at : at + size] for at in range(start * size, len(mine), size))


def _split_rows(values: Any) -> list[np.ndarray]:
    """Returns the rows of a batch of sequences, `[n, length]` dense or ragged."""
    if isinstance(values, np.ndarray):
        return list(values)
    return np.split(values.values, values.row_splits[1:-1])


def _is_text(tensor: Any) -> bool:
    """Whether a tensor, or one that is described, is a single string."""
    return tensor is not None and tensor.dtype.name == "string" and tensor.shape.rank == 0
