"""The preprocessors of a SeqIO task, one window of raw examples at a time.

They run in TensorFlow, except for tokenisation where it comes last: the TensorFlow-free twin of the
vocabulary gives the same ids at a tenth of the cost.
"""

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
from t5lite.data.tasks.windows import (
    INFINITE,
    Window,
    is_text,
    map_seeds,
    split_rows,
    unoptimised,
)
from t5lite.data.user_code import place_of, reason, user_error
from t5lite.errors import InputError

BAD_TEXTS = ("stop", "skip", "replace")
_CHUNK = 64  # texts that are tokenised at a time
_AT_ONCE = 2**16  # examples of a window; further ones are made as they are used
_LAZILY = 1024  # of those, examples at a time
_MOST_EXAMPLES = 2**16  # that a raw example makes, on average over its window
_PRETOKENIZED = "_pretokenized"  # ending of the features in which SeqIO's `tokenize` keeps the text

_log = logging.getLogger(__name__)
Step = tuple[int, Any]
Encoder = Callable[[Sequence[str]], list[np.ndarray]]


class Preprocessing:
    """The preprocessors of a `seqio.Task`.

    `sequence_length` is the preprocessors' argument of this name, None for no limit; if `cached`,
    raw examples come from the task's cache, so that only later steps remain; `bad_texts` is
    `TaskData`'s.
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
        placeholder = import_seqio().CacheDatasetPlaceholder
        steps = list(enumerate(task.preprocessors))
        caches = [number for number, step in steps if isinstance(step, placeholder)]
        # Steps from here on may know the sequence lengths.
        self._after_cache = caches[0] + 1 if caches else 0
        first = self._after_cache if cached else 0
        self._steps = [(i, step) for i, step in steps if i not in caches and i >= first]
        self._tokenizing = _tokenizing_steps(self._steps)
        self._encoders = _encoders(task.output_features, self._tokenizing)
        if self._encoders:
            self._steps = self._steps[: -len(self._tokenizing)]
        self._function: Any = None
        self._tracing, self.traced = threading.Lock(), False

    def examples(self, window: Window) -> Iterator[Example]:
        """Yields a window's preprocessed examples: the task's output features, in a fixed order."""
        for chunk in self._chunks(window):
            texts = {
                name: [self._text(name, raw, window) for raw in values]
                for name, values in chunk.items()
                if len(values) and isinstance(values[0], bytes)
            }
            columns = {**chunk, **texts}
            skipped = {i for rows in texts.values() for i, text in enumerate(rows) if text is None}
            if skipped:
                columns = {
                    name: [value for row, value in enumerate(column) if row not in skipped]
                    for name, column in columns.items()
                }
            arrays = {
                name: self._encoders[name](column) if name in self._encoders else column
                for name, column in columns.items()
                if name in self._task.output_features
            }
            for example in zip(*arrays.values(), strict=True):
                yield dict(zip(arrays, example, strict=True))

    def _chunks(self, window: Window) -> Iterator[Mapping[str, Any]]:
        """Yields the features of several examples at a time: texts or arrays."""
        spec = window.spec
        if self._encoders and not self._steps and _is_table_of_texts(spec):
            columns = sorted(spec)  # as tf.nest has ordered them
            names = self._output_names(spec)
            for start in range(0, len(window.rows), _CHUNK):
                part = window.rows[start : start + _CHUNK]
                yield {name: part[:, columns.index(name)] for name in names}
            return
        try:
            features, endless = self._run(window)
            if (step := int(endless)) >= 0:
                raise InputError(
                    f"task {self._task.name!r}: preprocessor {place_of(self._steps[step][1])} "
                    "repeats its examples for ever\n  remove its repeat(): training starts the "
                    "next epoch by itself"
                )
            chunk = {name: split_rows(values)[:-1] for name, values in features.items()}
            if len(next(iter(chunk.values()))) <= _AT_ONCE:
                yield chunk
            else:
                yield from self._lazily(window)
        except InputError:
            raise
        except Exception as error:  # TensorFlow's, and those of user code
            raise self._explained(error, window) from error

    def _lazily(self, window: Window) -> Iterator[Mapping[str, Any]]:
        """Yields the features of a window that makes very many examples."""
        import tensorflow as tf

        seed, columns = window.tensors()
        dataset, _ = self._dataset(columns, window.spec, seed)
        left = _MOST_EXAMPLES * max(len(window.rows), 16)
        for features in unoptimised(dataset.ragged_batch(_LAZILY, row_splits_dtype=tf.int64)):
            chunk = {name: split_rows(values) for name, values in features.items()}
            left -= len(next(iter(chunk.values())))
            if left < 0:
                raise InputError(
                    f"task {self._task.name!r}: preprocessing makes more than {_MOST_EXAMPLES:,} "
                    f"examples of each raw one of {window.origin(window.rows)}; does it ever end?"
                )
            yield chunk

    def _run(self, window: Window) -> tuple[dict[str, Any], Any]:
        """Returns `_features` of a window, by one function that is traced once where possible.

        An iterator for each window would set up the functions of all preprocessors again: 0.2 s.
        """
        import tensorflow as tf

        seed, columns = window.tensors()
        features = functools.partial(self._features, window.spec)
        with self._tracing:
            if not self.traced:
                self.traced = True
                texts = [tf.TensorSpec([None], tf.string)] * len(columns)
                signature = [tf.TensorSpec([], tf.int64), *texts]
                function = tf.function(features, input_signature=signature, autograph=False)
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
        return (self._function or features)(seed, *columns)

    def _features(self, spec: Any, seed: Any, *columns: Any) -> tuple[dict[str, Any], Any]:
        """Returns the features of examples, dense or ragged, and the endless step; see `_dataset`.

        They are all of the window's, or `_AT_ONCE` + 1 of more, or none if endless; then a blank
        one, so that there always is an example.
        """
        import tensorflow as tf

        dataset, endless = self._dataset(columns, spec, seed)
        most = tf.where(endless < 0, tf.constant(_AT_ONCE + 1, tf.int64), 0)
        blank = {
            name: tf.zeros([size or 0 for size in feature.shape], feature.dtype)
            for name, feature in dataset.element_spec.items()
        }
        dataset = dataset.take(most).concatenate(tf.data.Dataset.from_tensors(blank))
        dataset = dataset.ragged_batch(_AT_ONCE + 2, row_splits_dtype=tf.int64)
        return unoptimised(dataset).get_single_element(), endless

    def _dataset(self, columns: Sequence[Any], spec: Any, seed: Any) -> tuple[Any, Any]:
        """Returns the dataset of a window's features, and which step is endless: -1 for none.

        A step may repeat for ever if a later one, such as `take`, ends it. The cardinality shows
        it, but is unknown after some steps, such as `filter`.
        """
        import tensorflow as tf

        dataset, endless = self._preprocessed(columns, spec, seed, self._steps)
        after = dataset.element_spec
        if any(name in after and not is_text(after[name]) for name in self._encoders):
            dataset = self._apply(self._tokenizing, dataset)  # of lists of texts, say
        names = self._output_names(dataset.element_spec)
        # The text that SeqIO's `tokenize` read, to be checked by `_text`.
        texts = [name + _PRETOKENIZED for name in names]
        names += [name for name in texts if is_text(dataset.element_spec.get(name))]

        def sequences(example: Any) -> dict[str, Any]:
            """Selects features; a single number, a label say, becomes a sequence of one."""
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
        """Returns the dataset of examples after some steps, and the first endless step."""
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

        if all(map(is_text, specs)):  # the common case, which needs no parsing
            slices = tf.nest.pack_sequence_as(spec, columns)
            dataset = tf.data.Dataset.from_tensor_slices(slices)
        else:
            dataset = tf.data.Dataset.from_tensor_slices(tuple(columns)).map(parse)
        endless = tf.constant(-1, tf.int64)
        with map_seeds(seed):
            for index, step in enumerate(steps):
                dataset = self._apply([step], dataset)
                is_first = (dataset.cardinality() == INFINITE) & (endless < 0)
                endless = tf.where(is_first, tf.constant(index, tf.int64), endless)
        return dataset, endless

    def _apply(self, steps: Sequence[Step], dataset: Any) -> Any:
        for number, step in steps:
            step = import_seqio().utils.add_kwargs_to_transform(
                step,
                sequence_length=self._lengths if number >= self._after_cache else None,
                output_features=self._task.output_features,
            )
            dataset = step(dataset)
        return dataset

    def _text(self, name: str, raw: bytes, window: Window) -> str | None:
        """Returns a text; None to skip it. SentencePiece would take invalid UTF-8 silently."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            if self._bad_texts == "stop":
                origin = f"{name.removesuffix(_PRETOKENIZED)!r} of {window.origin(window.rows)}"
                try:
                    decode_text(raw, where=origin)
                except InputError as error:
                    fix = 'or set TaskData.bad_texts to "skip" or "replace"'
                    raise InputError(f"{error}\n  {fix}", field="TaskData.bad_texts") from error
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

    def _failure(self, window: Window, num_steps: int) -> Exception | None:
        """Returns the error of the first steps on a window, if any."""
        seed, columns = window.tensors()
        try:
            dataset, _ = self._preprocessed(columns, window.spec, seed, self._steps[:num_steps])
            for _ in dataset.take(_AT_ONCE):  # some steps may never end
                pass
        except Exception as error:
            return error
        return None

    def _explained(self, error: Exception, window: Window) -> InputError:
        """Returns the error of a preprocessor: which one failed, and on which example."""
        task = f"task {self._task.name!r}"
        for num_steps in range(1, len(self._steps) + 1):
            if failure := self._failure(window, num_steps):
                break
        else:  # in the tokenising, or not repeatable
            return user_error(f"{task}: preprocessing {window.origin(window.rows)}", error)
        rows = self._failing_part(window, num_steps).rows
        step = place_of(self._steps[num_steps - 1][1])
        return user_error(f"{task}: preprocessor {step} on {window.origin(rows)}", failure)

    def _failing_part(self, window: Window, num_steps: int) -> Window:
        """Returns the smallest part of a window, by bisection, on which the first steps fail."""
        while len(window.rows) > 1:
            middle = len(window.rows) // 2
            halves = window.part(0, middle), window.part(middle, len(window.rows))
            failing = next((half for half in halves if self._failure(half, num_steps)), None)
            if failing is None:  # only together
                return window
            window = failing
        return window

    def _output_names(self, spec: Any) -> list[str]:
        """Returns the features that examples have, checked against the task's declaration."""
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


