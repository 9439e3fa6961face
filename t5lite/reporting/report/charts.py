"""Charts of a report: the grouping of metrics into sections."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from t5lite.reporting.report.record import TRAIN, Record
from t5lite.reporting.report.series import Series, gap

PERCENT, COUNT = "%", "#"


class Line(NamedTuple):
    """One line of a chart.

    Args:
      run: index of its run.
      label: of the metric; empty if the chart has only one.
      kind: which of the chart's metrics, from 0; the first is drawn solid.
    """

    run: int
    label: str
    series: Series
    kind: int


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart.

    Args:
      lines: none of them empty.
      unit: "%" for shares in [0, 1], "#" for whole numbers.
      log: whether the axis of values is logarithmic at first.
      wide: whether it is the most important.
      noisy: whether smoothing it shows more.
    """

    title: str
    note: str
    lines: Sequence[Line]
    unit: str = ""
    log: bool = False
    wide: bool = False
    noisy: bool = True


class _Known(NamedTuple):
    title: str
    note: str = ""
    unit: str = ""
    log: bool = False
    noisy: bool = True


# What the metrics of training are called, by section and in order.
_OPTIMISATION = {
    "learning_rate": _Known("Learning rate", noisy=False),
    "gradient_norm": _Known("Gradient norm", "before clipping", log=True),
    "parameter_norm": _Known("Parameter norm", noisy=False),
    "skipped_updates": _Known("Skipped updates", "so far", COUNT, noisy=False),
    "loss_scale": _Known("Loss scale", "of float16", log=True, noisy=False),
    "update_scale": _Known("Update scale", "lowered at a plateau", log=True, noisy=False),
}
_SPEED = {
    "tokens_per_second": _Known("Tokens per second", "all devices"),
    "utilisation": _Known("Model FLOP utilisation", "of the devices' peak", PERCENT),
    "flops_per_second": _Known("Model FLOP per second"),
    "steps_per_second": _Known("Steps per second"),
    "input_wait": _Known("Input wait", "share of the time", PERCENT),
}
_COUNTERS = ("tokens", "epoch")  # shown as an axis or a tile
SHARES = ("accuracy", "exact_match", "exact_match_shuffled", "f1", "precision", "recall")
# Metrics of one unit that are read together.
_TOGETHER = {"span_filling": ("loss", "unigram", "shuffled_inputs")}


def sections(records: Sequence[Record]) -> dict[str, list[Chart]]:
    """Returns the charts of each section; every metric is in exactly one."""
    drawn: set[str] = {TRAIN + name for name in _COUNTERS}
    held_out = next((record.held_out for record in records if record.held_out), None)

    def chart(title: str, metrics: dict[str, str], note: str = "", **options) -> Iterator[Chart]:
        """Yields a chart of `metric → label` unless there is nothing to draw."""
        drawn.update(metrics)
        lines = [
            Line(run, label if len(metrics) > 1 else "", record.series[metric], kind)
            for run, record in enumerate(records)
            for kind, (metric, label) in enumerate(metrics.items())
            if metric in record.series
        ]
        if lines:
            yield Chart(title, note, lines, **options)

    def beside(name: str) -> dict[str, str]:
        """Returns a metric of the training data, and its held-out one."""
        return {TRAIN + name: "train"} | ({held_out + name: "held out"} if held_out else {})

    def listed(table: dict[str, _Known]) -> Iterator[Chart]:
        for name, entry in table.items():
            options = {"unit": entry.unit, "log": entry.log, "noisy": entry.noisy}
            yield from chart(entry.title, {TRAIN + name: ""}, entry.note, **options)

    rest = dict.fromkeys(metric for record in records for metric in record.series)
    # Of a mixture: `held_out/PART/loss`.
    part_loss = re.compile(rf"{re.escape(held_out or TRAIN)}(.+)/loss")
    part_losses = {name: match[1] for name in rest if (match := part_loss.fullmatch(name))}
    loss = [
        *chart("Loss", beside("loss"), wide=True),
        *_gap(records, held_out),
        *chart("Held-out loss by part", part_losses, ", ".join(part_losses.values())),
    ]
    optimisation, speed = [*listed(_OPTIMISATION)], [*listed(_SPEED)]
    metric_charts: list[Chart] = []
    for metric in sorted(rest, key=lambda name: (not name.startswith(held_out or TRAIN), name)):
        if metric in drawn:
            continue
        prefix, _, name = metric.rpartition("/")
        unit = PERCENT if name in SHARES else ""
        together = _TOGETHER.get(prefix, ())
        if name in together:
            metrics = {f"{prefix}/{part}": _words(part) for part in together}
            metric_charts += chart(_words(prefix), metrics)
        elif f"{prefix}/" in (TRAIN, held_out):
            both = {metric: label for metric, label in beside(name).items() if metric in rest}
            note = "" if len(both) > 1 else next(iter(both.values()))
            metric_charts += chart(_words(name), both, note, unit=unit)
        else:
            metric_charts += chart(_words(name), {metric: ""}, _words(prefix).lower(), unit=unit)
    all_charts = {
        "Loss": loss,
        "Metrics": metric_charts,
        "Optimisation": optimisation,
        "Speed": speed,
    }
    return {title: charts for title, charts in all_charts.items() if charts}


def _gap(records: Sequence[Record], held_out: str | None) -> Iterator[Chart]:
    lines = [
        Line(run, "", gap(record.series[TRAIN + "loss"], record.series[f"{held_out}loss"]), 0)
        for run, record in enumerate(records)
        if TRAIN + "loss" in record.series and f"{held_out}loss" in record.series
    ]
    lines = [line for line in lines if len(line.series)]
    if lines:
        yield Chart("Train–validation gap", "held out − train", lines)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", " ").strip().capitalize()
