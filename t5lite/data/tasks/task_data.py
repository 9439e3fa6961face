"""SeqIO tasks and mixtures as data."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t5lite.data.dataset import Dataset
from t5lite.data.demo.tasks import DemoTask, TextSource
from t5lite.data.importing import import_seqio
from t5lite.data.paths import as_path
from t5lite.data.sources import Component, NoSplit, Source
from t5lite.data.tasks.metric_tasks import MetricTask
from t5lite.data.tasks.preprocessing import BAD_TEXTS
from t5lite.data.tasks.registry import demo_task, describe, get_task
from t5lite.data.tasks.source import SeqioSource
from t5lite.data.tasks.twins import from_seqio
from t5lite.data.user_code import user_error
from t5lite.errors import InputError, unknown
from t5lite.rows import HostHalf

if TYPE_CHECKING:
    from t5lite.data.vocabularies.base import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData(Dataset):
    """A SeqIO Task or Mixture: t5lite's own, or one written for T5X.

    Attributes:
      task: name of a task or mixture, or the object itself.
      module: module or modules to import, which register the task.
      split: the training split.
      validation_split: the validation split; None for none.
      use_cached: whether to read the cache of `t5lite cache --format=seqio` or `seqio_cache_tasks`.
      cache_dirs: folders of caches, besides SeqIO's own.
      bad_texts: for text that is not UTF-8: `"stop"`, `"skip"` the example, or `"replace"` the
        wrong bytes by U+FFFD; their number is logged. May change when a run resumes.
    """

    task: Any
    _: dataclasses.KW_ONLY
    module: str | Sequence[str] | None = None
    split: str = "train"
    validation_split: str | None = "validation"
    use_cached: bool = False
    cache_dirs: Sequence[str] = ()
    bad_texts: str = "stop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bad_texts not in BAD_TEXTS:
            field = "TaskData.bad_texts"
            raise unknown(field, self.bad_texts, BAD_TEXTS, field=field)

    def vocabulary(self) -> "Vocabulary | None":
        """Returns the features' single, supported vocabulary; None if all of them are ids."""
        return self._vocabulary

    def describe(self) -> str:
        return describe(self.provider)

    def add_eos(self) -> dict[str, bool]:
        return {
            name: feature.add_eos
            for task in reversed(self._tasks)
            for name, feature in task.output_features.items()
        }

    def num_examples(self, split: str) -> int | None:
        counts = [
            self._source(task, split).num_examples for task in self._tasks if split in task.splits
        ]
        return None if None in counts or not counts else sum(filter(None, counts))

    def metric_tasks(self) -> list[MetricTask]:
        tasks = (
            MetricTask(task, self.validation_split, self.lengths, use_cached=self.use_cached)
            for task in self._tasks
            if self.validation_split is not None and self.validation_split in task.splits
        )
        return [task for task in tasks if task.metrics]

    @functools.cached_property
    def provider(self) -> Any:
        """The `seqio.Task` or `seqio.Mixture`, or a `DemoTask`, which needs no SeqIO."""
        if self.cache_dirs:
            folders = [self.cache_dirs] if isinstance(self.cache_dirs, str) else self.cache_dirs
            import_seqio().add_global_cache_dirs([str(as_path(folder)) for folder in folders])
        if not isinstance(self.task, str):
            return self.task
        demo = None if self.module or self.use_cached else demo_task(self.task)
        return demo or get_task(self.task, module=self.module)

    @functools.cached_property
    def _vocabulary(self) -> "Vocabulary | None":
        first, owner = None, ""
        for task in self._tasks:
            for name, feature in task.output_features.items():
                if type(feature.vocabulary).__name__ == "PassThroughVocabulary":
                    continue  # ids from elsewhere: beside texts, they are labels and the like
                if first is None:
                    first, owner = feature.vocabulary, f"{name!r} of {task.name!r}"
                elif feature.vocabulary != first:
                    raise InputError(
                        f"feature {name!r} of task {task.name!r} has another vocabulary than "
                        f"{owner}; t5lite trains on one vocabulary"
                    )
        return None if first is None else from_seqio(first)

    @property
    def _tasks(self) -> list[Any]:
        return list(getattr(self.provider, "tasks", [self.provider]))

    @functools.cached_property
    def _opened(self) -> dict[tuple[str, bool], list[tuple[Source, float]]]:
        return {}

    def split_of(self, use: str) -> str:
        if use == "validation" and self.validation_split is None:
            field = "validation_split"
            raise NoSplit(f"{field} is None; name the split to validate on", field=field)
        return {"train": self.split, "validation": self.validation_split or ""}.get(use, use)

    def components(self, split: str, objective: HostHalf) -> list[Component]:
        # Preprocessors that know `sequence_length` truncate to it: right for tasks that make the
        # objective's features, and wrong for objectives that make them out of whole texts.
        made_here = set(objective.features) <= set(self.provider.output_features)
        knows_lengths = made_here and not objective.whole_texts
        key = (split, knows_lengths)
        if key not in self._opened:  # sources may hold examples in memory
            self._opened[key] = self._open(split, self.lengths if knows_lengths else None)
        return [Component(source, rate, objective) for source, rate in self._opened[key]]

    def _rate(self, task: Any) -> float:
        """Returns a task's rate in the mixture; sizes that it needs are counted."""
        with contextlib.suppress(Exception):  # raised again below, unless a size was missing
            return float(self.provider.get_rate(task))
        with _counted(self._tasks, use_cached=self.use_cached):
            try:
                return float(self.provider.get_rate(task))
            except Exception as error:
                rate = f"mixture {self.provider.name!r}: the rate of task {task.name!r}"
                fix = "if it needs the number of examples, give the source num_input_examples"
                raise user_error(rate, error, fix=fix) from error

    def _open(
        self, split: str, sequence_length: Mapping[str, int] | None
    ) -> list[tuple[Source, float]]:
        with_split = [task for task in self._tasks if split in task.splits]
        if not with_split:
            splits = sorted({name for task in self._tasks for name in task.splits})
            raise NoSplit(
                f"task {self.provider.name!r} has no split {split!r}; it has {', '.join(splits)}"
            )
        sources: list[tuple[Source, float]] = []
        for task in with_split:
            rate = 1.0 if task is self.provider else self._rate(task)
            if not 0 < rate < math.inf:
                raise InputError(
                    f"mixture {self.provider.name!r} gives task {task.name!r} the rate {rate}; "
                    "rates must be > 0: leave the task out of the mixture"
                )
            sources.append((self._source(task, split, sequence_length), rate))
        return sources

    def _source(
        self, task: Any, split: str, sequence_length: Mapping[str, int] | None = None
    ) -> Source:
        if isinstance(task, DemoTask):
            return TextSource(f"{task.name}:{split}", task.columns(split), task.output_features)
        return SeqioSource(
            task,
            split,
            sequence_length=sequence_length,
            use_cached=self.use_cached,
            bad_texts=self.bad_texts,
        )


@contextlib.contextmanager
def _counted(tasks: Sequence[Any], *, use_cached: bool) -> Iterator[None]:
    """Gives sources without `num_input_examples` the counts of their small splits.

    `seqio.mixing_rate_num_examples` calls it, also for the tasks of a mixture in a mixture.
    """
    counts: dict[int, tuple[Any, dict[str, int | None]]] = {}
    for task in tasks:
        sizes = {
            split: SeqioSource(task, split, use_cached=use_cached).count() for split in task.splits
        }
        counts[id(task.source)] = task.source, sizes
    for source, sizes in counts.values():
        source.num_input_examples = sizes.get
    try:
        yield
    finally:
        for source, _ in counts.values():
            del source.num_input_examples
