"""Preview of a run's data: examples as text, and the padding of its batches."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.evaluation.text import readable
from t5lite.experiment.cuts import Cuts, count_cuts
from t5lite.rows import token_names
from t5lite.text import shorten, table, wrapped

Example = Mapping[str, np.ndarray]

# Enough rows for a share to within about a percent, and few enough to wait for.
_ROWS, _BATCHES = 512, 4
_MOST = 1024  # rows of a measured batch
# Neighbours in a stream may be parts of one text.
_APART = 8
_CHECKED = 1024  # examples whose truncation is counted
_EXAMPLE_LINES = 4  # for all texts of one example
_CLASSES, _BAR = 20, 40  # classes with a line of their own; the longest bar's width


@dataclasses.dataclass(frozen=True)
class Preview:
    """Examples and measurements of a few batches.

    Args:
      texts: readable texts of each example: one, or one per feature.
      batch_size: rows of the measured batches, if fewer than the run's; else 0.
      padding: share of padding in a row, by feature, in [0, 1].
      examples_per_row: mean.
      epochs_per_row: passes over the training data per row; None if its size is unknown.
      cuts: truncated texts; None if unknown.
    """

    examples: Sequence[Example]
    texts: Sequence[Sequence[str]]
    num_batches: int
    padding: Mapping[str, float]
    examples_per_row: float
    epochs_per_row: float | None
    cuts: Cuts | None = None
    batch_size: int = 0


def example_texts(data: Any, objective: Any, *, split: str, count: int, seed: int) -> list[str]:
    """Returns prepared examples in readable form, one string each."""
    texts = _texts(_spread(data, objective, split=split, count=count, seed=seed), objective, data)
    return ["\n→ ".join(" ".join(text.split()) for text in parts) for parts in texts]


def look(data: Any, objective: Any, *, split: str, count: int, seed: int) -> Preview:
    """Reads examples and the first training batches of a run, all processes' rows.

    Args:
      objective: its `show` returns an example's readable texts, with names of `labels`, if any, as
        `names`. Without a vocabulary each array is one text.
      split: of the examples.
      count: number of examples; fewer if the split is smaller.
    """
    examples = _spread(data, objective, split=split, count=count, seed=seed)
    counting = _Counting(objective)
    measured = _fewer_rows(data)
    num_batches = min(max(_ROWS // measured.batch_size, 1), _BATCHES)
    batches = measured.train_batches(counting, seed=seed)
    num_batches = max(num_batches, getattr(batches, "period", 1))
    try:
        rows = list(itertools.islice(batches, num_batches))
    finally:
        batches.close()
    # Batches may be of several lengths.
    segments = {
        name: [arrays[f"{name}_segment_ids"] for arrays in rows]
        for name in token_names(objective.rows(data.lengths))
    }
    most = [np.concatenate([ids.max(axis=1) for ids in arrays]) for arrays in segments.values()]
    per_row = float(np.mean(np.max(most, axis=0)))
    num_examples = getattr(data, "num_examples", None)
    size = num_examples(getattr(data, "split", "train")) if num_examples else None
    # A cache holds and counts prepared examples.
    counts = counting.counts
    inputs_per_output = counts.inputs / counts.outputs if counts.outputs else 1.0
    return Preview(
        examples=examples,
        texts=_texts(examples, objective, data),
        num_batches=num_batches,
        batch_size=measured.batch_size if measured is not data else 0,
        padding={
            name: float(np.mean(np.concatenate([ids.ravel() for ids in arrays]) == 0))
            for name, arrays in segments.items()
        },
        examples_per_row=per_row,
        epochs_per_row=size and per_row * inputs_per_output / size,
        cuts=count_cuts(data, objective, split=split, most=_CHECKED, seed=seed),
    )


def _fewer_rows(data: Any) -> Any:
    """Returns data in batches of at most `_MOST` rows, whose padding is the same."""
    if data.batch_size <= _MOST or not dataclasses.is_dataclass(data):
        return data
    shards = {"num_shards": None} if getattr(data, "num_shards", None) is not None else {}
    changed: Any = dataclasses.replace(data, **{"batch_size": _MOST, **shards})  # type: ignore
    return changed


def _spread(data: Any, objective: Any, *, split: str, count: int, seed: int) -> list[Example]:
    """Returns examples that lie wide apart in the stream."""
    if not count:
        return []
    examples = data.examples(objective, split=split, count=_APART * count, seed=seed)
    return examples[:: max(len(examples) // count, 1)][:count]


def _texts(examples: Sequence[Example], objective: Any, data: Any) -> list[list[str]]:
    vocabulary = data.vocabulary()
    if vocabulary is None:
        specs = objective.rows(data.lengths)
        return [
            [
                readable(values, None) if name in specs and specs[name].holds_ids else str(values)
                for name, values in example.items()
            ]
            for example in examples
        ]
    names = data.labels().get("labels") if "labels" in objective.features else None
    options = {"names": names} if names else {}
    return [objective.show(example, vocabulary, **options) for example in examples]


def balance_lines(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yields a bar per class of each label (feature → class → count), rare ones in one line."""
    for feature, classes in counts.items():
        total = sum(classes.values())
        ordered = sorted(classes.items(), key=lambda item: -item[1])
        yield f"{feature}: {len(classes)} classes, {total:,} labels"
        shown, rest = ordered[:_CLASSES], ordered[_CLASSES:]
        width = max((len(shorten(name, 30)) for name, _ in shown), default=0)
        for name, count in shown:
            bar = "█" * round(_BAR * count / max(ordered[0][1], 1)) or "▏"
            yield f"  {shorten(name, 30):<{width}}  {count / max(total, 1):6.1%}  {bar}"
        if rest:
            share = sum(count for _, count in rest) / max(total, 1)
            yield f"  {len(rest)} more classes hold {share:.1%}"


