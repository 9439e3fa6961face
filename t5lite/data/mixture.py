"""Several sets of data as one, each drawn from at its rate."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t5lite.data.batches import Objective
from t5lite.data.pipeline import _Data
from t5lite.data.sources import Source
from t5lite.errors import InputError, unknown

if TYPE_CHECKING:
    from t5lite.data.vocabularies import Vocabulary


def mixing_rates(
    sizes: Mapping[str, int], *, temperature: float = 1.0, maximum: int | None = None
) -> dict[str, float]:
    """Returns the rate of each part: `min(size, maximum) ** (1 / temperature)`, as a share of all.

    Args:
      sizes: examples by part, each > 0.
      temperature: > 0; 1 draws in proportion to the sizes, a large one equally from all.
      maximum: sizes count as at most this many examples; > 0. None: no limit.

    Raises:
      InputError: if a number is out of range, naming it.

    Source: Raffel et al. 2020, arXiv:1910.10683, §3.5.2 (examples-proportional and
      temperature-scaled mixing; `maximum` is their artificial data set size limit, K).
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature = {temperature!r}: must be a finite number above 0")
    if maximum is not None and maximum < 1:
        raise InputError(f"maximum = {maximum!r}: must be at least 1 example, or None")
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"part {name!r} has {size} examples; leave it out of the mixture")
    # Relative to the largest, so that a power never overflows.
    counted = {name: min(size, maximum or size) for name, size in sizes.items()}
    largest = max(counted.values())
    scaled = {name: (size / largest) ** (1 / temperature) for name, size in counted.items()}
    total = sum(scaled.values())
    return {name: each / total for name, each in scaled.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureData(_Data):
    """Parts of any kind in one stream: SeqIO tasks, files and arrays, each at its rate.

    Training examples are drawn at random, each part starting anew when it ends, with an order and
    an end of its own. Validation reads every part that has validation examples once, taking turns.
    `lengths`, `batch_size` and the like are the mixture's; those of the parts have no effect.

    Attributes:
      parts: by name, or a sequence, whose parts are called by their numbers. All have the same
        vocabulary.
      rates: relative, > 0, by name or in order; None: from the parts' numbers of examples.
      temperature: see `mixing_rates`; for when there are no `rates`.
      maximum: likewise.
    """

    parts: Mapping[str, Any] | Sequence[Any]
    _: dataclasses.KW_ONLY
    rates: Mapping[str, float] | Sequence[float] | None = None
    temperature: float = 1.0
    maximum: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise InputError("MixtureData.parts is empty: name at least one set of data")
        for name, part in _named(self.parts).items():
            if not isinstance(part, _Data):
                raise InputError(
                    f"part {name!r} is {type(part).__name__}: must be TaskData, FileData, "
                    "ArrayData or another MixtureData"
                )
        if self.rates is None:
            mixing_rates({"any": 1}, temperature=self.temperature, maximum=self.maximum)
        else:
            self._check_rates(_named(self.rates))

    def vocabulary(self) -> "Vocabulary | None":
        """Returns the parts' one vocabulary.

        Raises:
          InputError: if they have several.
        """
        return self._vocabulary

    def describe(self) -> str:
        """Returns a line for each part, behind its share of the examples."""
        return "\n".join(
            f"{rate:.1%} {name}: {self._parts[name].describe()}"
            for name, rate in self._rates.items()
        )

    def num_examples(self, split: str) -> int | None:
        """Returns how many examples the parts have together; None if one does not know."""
        counts = [part.num_examples(_own_split(part, split)) for part in self._parts.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def class_counts(self, split: str) -> dict[str, dict[str, int]]:
        """Returns how often each class occurs in all parts together."""
        total: dict[str, dict[str, int]] = {}
        for part in self._parts.values():
            for feature, counts in part.class_counts(_own_split(part, split)).items():
                classes = total.setdefault(feature, {})
                for name, count in counts.items():
                    classes[name] = classes.get(name, 0) + count
        return total

    @functools.cached_property
    def _parts(self) -> dict[str, _Data]:
        # Preprocessors may cut to the lengths, which are the mixture's.
        own = {"lengths": self.lengths, "batch_size": self.batch_size, "num_shards": None}
        return {name: dataclasses.replace(part, **own) for name, part in _named(self.parts).items()}

    @functools.cached_property
    def _vocabulary(self) -> "Vocabulary | None":
        vocabularies = {name: part.vocabulary() for name, part in self._parts.items()}
        (first, vocabulary), *others = vocabularies.items()
        for name, other in others:
            if getattr(other, "fingerprint", None) != getattr(vocabulary, "fingerprint", None):
                raise InputError(
                    f"part {name!r} has another vocabulary ({other!r}) than {first!r} "
                    f"({vocabulary!r}); t5lite trains on one vocabulary"
                )
        return vocabulary

    @functools.cached_property
    def _rates(self) -> dict[str, float]:
        """The share of each part, in `(0, 1]`."""
        if self.rates is not None:
            rates = _named(self.rates)
            return {name: rates[name] / sum(rates.values()) for name in self._parts}
        sizes = {}
        for name, part in self._parts.items():
            size = part.num_examples(_own_split(part, "train"))
            if size is None:
                raise InputError(
                    f"part {name!r} does not know how many examples it has; "
                    "give MixtureData.rates, a number for each part"
                )
            sizes[name] = size
        return mixing_rates(sizes, temperature=self.temperature, maximum=self.maximum)

    def _sources(self, split: str, objective: Objective) -> list[tuple[Source, float]]:
        self.vocabulary()  # several are refused before anything is read
        sources: list[tuple[Source, float]] = []
        missing: InputError | None = None
        for name, part in self._parts.items():
            try:
                found = part._sources(_own_split(part, split), objective)
            except InputError as error:
                if split != "validation":
                    raise InputError(f"part {name!r}: {error}") from error
                missing = error
                continue
            total = sum(rate for _, rate in found)
            sources += [(source, self._rates[name] * rate / total) for source, rate in found]
        if not sources and missing is not None:
            raise missing
        return sources

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


def _named(values: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Returns a mapping as it is, and a sequence by number."""
    if isinstance(values, Mapping):
        return dict(values)
    return {str(number): value for number, value in enumerate(values)}


def _own_split(part: _Data, split: str) -> str:
    """Returns the split that the part itself trains or validates on."""
    if split == "train":
        return part._train_split()
    return part._validation_split() if split == "validation" else split
