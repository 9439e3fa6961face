"""Mixtures of datasets."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from t5lite.data.dataset import Dataset, sum_or_none
from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels
from t5lite.data.sources import Component, NoSplit
from t5lite.errors import InputError, unknown
from t5lite.rows import HostHalf, RowSpec

if TYPE_CHECKING:
    from t5lite.data.tasks.metric_tasks import MetricTask
    from t5lite.data.vocabularies.base import Vocabulary


def mixing_rates(
    sizes: Mapping[str, int], *, temperature: float = 1.0, maximum: int | None = None
) -> dict[str, float]:
    """Returns the rate of each part, `min(size, maximum) ** (1 / temperature)`, normalised.

    Args:
      sizes: examples by part, each > 0.
      temperature: > 0; 1 draws in proportion to the sizes, infinity would draw equally.
      maximum: upper limit of the sizes, > 0; None: no limit.
    Raises: InputError if a number is out of range, or a rate underflows to 0.
    Source: Raffel et al. 2020, arXiv:1910.10683, §3.5.2 (examples-proportional and
      temperature-scaled mixing; `maximum` is their artificial data set size limit, K).
    """
    if not 0 < temperature < math.inf:
        raise InputError(
            f"temperature = {temperature!r}: must be a finite number above 0", field="temperature"
        )
    if maximum is not None and maximum < 1:
        raise InputError(
            f"maximum = {maximum!r}: must be at least 1 example, or None", field="maximum"
        )
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"part {name!r} has {size} examples; leave it out of the mixture")
    # Relative to the largest, so that a power never overflows.
    limited = {name: min(size, maximum or size) for name, size in sizes.items()}
    largest = max(limited.values())
    weights = {name: (size / largest) ** (1 / temperature) for name, size in limited.items()}
    return _shares(weights, field=f"temperature = {temperature!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a mixture with another host half than the run's objective.

    Attributes:
      data: of any kind.
      objective: makes the same rows as the run's objective, whose device half trains on all parts:
        SpanCorruption and PrefixLM (UL2), say, or Seq2Seq for a task.
    """

    data: Dataset
    objective: HostHalf


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureData(Dataset):
    """Parts of any kind in one stream: SeqIO tasks, files and arrays, each at its rate.

    Training examples are drawn at random; each part repeats independently of the others. An epoch
    has as many examples as all parts together; at other rates than their sizes', some parts are
    read more than once in it and others in part. Validation reads every part that has validation
    examples once, in proportion to its size. `lengths`, `batch_size` and the like are the
    mixture's; the parts' values have no effect.

    Attributes:
      parts: by name, or a sequence, named by number: a `Dataset`, or a `Part` with an objective.
        All have the same vocabulary.
      rates: relative, > 0, by name or in order; None: from the parts' numbers of examples.
      temperature, maximum: see `mixing_rates`; without `rates`.
    """

    parts: Mapping[str, Any] | Sequence[Any]
    _: dataclasses.KW_ONLY
    rates: Mapping[str, float] | Sequence[float] | None = None
    temperature: float = 1.0
    maximum: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise InputError(
                "MixtureData.parts is empty: name at least one set of data",
                field="MixtureData.parts",
            )
        for name, part in _named(self.parts).items():
            if not isinstance(_data(part), Dataset):
                raise InputError(
                    f"part {name!r} is {type(_data(part)).__name__}: must be a Dataset: TaskData, "
                    "FileData, ShardedData, ArrayData, MixtureData or your own, or a Part with one",
                    field="MixtureData.parts",
                )
            if isinstance(part, Part) and not isinstance(part.objective, HostHalf):
                raise InputError(
                    f"part {name!r} has the objective {part.objective!r}: must be an objective, "
                    "with () after its class",
                    field="MixtureData.parts",
                )
        if self.rates is None:
            mixing_rates({"any": 1}, temperature=self.temperature, maximum=self.maximum)
        else:
            self._check_rates(_named(self.rates))

    def vocabulary(self) -> "Vocabulary | None":
        return self._vocabulary

    def describe(self) -> str:
        return "\n".join(
            f"{rate:.1%} {name}: {self._parts[name].describe()}"
            for name, rate in self._rates.items()
        )

    def num_examples(self, split: str) -> int | None:
        return sum_or_none(self._of_parts(split, lambda part, own: part.num_examples(own)))

    def class_counts(self, split: str) -> dict[str, dict[str, int]]:
        total: dict[str, collections.Counter[str]] = {}
        for classes in self._of_parts(split, lambda part, own: part.class_counts(own)):
            for feature, counts in classes.items():
                total.setdefault(feature, collections.Counter()).update(counts)
        return {feature: dict(counts) for feature, counts in total.items()}

    def add_eos(self) -> dict[str, bool]:
        """Returns whether each feature ends with EOS, by the first part that has it."""
        parts = reversed(self._parts.values())
        return {name: ends for part in parts for name, ends in part.add_eos().items()}

    def labels(self) -> dict[str, list[str]]:
        """Returns the labels of the parts, which `components` checks to be numbered alike."""
        return {
            name: names for part in self._parts.values() for name, names in part.labels().items()
        }

    def with_labels(self, labels: Labels) -> Self:
        def numbered(part: Any) -> Any:
            if isinstance(part, Part):
                return dataclasses.replace(part, data=numbered(part.data))
            return part.with_labels(labels)

        parts = {name: numbered(part) for name, part in _named(self.parts).items()}
        return dataclasses.replace(self, parts=parts)

    def input_format(self) -> InputFormat:
        """Returns the parts' format if all have the same."""
        formats = {part.input_format() for part in self._parts.values()}
        return formats.pop() if len(formats) == 1 else super().input_format()

    def metric_tasks(self) -> list["MetricTask"]:
        return [task for part in self._parts.values() for task in part.metric_tasks()]

    @functools.cached_property
    def _parts(self) -> dict[str, Dataset]:
        # Preprocessors may cut to the lengths, which are the mixture's.
        own = {"lengths": self.lengths, "batch_size": self.batch_size, "num_shards": None}
        return {
            name: dataclasses.replace(_data(part), **own)
            for name, part in _named(self.parts).items()
        }

    @functools.cached_property
    def _vocabulary(self) -> "Vocabulary | None":
        vocabularies = {name: part.vocabulary() for name, part in self._parts.items()}
        first, expected = next(iter(vocabularies.items()))
        for name, vocabulary in vocabularies.items():
            if getattr(vocabulary, "fingerprint", None) != getattr(expected, "fingerprint", None):
                raise InputError(
                    f"part {name!r} has another vocabulary ({vocabulary!r}) than {first!r} "
                    f"({expected!r}); t5lite trains on one vocabulary"
                )
        return expected

    @functools.cached_property
    def _rates(self) -> dict[str, float]:
        """The normalised rate of each part, in `(0, 1]`."""
        if self.rates is not None:
            rates = _named(self.rates)
            return _shares({name: rates[name] for name in self._parts}, field="MixtureData.rates")
        sizes = {}
        for name, part in self._parts.items():
            size = part.num_examples(part.split_of("train"))
            if size is None:
                raise InputError(
                    f"part {name!r} has an unknown number of examples; "
                    "give MixtureData.rates, a number for each part"
                )
            sizes[name] = size
        return mixing_rates(sizes, temperature=self.temperature, maximum=self.maximum)

    def validation_parts(self, objective: HostHalf) -> list[str]:
        components = self.components(self.split_of("validation"), objective)
        names = list(dict.fromkeys(str(component.part) for component in components))
        return names if len(names) > 1 else []

    def components(self, split: str, objective: HostHalf) -> list[Component]:
        self.vocabulary()  # refuses several before data is read
        components: list[Component] = []
        classes: dict[str, tuple[str, list[str]]] = {}
        missing: NoSplit | None = None
        for name, part in self._parts.items():
            try:
                own = part.split_of(split)
                sources = part.components(own, self._objective_of(name, objective))
            except InputError as error:
                if split != "validation" or not isinstance(error, NoSplit):
                    raise InputError(f"part {name!r}: {error}") from error
                missing = error
                continue
            _check_classes(name, part.class_counts(own), classes)
            total = sum(component.rate for component in sources)
            for component in sources:
                order = sum(c.source.name == component.source.name for c in components)
                rate = self._rates[name] * component.rate / total
                components.append(component._replace(rate=rate, part=name, order=order))
        if not components and missing is not None:
            raise missing
        return components

    def _objective_of(self, name: str, objective: HostHalf) -> HostHalf:
        """Returns a part's objective; raises if its rows differ from the run's objective's."""
        part = _named(self.parts)[name]
        if not isinstance(part, Part):
            return objective
        own = part.objective.alike(objective)
        rows, expected = own.rows(self.lengths), objective.rows(self.lengths)
        if rows != expected:
            raise InputError(
                f"{type(own).__name__} makes the rows {_shown(rows)}, and the run's "
                f"{type(objective).__name__} {_shown(expected)}: parts need the same rows",
                field="MixtureData.parts",
            )
        return own

    def _of_parts(self, split: str, ask: Callable[[Dataset, str], Any]) -> list[Any]:
        """Returns `ask(part, split)` of each part that has the split."""
        answers = []
        for part in self._parts.values():
            try:
                answers.append(ask(part, part.split_of(split)))
            except NoSplit:
                if split != "validation":
                    raise
        return answers

    def _check_rates(self, rates: Mapping[str, Any]) -> None:
        parts = _named(self.parts)
        for name in rates:
            if name not in parts:
                raise unknown("part in MixtureData.rates", name, parts)
        for name in parts:
            rate = rates.get(name)
            if isinstance(rate, bool) or not isinstance(rate, int | float):
                raise InputError(f"rates[{name!r}] is {rate!r}: every part needs a number above 0")
            if not 0 < rate < math.inf:
                raise InputError(
                    f"rates[{name!r}] is {rate!r}: must be finite and above 0; "
                    "leave the part out of the mixture instead"
                )


