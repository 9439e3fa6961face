"""The preprocessors of a SeqIO task, one window of raw examples at a time.

Preprocessing runs in TensorFlow, as SeqIO has it, except for tokenisation where it comes last: the
TensorFlow-free twin of the vocabulary gives the same ids at a tenth of the cost.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.data.importing import import_seqio
from t5lite.data.paths import decode_text
from t5lite.data.sources import Example
from t5lite.data.tasks.twins import from_seqio
from t5lite.data.user_code import place_of, reason, user_error
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.errors import InputError

BAD_TEXTS = ("stop", "skip", "replace")
_CHUNK = 64  # texts that are tokenised at a time
_AT_ONCE = 2**16  # examples that a window makes; if there are more, they are made as they are used
_MOST_EXAMPLES = 2**16  # that a raw example makes, on average over its window
INFINITE = -1  # the cardinality of a TensorFlow dataset that repeats for ever
_LAZILY = 1024  # examples at a time
# SeqIO counts the seeds of `map_over_dataset` from here; those that a preprocessor names itself are
# smaller.
_FIRST_SEED = 2**40
# The count lives in a global of SeqIO's.
SEQIO_SEED = threading.Lock()
# Ending of the features in which SeqIO's `tokenize` keeps the text.
_PRETOKENIZED = "_pretokenized"

_log = logging.getLogger(__name__)
Step = tuple[int, Any]


class Preprocessing:
    """What a task does to raw examples.

    Args:
      task: a `seqio.Task`.
      split: for messages.
      sequence_length: what preprocessors get for their argument of this name; None: no limit.
      cached: whether raw examples come from the task's cache: the steps after it remain.
      bad_texts: what to do about text that is not UTF-8: `"stop"`, `"skip"` the example, or
        `"replace"` what is wrong by U+FFFD.
    """

    def __init__(
        self,
        task: Any,
        split: str,
        *,
        sequence_length: Mapping[str, int] | None = None,
        cached: bool = False,
        bad_texts: str = "stop",
    ):
        self._task, self._name, self._lengths = task, f"{task.name}:{split}", sequence_length
        self._bad_texts, self.num_bad_texts = bad_texts, 0
        # From where on preprocessing may know the sequence lengths, and what of it is to be done.
        cache = import_seqio().CacheDatasetPlaceholder
        is_cache = [isinstance(step, cache) for step in task.preprocessors]
        self._after_cache = is_cache.index(True) + 1 if any(is_cache) else 0
        self._steps = [
            (number, step)
            for number, step in enumerate(task.preprocessors)
            if not is_cache[number] and number >= (self._after_cache if cached else 0)
        ]
        self._tokenizing = _last_steps(self._steps)
        self._encoders = _encoders(task.output_features, self._tokenizing)
        if self._encoders:
            self._steps = self._steps[: -len(self._tokenizing)]
        self._function: Any = None
        self._tracing, self.traced = threading.Lock(), False

    def examples(
        self, window: np.ndarray, spec: Any, *, seed: int, origin: Callable[[np.ndarray], str]
    ) -> Iterator[Example]:
        """Yields a window's preprocessed examples: the task's output features, in a fixed order.

        Args:
          window: `[examples, tensors]`, serialised.
          spec: of a raw example.
          seed: of `seqio.map_over_dataset`.
          origin: says where a raw example, or several, were read.
        """
        for chunk in self._chunks(window, spec, seed, origin):
            columns: dict[str, Sequence[Any]] = {}
            dropped: set[int] = set()
            for name, values in chunk.items():
                columns[name] = values
                if len(values) and isinstance(values[0], bytes):
                    texts = [self._text(name, raw, lambda: origin(window)) for raw in values]
                    dropped |= {row for row, text in enumerate(texts) if text is None}
                    columns[name] = texts
            if dropped:
                columns = {
                    name: [value for row, value in enumerate(column) if row not in dropped]
                    for name, column in columns.items()
                }
            arrays = {
                name: self._encoders[name](column) if name in self._encoders else column
                for name, column in columns.items()
                if name in self._task.output_features
            }
            for example in zip(*arrays.values(), strict=True):
                yield dict(zip(arrays, example, strict=True))

    def _chunks(
        self, window: np.ndarray, spec: Any, seed: int, origin: Callable[[np.ndarray], str]
    ) -> Iterator[Mapping[str, Any]]:
        """Yields the features of several examples at a time: texts or arrays."""
        if self._encoders and not self._steps and _is_table_of_texts(spec):
            columns = sorted(spec)  # as tf.nest has ordered them
            names = self._output_names(spec)
            for start in range(0, len(window), _CHUNK):
                part = window[start : start + _CHUNK]
                yield {name: part[:, columns.index(name)] for name in names}
            return
        try:
            made, endless = self._run(window, spec, seed)
            if (step := int(endless)) >= 0:
                raise InputError(
                    f"task {self._task.name!r}: preprocessor {place_of(self._steps[step][1])} "
                    "repeats its examples for ever\n  remove its repeat(): training starts the "
                    "next epoch by itself"
                )
            chunk = {name: _split_rows(values)[:-1] for name, values in made.items()}
            if len(next(iter(chunk.values()))) <= _AT_ONCE:
                yield chunk
            else:
                yield from self._lazily(window, spec, seed, origin)
        except InputError:
            raise
        except Exception as error:  # TensorFlow's, and any that user code raises
            raise self._explained(error, window, spec, seed, origin) from error

    def _lazily(
        self, window: np.ndarray, spec: Any, seed: int, origin: Callable[[np.ndarray], str]
    ) -> Iterator[Mapping[str, Any]]:
        """Yields the features of a window of which very many examples are made."""
        import tensorflow as tf

        columns = [tf.constant(list(column), tf.string) for column in window.T]
        dataset, _ = self._dataset(columns, spec, tf.constant(seed, tf.int64))
        left = _MOST_EXAMPLES * max(len(window), 16)
        for made in _plain(dataset.ragged_batch(_LAZILY, row_splits_dtype=tf.int64)):
            chunk = {name: _split_rows(values) for name, values in made.items()}
            left -= len(next(iter(chunk.values())))
            if left < 0:
                raise InputError(
                    f"task {self._task.name!r}: preprocessing makes more than {_MOST_EXAMPLES:,} "
                    f"examples of each raw one of {origin(window)}; does it ever end?"
                )
            yield chunk

    def _run(self, window: np.ndarray, spec: Any, seed: int) -> tuple[dict[str, Any], Any]:
        """Returns the features of a window's first examples and a blank one, and what is endless.

        One function, traced once where that is possible, does everything: an iterator of its own
        would set up the functions of all preprocessors again for each window, which takes 0.2 s.
        """
        import tensorflow as tf

        columns = [tf.constant(list(column), tf.string) for column in window.T]
        features = functools.partial(self._features, spec)
        with self._tracing:
            if not self.traced:
                self.traced = True
                texts = [tf.TensorSpec([None], tf.string)] * len(columns)
                function = tf.function(
                    features,
                    input_signature=[tf.TensorSpec([], tf.int64), *texts],
                    autograph=False,
                )
                try:
                    function.get_concrete_function()
                    self._function = function
                except InputError:
                    raise
                except Exception as error:  # some preprocessors, lookup tables say, need eager mode
                    _log.warning(
                        "%s: its preprocessors cannot be traced as one TensorFlow function and run "
                        "eagerly, which is slower: %s",
                        self._name,
                        reason(error),
                    )
                    _log.debug("%s: not traced", self._name, exc_info=True)
        return (self._function or features)(tf.constant(seed, tf.int64), *columns)

    def _features(self, spec: Any, seed: Any, *columns: Any) -> tuple[dict[str, Any], Any]:
        """Returns the features of examples and a blank one, dense or ragged, and what is endless.

        They are all of the window's, or `_AT_ONCE` + 1 of more, or none if they would never end.
        """
        import tensorflow as tf

        dataset, endless = self._dataset(columns, spec, seed)
        most = tf.where(endless < 0, tf.constant(_AT_ONCE + 1, tf.int64), 0)
        blank = {  # so that there always is an example
            name: tf.zeros([size or 0 for size in each.shape], each.dtype)
            for name, each in dataset.element_spec.items()
        }
        dataset = dataset.take(most).concatenate(tf.data.Dataset.from_tensors(blank))
        dataset = dataset.ragged_batch(_AT_ONCE + 2, row_splits_dtype=tf.int64)
        return _plain(dataset).get_single_element(), endless

    def _dataset(self, columns: Sequence[Any], spec: Any, seed: Any) -> tuple[Any, Any]:
        """Returns the dataset of a window's features, and which step is endless: -1 for none.

        A step may repeat for ever if a later one ends it, by `take` for one. The cardinality tells,
        but after some steps, `filter` for one, it is unknown.
        """
        import tensorflow as tf

        dataset, endless = self._preprocessed(columns, spec, seed, self._steps)
        made = dataset.element_spec
        if any(name in made and not is_text(made[name]) for name in self._encoders):
            dataset = self._apply(self._tokenizing, dataset)  # of lists of texts, say
        names = self._output_names(dataset.element_spec)
        # What SeqIO's `tokenize` leaves of the text it read: see `_text`.
        texts = [name + _PRETOKENIZED for name in names]
        names += [name for name in texts if is_text(dataset.element_spec.get(name))]

        def sequences(example: Any) -> dict[str, Any]:
            """Keeps what is needed; a single number, a label say, becomes a sequence of one."""
            return {
                name: example[name]
                if is_text(example[name]) or example[name].shape.rank
                else tf.expand_dims(example[name], 0)
                for name in names
            }

        dataset = dataset.map(sequences)
        is_finite = dataset.cardinality() >= 0
        return dataset, tf.where(is_finite, tf.constant(-1, tf.int64), endless)

    def _preprocessed(
        self, columns: Sequence[Any], spec: Any, seed: Any, steps: Sequence[Step]
    ) -> tuple[Any, Any]:
        """Returns the dataset of examples after some steps, and the first that repeats for ever."""
        import tensorflow as tf

        specs = tf.nest.flatten(spec, expand_composites=True)

        def parse(*strings: Any) -> Any:
            tensors = [
                string
                if is_text(spec)
                else tf.ensure_shape(tf.io.parse_tensor(string, spec.dtype), spec.shape)
                for string, spec in zip(strings, specs, strict=True)
            ]
            return tf.nest.pack_sequence_as(spec, tensors, expand_composites=True)

        if all(map(is_text, specs)):  # the common case, in which parsing has nothing to do
            slices = tf.nest.pack_sequence_as(spec, columns)
            dataset = tf.data.Dataset.from_tensor_slices(slices)
        else:
            dataset = tf.data.Dataset.from_tensor_slices(tuple(columns)).map(parse)
        endless = tf.constant(-1, tf.int64)
        with _map_seeds(seed):
            for place, step in enumerate(steps):
                dataset = self._apply([step], dataset)
                is_first = (dataset.cardinality() == INFINITE) & (endless < 0)
                endless = tf.where(is_first, tf.constant(place, tf.int64), endless)
        return dataset, endless

    def _apply(self, steps: Sequence[Step], dataset: Any) -> Any:
        seqio = import_seqio()
        for number, step in steps:
            step = seqio.utils.add_kwargs_to_transform(
                step,
                sequence_length=self._lengths if number >= self._after_cache else None,
                output_features=self._task.output_features,
            )
            dataset = step(dataset)
        return dataset

    def _text(self, name: str, raw: bytes, place: Callable[[], str]) -> str | None:
        """Returns a text; None to skip it. Text that is not UTF-8 SentencePiece takes silently."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            if self._bad_texts == "stop":
                where = f"{name.removesuffix(_PRETOKENIZED)!r} of {place()}"
                try:
                    decode_text(raw, where=where)
                except InputError as error:
                    fix = 'or set TaskData.bad_texts to "skip" or "replace"'
                    raise InputError(f"{error}\n  {fix}") from error
        self.num_bad_texts += 1
        if str(self.num_bad_texts).strip("0") == "1":  # 1, 10, 100, …
            _log.warning(
                "%s: %s not UTF-8 (bad_texts=%r): %s",
                self._name,
                "1 text is" if self.num_bad_texts == 1 else f"{self.num_bad_texts:,} texts are",
                self._bad_texts,
                repr(raw[:40])[1:],
            )
        return None if self._bad_texts == "skip" else raw.decode(errors="replace")

    def _explained(
        self,
        error: Exception,
        window: np.ndarray,
        spec: Any,
        seed: int,
        origin: Callable[[np.ndarray], str],
    ) -> InputError:
        """Returns the error of a preprocessor: which one failed, and on which example."""

        def failure(rows: np.ndarray, steps: Sequence[Step]) -> Exception | None:
            import tensorflow as tf

            columns = [tf.constant(list(column), tf.string) for column in rows.T]
            try:
                dataset, _ = self._preprocessed(columns, spec, tf.constant(seed, tf.int64), steps)
                for _ in dataset.take(_AT_ONCE):  # some steps may never end
                    pass
            except Exception as found:
                return found
            return None

        number = None  # of the first steps that are enough
        for count in range(1, len(self._steps) + 1):
            if found := failure(window, self._steps[:count]):
                number, error = count, found
                break
        if number is None:  # in the tokenising, or not to be had again
            return user_error(f"task {self._task.name!r}: preprocessing {origin(window)}", error)
        first, last = 0, len(window)  # the rows among which it fails
        if failure(window[:1], self._steps[:number]) and failure(window[-1:], self._steps[:number]):
            first = last  # whatever they are
        while last - first > 1:
            middle = (first + last) // 2
            if failure(window[first:middle], self._steps[:number]):
                last = middle
            elif failure(window[middle:last], self._steps[:number]):
                first = middle
            else:  # only together
                break
        rows = window[first:last] if first < last else window
        step = place_of(self._steps[number - 1][1])
        return user_error(f"task {self._task.name!r}: preprocessor {step} on {origin(rows)}", error)

    def _output_names(self, spec: Any) -> list[str]:
        """Returns the features that examples have, checked against what the task declares."""
        names = []
        for name, feature in self._task.output_features.items():
            if name in spec:
                is_number = spec[name].shape.rank in (0, 1) and spec[name].dtype.name != "string"
                if not is_number and not (name in self._encoders and is_text(spec[name])):
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


