"""The source and preprocessors of a SeqIO task, as a source of examples.

Preprocessing runs in TensorFlow, as SeqIO has it, but for the tokenising where it comes last: the
TensorFlow-free twin of the vocabulary gives the same ids at a tenth of the cost.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.data.files import decode_text
from t5lite.data.importing import import_seqio
from t5lite.data.order import generator, permuted
from t5lite.data.seqio_cache import check_vocabularies
from t5lite.data.sources import Example, dealt, next_epoch
from t5lite.data.vocabularies import Vocabulary, from_seqio
from t5lite.errors import InputError

# A task that is smaller is read once and then dealt to all shards from memory.
_MEMORY_EXAMPLES = 100_000
_MEMORY_BYTES = 2**28
# Examples that leave TensorFlow at a time: a call for each would take longer than tokenising it.
_CHUNK = 64
# seqio.map_over_dataset's seeds live in a global of SeqIO's.
_SEQIO_SEED = threading.Lock()
# Ending of the features in which SeqIO's `tokenize` keeps the text.
_PRETOKENIZED = "_pretokenized"


class SeqioSource:
    """One split of a SeqIO task.

    Shards are the source's own files where it has at least as many files, and examples, as there
    are shards, and otherwise every `num_shards`-th example. Raw examples stay serialised tensors in
    here, which is general (any type and shape), cheap to shuffle, and never calls from TensorFlow
    into Python.

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
        self.add_eos = {name: each.add_eos for name, each in task.output_features.items()}
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
        if use_cached:
            check_vocabularies(task)
        self.content = "cached" if use_cached else None  # which has an order of its own
        if task.requires_caching and not use_cached:
            raise InputError(f"task {task.name!r} must be read from its cache: set use_cached")
        self._source = task._get_cached_source(split) if use_cached else task.source
        # From where on preprocessing may know the sequence lengths, and what of it is to be done.
        cache = import_seqio().CacheDatasetPlaceholder
        is_cache = [isinstance(step, cache) for step in task.preprocessors]
        self._behind_cache = is_cache.index(True) + 1 if any(is_cache) else 0
        self._steps = [
            (number, step)
            for number, step in enumerate(task.preprocessors)
            if not is_cache[number] and number >= (self._behind_cache if use_cached else 0)
        ]
        self._tokenizing = _last_steps(self._steps)
        self._encoders = _encoders(task.output_features, self._tokenizing)
        if self._encoders:
            self._steps = self._steps[: -len(self._tokenizing)]
        self._spec: Any = None
        self._memory: np.ndarray | None = None
        self._tried_memory = False
        self._function: Any = None
        self._tried_function = False

    @property
    def num_examples(self) -> int | None:
        """Raw examples of the split, as far as the source tells without being read."""
        try:
            return self._source.num_input_examples(self._split) or None
        except KeyError:  # it tells for other splits
            return None

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
        files = len(self._source.list_shards(self._split))
        # With fewer examples than shards, files would leave some shards without any.
        enough = self.num_examples is None or self.num_examples >= num_shards
        by_files = (num_shards > 1 and enough) and (
            self._source.supports_arbitrary_sharding or files >= num_shards
        )
        key = (seed, self.name, epoch)
        order: dict[str, Any] = {}
        if files > 1:
            order = {"shuffle": True, "seed": int(generator("files", *key).integers(2**31))}
        if by_files:
            (index,) = permuted(np.array([shard]), num_shards, "shards", *key).tolist()
            info = import_seqio().ShardInfo(index, num_shards)
            dataset = self._open(shard_info=info, **order)
        else:
            self._read_small()
            if (memory := self._memory) is not None:
                which = {"shard": shard, "num_shards": num_shards, "epoch": epoch, "seed": seed}
                numbers = dealt(len(memory), self.name, start=start, size=size, **which)
                return (memory[each] for each in numbers)
            dataset = self._open(**order).shard(num_shards, shard)
        raw = self._serialised(dataset.skip(start * size)).batch(size).prefetch(1)
        return (np.stack(columns, axis=1) for columns in raw.as_numpy_iterator())

    def next_epoch(self, *, epoch: int, **which: int) -> int:
        """Returns the next epoch in which a shard has examples, see `Source`."""
        if self._memory is None:
            return epoch
        return next_epoch(len(self._memory), self.name, epoch=epoch, **which)

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields a window's preprocessed examples: the task's output features, in a fixed order."""
        for chunk in self._chunks(window, seed):
            arrays = {}
            for name, values in chunk.items():
                if isinstance(values, np.ndarray) and isinstance(values[0], bytes):
                    texts = self._checked_texts(name, values)
                    if name in self._encoders:
                        arrays[name] = self._encoders[name](texts)
                else:
                    arrays[name] = _split_rows(values)
            for example in zip(*arrays.values(), strict=True):
                yield dict(zip(arrays, example, strict=True))

    def _chunks(self, window: np.ndarray, seed: int) -> Iterator[Mapping[str, Any]]:
        """Yields the features of some examples at a time: texts, numbers, ragged sequences."""
        if self._encoders and not self._steps and self._is_table_of_texts():
            columns = sorted(self._spec)  # as tf.nest has ordered them
            names = self._output_names(self._spec)
            for start in range(0, len(window), _CHUNK):
                part = window[start : start + _CHUNK]
                yield {name: part[:, columns.index(name)] for name in names}
            return
        with _SEQIO_SEED:
            dataset = self._preprocessed(window, seed)
        yield from dataset.as_numpy_iterator()

    def _is_table_of_texts(self) -> bool:
        return isinstance(self._spec, dict) and all(map(_is_text, self._spec.values()))

    def _open(self, *, shuffle: bool = False, **which: Any) -> Any:
        try:
            return self._source.get_dataset(split=self._split, shuffle=shuffle, **which)
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
        if (self.num_examples or 0) > _MEMORY_EXAMPLES:
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
            dataset = self._apply(self._steps, dataset)
            spec = dataset.element_spec
            if any(name in spec and not _is_text(spec[name]) for name in self._encoders):
                dataset = self._apply(self._tokenizing, dataset)  # of lists of texts, say
            uses_seeds = seed != seqio.utils._NEXT_MAP_SEED
        finally:
            seqio.utils._NEXT_MAP_SEED = outer
        names = self._output_names(dataset.element_spec)
        # What SeqIO's `tokenize` leaves of the text it read: see `_check_texts`.
        texts = [name + _PRETOKENIZED for name in names]
        names += [name for name in texts if _is_text(dataset.element_spec.get(name))]

        def sequences(example: Any) -> dict[str, Any]:
            """Keeps what is asked for; a single number, a label say, becomes a sequence of one."""
            return {
                name: example[name]
                if _is_text(example[name]) or example[name].shape.rank
                else tf.expand_dims(example[name], 0)
                for name in names
            }

        dataset = dataset.map(sequences)
        chunks = dataset.ragged_batch(_CHUNK, row_splits_dtype=tf.int64)
        # Rewriting the graph takes 20 ms, and windows may be small.
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        options.experimental_optimization.inject_prefetch = False
        return chunks.with_options(options), uses_seeds

    def _apply(self, steps: Sequence[tuple[int, Any]], dataset: Any) -> Any:
        seqio = import_seqio()
        for number, step in steps:
            step = seqio.utils.add_kwargs_to_transform(
                step,
                sequence_length=self._lengths if number >= self._behind_cache else None,
                output_features=self._task.output_features,
            )
            dataset = step(dataset)
        return dataset

    def _checked_texts(self, name: str, texts: np.ndarray) -> list[str]:
        """Raises an InputError at text that is not UTF-8: SentencePiece would take it silently."""
        where = f"{name.removesuffix(_PRETOKENIZED)!r} of {self.name}"
        return [decode_text(text, where=where) for text in texts]

    def _output_names(self, spec: Any) -> list[str]:
        """Returns the features that examples have, checked against what the task declares."""
        names = []
        for name, feature in self._task.output_features.items():
            if name in spec:
                is_number = spec[name].shape.rank in (0, 1) and spec[name].dtype.name != "string"
                if not is_number and not (name in self._encoders and _is_text(spec[name])):
                    raise InputError(
                        f"feature {name!r} of task {self._task.name!r} is {spec[name].dtype.name} "
                        f"of shape {spec[name].shape} after preprocessing; only numbers and "
                        "sequences of them can be used"
                    )
                names.append(name)
            elif feature.required:
                raise InputError(
                    f"task {self._task.name!r} declares the feature {name!r} and its "
                    f"preprocessors return {', '.join(sorted(spec))}"
                )
        return names


def _last_steps(steps: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Returns the last steps if they are SeqIO's `tokenize`, perhaps with its `append_eos`."""
    seqio = import_seqio()
    tokenizing = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    for size in (1, 2):
        if [step for _, step in steps[-size:]] == tokenizing[:size]:
            return list(steps[-size:])
    return []