def _shares(weights: Mapping[str, float], *, field: str) -> dict[str, float]:
    largest = max(weights.values())  # the sum of all might overflow
    total = sum(weight / largest for weight in weights.values())
    shares = {name: weight / largest / total for name, weight in weights.items()}
    for name, share in shares.items():
        if not share:
            raise InputError(
                f"{field}: the share of part {name!r} is too small for a float; make the parts "
                "more equal, or leave it out of the mixture",
                field=field,
            )
    return shares


def _check_classes(
    name: str,
    counts: Mapping[str, Mapping[str, int]],
    earlier: dict[str, tuple[str, list[str]]],
) -> None:
    """Refuses a part that numbers classes in another way than earlier parts."""
    for feature, classes in counts.items():
        first, expected = earlier.setdefault(feature, (name, list(classes)))
        for number, (own, its) in enumerate(itertools.zip_longest(classes, expected)):
            if own != its:
                raise InputError(
                    f"part {name!r}: class {number} of {feature!r} is {own!r}, and {its!r} in "
                    f"part {first!r}; give both the same Class.classes (or Tags.classes)"
                )


def _named(values: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(values, Mapping):
        return dict(values)
    return {str(number): value for number, value in enumerate(values)}


def _data(part: Any) -> Any:
    return part.data if isinstance(part, Part) else part


def _shown(specs: Mapping[str, RowSpec]) -> str:
    return ", ".join(f"{name} {[spec.length, *spec.inner]}" for name, spec in specs.items())