@contextlib.contextmanager
def _map_seeds(seed: Any) -> Iterator[None]:
    """Adds `seed`, an int64 tensor, to every seed that `seqio.map_over_dataset` takes.

    SeqIO takes them from a Python integer, which makes them constants of the graph: another window
    would need another trace. They are what `seqio.utils.map_seed_manager(seed)` would give.
    """
    seqio = import_seqio()
    import tensorflow as tf

    random = tf.data.Dataset.random

    def seeded(*args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], int | np.integer) and args[0] >= _FIRST_SEED:
            args = (seed + int(args[0] - _FIRST_SEED), *args[1:])
        return random(*args, **options)

    with SEQIO_SEED:
        outer, seqio.utils._NEXT_MAP_SEED = seqio.utils._NEXT_MAP_SEED, _FIRST_SEED
        tf.data.Dataset.random = staticmethod(seeded)
        try:
            yield
        finally:
            tf.data.Dataset.random = staticmethod(random)
            seqio.utils._NEXT_MAP_SEED = outer


def _last_steps(steps: Sequence[Step]) -> list[Step]:
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


def _plain(dataset: Any) -> Any:
    """Returns a dataset without optimisation: it takes 20 ms, and windows may be small."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def _split_rows(values: Any) -> list[np.ndarray]:
    """Returns the rows of TensorFlow's texts `[n]` or sequences `[n, length]`, dense or ragged."""
    if hasattr(values, "row_splits"):
        return np.split(values.values.numpy(), values.row_splits.numpy()[1:-1])
    return list(values.numpy())


def _is_table_of_texts(spec: Any) -> bool:
    return isinstance(spec, dict) and all(map(is_text, spec.values()))


def is_text(tensor: Any) -> bool:
    """Whether a tensor, or one that is described, is a single string."""
    return tensor is not None and tensor.dtype.name == "string" and tensor.shape.rank == 0