def _tokenizing_steps(steps: Sequence[Step]) -> list[Step]:
    """Returns the last steps if they are SeqIO's `tokenize`, perhaps with its `append_eos`."""
    seqio = import_seqio()
    tokenizing = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    for size in (1, 2):
        if [step for _, step in steps[-size:]] == tokenizing[:size]:
            return list(steps[-size:])
    return []


def _encoders(features: Mapping[str, Any], tokenizing: Sequence[Step]) -> dict[str, Encoder]:
    """Returns TensorFlow-free substitutes of the tokenizing steps by feature; {} for none."""
    encoders: dict[str, Encoder] = {}
    if not tokenizing:
        return encoders
    vocabularies = {id(feature.vocabulary): feature.vocabulary for feature in features.values()}
    try:
        twins = {key: from_seqio(vocabulary) for key, vocabulary in vocabularies.items()}
    except InputError:  # SeqIO alone knows a vocabulary
        return {}
    for name, feature in features.items():
        if (twin := twins[id(feature.vocabulary)]) is not None:
            eos = [twin.eos_id] if len(tokenizing) > 1 and feature.add_eos else []
            encoders[name] = functools.partial(_encode, twin, eos)
    return encoders


def _encode(vocabulary: Any, eos: list[int], texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array([*ids, *eos], np.int32) for ids in vocabulary.encode_all(texts)]


def _is_table_of_texts(spec: Any) -> bool:
    return isinstance(spec, dict) and all(map(is_text, spec.values()))