def _encoders(
    features: Mapping[str, Any], tokenizing: Sequence[Any]
) -> dict[str, Callable[[Sequence[str]], list[np.ndarray]]]:
    """Returns what does the tokenizing steps' work on each feature; {} where nothing does."""
    encoders: dict[str, Callable[[Sequence[str]], list[np.ndarray]]] = {}
    twins: dict[int, Vocabulary | None] = {}
    for name, feature in features.items() if tokenizing else ():
        key = id(feature.vocabulary)
        if key not in twins:
            try:
                twins[key] = from_seqio(feature.vocabulary)
            except InputError:  # no twin of this kind: SeqIO does it
                return {}
        twin = twins[key]
        if twin is not None:
            eos = [twin.eos_id] if len(tokenizing) > 1 and feature.add_eos else []
            encoders[name] = functools.partial(_encode, twin, eos)
    return encoders


def _encode(vocabulary: Vocabulary, eos: list[int], texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array([*ids, *eos], np.int32) for ids in vocabulary.encode_all(texts)]


def _split_rows(values: Any) -> list[np.ndarray]:
    """Returns the rows of a batch of sequences, `[n, length]` dense or ragged."""
    if isinstance(values, np.ndarray):
        return list(values)
    return np.split(values.values, values.row_splits[1:-1])


def _is_text(tensor: Any) -> bool:
    """Whether a tensor, or one that is described, is a single string."""
    return tensor is not None and tensor.dtype.name == "string" and tensor.shape.rank == 0
