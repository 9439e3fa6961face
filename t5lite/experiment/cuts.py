"""Truncation: texts longer than a feature's length."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.sources import NoSplit

Example = Mapping[str, np.ndarray]
_SPECIAL = 64  # upper bound of the special tokens around a text


class Cut(NamedTuple):
    """Texts longer than `room`, a feature's length: their number, and the longest in tokens."""

    texts: int
    longest: int
    room: int


class Cuts(NamedTuple):
    """Truncated texts by feature, among `num_seen` of `total` (None: unknown) examples."""

    features: Mapping[str, Cut]
    num_seen: int
    total: int | None

    def text(self) -> str:
        """Returns a sentence with the fix; empty if nothing was truncated."""
        if not self.features:
            return ""
        parts = [
            f"{cut.texts:,} lose the end of {name} (up to {cut.longest:,} tokens, room for "
            f"{cut.room:,})"
            for name, cut in self.features.items()
        ]
        sample = f"of {self.num_seen:,} examples"
        if self.total is None or self.num_seen < self.total:
            total = "" if self.total is None else f" of {self.total:,}"
            sample = f"of a sample of {self.num_seen:,}{total} examples"
        return f"{sample}, {' and '.join(parts)}; raise TASK_FEATURE_LENGTHS to keep more of them"


def count_cuts(data: Any, objective: Any, *, split: str, most: int, seed: int) -> Cuts | None:
    """Counts truncated texts, by preparing examples with the run's lengths and with longer ones.

    Args:
      most: examples to read, in random order.

    Returns: None if unknown: the split is empty, the objective divides long texts, or a cache holds
      prepared examples.
    """
    if objective.whole_texts or objective.joins_texts:
        return None
    probe = _Probe(objective)
    try:
        num_seen = len(data.examples(probe, split=split, count=most, seed=seed))
    except NoSplit:
        return None
    if not probe.cuts.prepared:
        return None
    size = getattr(data, "num_examples", None)
    return Cuts(probe.cuts.features, num_seen, size(split) if size else None)


@dataclasses.dataclass
class _Counts:
    features: dict[str, Cut] = dataclasses.field(default_factory=dict)
    prepared: bool = False


class _Probe:
    """An objective that yields unprepared examples, and counts those truncated by another one."""

    def __init__(self, wrapped: Any, cuts: _Counts | None = None):
        self.wrapped, self.cuts = wrapped, cuts or _Counts()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def for_features(self, add_eos: Mapping[str, bool]) -> "_Probe":
        return _Probe(self.wrapped.for_features(add_eos), self.cuts)

    def prepare(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[Example]:
        # A decoder joins the texts of `pairs`, which have names.
        prepare = getattr(self.wrapped, "pairs", self.wrapped.prepare)
        options = {"vocabulary": vocabulary}
        for example in examples:
            self.cuts.prepared = True
            seed = int(rng.integers(2**31))
            longest = max(np.size(values) for values in example.values()) + _SPECIAL
            rooms = {name: max(length, longest) for name, length in lengths.items()}
            cut, whole = (
                next(prepare(iter([example]), lengths=limits, rng=generator, **options), None)
                for limits in (lengths, rooms)
                for generator in [np.random.default_rng(seed)]
            )
            if cut is not None and whole is not None:
                self._note(cut, whole, lengths)
            yield example

    def _note(self, cut: Example, whole: Example, lengths: Mapping[str, int]) -> None:
        for name in lengths:
            if name in cut and np.size(cut[name]) < np.size(whole[name]):
                before = self.cuts.features.get(name, Cut(0, 0, lengths[name]))
                longest = max(before.longest, len(whole[name]))
                self.cuts.features[name] = Cut(before.texts + 1, longest, lengths[name])
