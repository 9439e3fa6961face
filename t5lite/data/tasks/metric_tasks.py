"""SeqIO tasks with metrics, evaluated as `seqio.Evaluator` does."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.importing import import_seqio
from t5lite.data.tasks.windows import SEQIO_SEED
from t5lite.data.user_code import user_error
from t5lite.errors import InputError

# SeqIO's names of the model outputs that metrics are computed from.
KNOWN_OUTPUTS = ("PREDICTION", "SCORE", "PREDICTION_WITH_AUX")
_SEED = 42  # `seqio.Evaluator`'s own


class MetricExamples(NamedTuple):
    examples: list[dict[str, Any]]  # all features, as SeqIO passes them to `postprocess_fn`
    total: int  # of the split
    truncated: int  # of `examples`, those with a truncated feature


@dataclasses.dataclass(frozen=True, eq=False)
class MetricTask:
    """A `seqio.Task` with `metric_fns` or `metric_objs`, and the split to evaluate."""

    task: Any
    split: str
    lengths: Mapping[str, int]  # of its features, in tokens; longer ones are truncated
    use_cached: bool = False  # whether examples come from the task's cache

    @property
    def name(self) -> str:
        return self.task.name

    @functools.cached_property
    def metrics(self) -> list[Any]:
        """SeqIO's metric objects, `metric_fns` included."""
        with self._user_code("metric_fns"):
            return list(self.task.metric_objs)

    @property
    def outputs(self) -> set[str]:
        """SeqIO's names of the model outputs that the metrics need: `PREDICTION`, `SCORE`, …"""
        types = {metric.model_output_type for metric in self.metrics}
        return {kind.name for kind in import_seqio().metrics.ModelOutputType if kind in types}

    def examples(self, *, count: int | None, seed: int) -> MetricExamples:
        """Reads the split, or a random sample of at most `count` examples."""
        lengths = {name: self.lengths.get(name) for name in self.task.output_features}
        with self._user_code(f"reading {self.split!r}"):
            with SEQIO_SEED:
                dataset = self.task.get_dataset(
                    sequence_length=lengths,
                    split=self.split,
                    shuffle=False,
                    seed=_SEED,
                    use_cached=self.use_cached and self.task.supports_caching,
                    trim_output_features=False,
                )
            examples = list(dataset.as_numpy_iterator())
        total = len(examples)
        if count is not None and count < total:
            chosen = np.random.default_rng(seed).permutation(total)[:count]
            examples = [examples[number] for number in sorted(chosen)]
        cut = [
            {
                # Single numbers have no length.
                name: value[: lengths.get(name)] if np.ndim(value) else value
                for name, value in example.items()
            }
            for example in examples
        ]
        truncated = sum(
            any(np.shape(short[name]) != np.shape(value) for name, value in example.items())
            for example, short in zip(examples, cut, strict=True)
        )
        return MetricExamples(cut, total, truncated)

    def compute(
        self, examples: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the metrics' values: numbers, and SeqIO's texts, images and the like.

        Args:
          examples: from `examples`.
          outputs: the model's, by the names in `outputs`: predicted ids `[examples, length]`,
            scores `[examples]`, or a pair of predicted ids and auxiliary values by name.
        Raises: InputError if a metric or `postprocess_fn` fails, or two metrics have one name.
        """
        seqio = import_seqio()
        results: dict[str, Any] = {}
        features, target = self.task.output_features, "targets"
        for metric in self.metrics:
            output = outputs[metric.model_output_type.name]
            with self._user_code("a metric or postprocess_fn"):
                measured = metric.from_model_output(examples, output, features, target)
                if isinstance(measured, seqio.metrics.CollectingMetric):
                    values, _ = measured.actual_compute(examples, features, target)
                else:
                    values = measured.compute()
                values = dict(values)
            for name, value in values.items():
                if name in results:
                    raise InputError(f"task {self.name!r} has two metrics called {name!r}")
                scalar = isinstance(value, seqio.metrics.Scalar)
                results[name] = value.value if scalar else value
        return results

    @contextlib.contextmanager
    def _user_code(self, code: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise user_error(f"task {self.name!r}: {code}", error) from error