def example_lines(seen: Preview) -> Iterator[str]:
    """Yields the examples' sizes and shortened texts."""
    for number, (example, texts) in enumerate(zip(seen.examples, seen.texts, strict=True), 1):
        sizes = " + ".join(
            f"{np.shape(values)[0]} {name}" for name, values in example.items() if np.ndim(values)
        )
        yield from ([""] if number > 1 else [])
        yield f"{number}  {sizes}"
        for index, text in enumerate(texts):
            label = "   → " if index else "   "
            yield from wrapped(label, text, max_lines=max(_EXAMPLE_LINES // len(texts), 1))


def batch_lines(batch: Mapping[str, Any], seen: Preview | None) -> list[str]:
    """Returns a table of the global batch's arrays (sharded shapes), and the shares of padding."""
    rows = []
    for name, leaf in batch.items():
        shard = list(leaf.sharding.shard_shape(leaf.shape))
        per_device = f"{shard} a device" if leaf.sharding.mesh.size > 1 else ""
        rows.append((name, str(list(leaf.shape)), np.dtype(leaf.dtype).name, per_device))
    lines = table(rows)
    if seen is None:
        return lines
    padding = ", ".join(f"{share:.1%} of {name}" for name, share in seen.padding.items())
    size = f" of {seen.batch_size:,} rows" if seen.batch_size else ""
    count = "batch" if seen.num_batches == 1 else f"{seen.num_batches} batches"
    source = f"the first {count}{size}"
    measured = f"{padding}; {seen.examples_per_row:.2f} examples a row ({source})"
    lines += ["", *wrapped("padding  ", measured)]
    if seen.cuts is not None:
        none = f"nothing, of {seen.cuts.num_seen:,} examples"
        lines += wrapped("cut      ", seen.cuts.text() or none)
    return lines


@dataclasses.dataclass
class _Counts:
    """Examples before and after preparation."""

    inputs: int = 0
    outputs: int = 0


class _Counting:
    """An objective whose batches are the packed rows, and which counts the prepared examples."""

    def __init__(self, objective: Any, counts: _Counts | None = None):
        self.wrapped, self.counts = objective, counts or _Counts()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def for_features(self, add_eos: Mapping[str, bool]) -> "_Counting":
        return _Counting(self.wrapped.for_features(add_eos), self.counts)

    def prepare(self, examples: Iterator[Example], **arguments: Any) -> Iterator[Example]:
        def counted() -> Iterator[Example]:
            for example in examples:
                self.counts.inputs += 1
                yield example

        for example in self.wrapped.prepare(counted(), **arguments):
            self.counts.outputs += 1
            yield example

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return rows
