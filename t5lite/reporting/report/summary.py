"""The head of the page."""

import datetime
import html
from collections.abc import Iterator, Sequence

import numpy as np

from t5lite.reporting.report.charts import SHARES
from t5lite.reporting.report.parts import named
from t5lite.reporting.report.record import TRAIN, Record
from t5lite.reporting.report.words import duration, number

_TELLING = ("perplexity", "margin", *SHARES)
_STATUS = {
    "running": "running",
    "ended": "ended early",
    "unfinished": "not at its end",
    "finished": "finished",
}


def summary(record: Record, status: str | None) -> str:
    """Returns the head of a page: name, progress and latest numbers of the run."""
    share = record.share()
    if share is None:
        status = "running" if status == "running" else ""  # without a limit it cannot be finished
    else:
        status = "finished" if share == 1.0 else status or "unfinished"
    shown = f'<span class="status {status}">{_STATUS[status]}</span>' if status else ""
    facts = [str(record.facts.get("headline") or "")]
    if record.started:
        start = datetime.datetime.fromtimestamp(record.started).astimezone()
        facts.append(f"started {start:%Y-%m-%d %H:%M}")
    tiles = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}"
        f"{f'<small>{html.escape(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in _tiles(record)
    )
    track = "" if share is None else f'<div class="track"><i style="width:{share:.2%}"></i></div>'
    return (
        f'<div class="title"><h1>{html.escape(record.name)}</h1>'
        f"{shown}</div>"
        f'<p class="soft">{html.escape(" · ".join(filter(None, facts)))}</p>'
        f'{track or "<p>&nbsp;</p>"}<dl class="tiles">{tiles}</dl>'
    )


def _tiles(record: Record) -> Iterator[tuple[str, str, str]]:
    steps = record.facts.get("steps")
    yield "Step", f"{record.step:,}", f"of {steps:,}" if steps else ""
    loss = record.last(TRAIN + "loss")
    if loss is not None:
        yield "Training loss", number(loss), ""
    held_out = record.held_out
    if held_out and (series := record.series[f"{held_out}loss"].finite()):
        best = int(np.argmin(series.values))
        best_note = f"best {number(series.values[best])} at step {series.steps[best]:,}"
        note = "the best so far" if best == len(series) - 1 else best_note
        yield "Held-out loss", number(series.values[-1]), note
    telling = [name for name in record.series if name.rpartition("/")[2] in _TELLING]
    for metric in [name for name in telling if not name.startswith(TRAIN)][:3]:
        prefix, _, name = metric.rpartition("/")
        value = record.last(metric)
        if value is not None:
            shown = f"{value:.1%}" if name in SHARES else number(value)
            yield name.replace("_", " ").capitalize(), shown, prefix.replace("_", " ")
    speed = record.last(TRAIN + "tokens_per_second")
    if speed is not None:
        tokens = record.last(TRAIN + "tokens")
        yield "Tokens/s", number(speed), f"{number(tokens)} in all" if tokens else ""
    epoch = record.last(TRAIN + "epoch")
    yield "Time", duration(record.seconds), f"{number(epoch)} epochs" if epoch else ""


def overlay(records: Sequence[Record]) -> str:
    """Returns the head of a page of several runs: a row of latest numbers for each."""
    metrics = {TRAIN + "loss": "Training loss"}
    for record in records:
        if record.held_out:
            metrics[f"{record.held_out}loss"] = "Held-out loss"
    metrics |= {TRAIN + "tokens_per_second": "Tokens/s"}
    metrics = {m: name for m, name in metrics.items() if any(m in r.series for r in records)}
    columns = ["Step", *metrics.values(), "Time"]
    head = "".join(f'<th class="number">{name}</th>' for name in columns)
    rows = []
    for index, record in enumerate(records):
        steps = record.facts.get("steps")
        cells = [f"{record.step:,}" + (f" / {steps:,}" if steps else "")]
        cells += [number(record.last(metric)) for metric in metrics]
        cells += [duration(record.seconds)]
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        headline = html.escape(str(record.facts.get("headline") or ""))
        rows.append(
            f'<tr><th scope="row">{named(record, index)}'
            f'<div class="note">{headline}</div></th>{numbers}</tr>'
        )
    return (
        f'<div class="title"><h1>{len(records)} runs</h1></div><p>&nbsp;</p>'
        f'<div class="card scroll"><table><thead><tr><th>Run</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
