"""The HTML page of a report, self-contained."""

import datetime
import functools
import html
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from t5lite.reporting.report.charts import Chart, sections
from t5lite.reporting.report.parts import (
    config_card,
    differences,
    examples_card,
    model_card,
    text_cards,
)
from t5lite.reporting.report.record import TRAIN, Record
from t5lite.reporting.report.series import Series
from t5lite.reporting.report.summary import overlay, summary
from t5lite.reporting.report.words import number

_MARK = "· t5lite</title>"  # in the head of every page


def is_report(path: epath.PathLike) -> bool:
    """Whether a file is a page by `render`."""
    with epath.Path(path).open("rb") as file:
        return _MARK.encode() in file.read(4096)


def render(records: Sequence[Record], *, status: str | None = None) -> str:
    """Returns one or several runs, which share their charts, as one self-contained HTML page.

    `status` is "running" or "ended", or None if unknown; a run that reached its end is finished.
    """
    drawn = sections(records)
    charts = [chart for section in drawn.values() for chart in section]
    several = len(records) > 1
    title = "Runs" if several else records[0].name
    numbers = itertools.count()
    body = {name: _figures(section, numbers) for name, section in drawn.items()}
    body |= {"Differences": differences(records)} if several else {}
    body |= {
        "Generations": text_cards(records),
        "Data": examples_card(records),
        "Model": model_card(records),
        "Configuration": config_card(records),
    }
    body = {name: part for name, part in body.items() if part}
    top = overlay(records) if several else summary(records[0], status)
    return _template("page.html").format(
        title=html.escape(title),
        style=_template("page.css"),
        script=_template("page.js"),
        navigation="".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in body),
        top=top,
        body="".join(
            f'<section><h2 id="{_anchor(name)}">{name}</h2>{part}</section>'
            for name, part in body.items()
        ),
        drawn=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        data=_embedded({"runs": [*map(_axes, records)], "charts": [*map(_chart, charts)]}),
    )


def _figures(charts: Sequence[Chart], numbers: Iterator[int]) -> str:
    """Returns the empty figures of charts, numbered like the charts in the data."""
    figures = "".join(
        f'<figure{" class=wide" if chart.wide else ""} id="chart{next(numbers)}"><figcaption>'
        f'<h3>{html.escape(chart.title)}</h3><span class="note">{html.escape(chart.note)}</span>'
        '<button type="button" hidden>log</button></figcaption>'
        '<div class="legend"></div><div class="plot"></div></figure>'
        for chart in charts
    )
    return f'<div class="charts">{figures}</div>'


def _chart(chart: Chart) -> dict[str, Any]:
    lines = [
        {"run": line.run, "label": line.label, "kind": line.kind, **_points(line.series.thinned())}
        for line in chart.lines
    ]
    finite = [line.series.finite().values for line in chart.lines]
    values = np.concatenate(finite) if finite else np.zeros(0)
    summary = "no finite value"
    if len(values):
        summary = f"from {number(values.min())} to {number(values.max())}"
        summary += f", last {number(finite[0][-1])}" if len(finite[0]) else ""
    return {
        "title": chart.title,
        "summary": summary,
        "unit": chart.unit,
        "log": chart.log,
        "wide": chart.wide,
        "noisy": chart.noisy,
        "lines": lines,
    }


def _axes(record: Record) -> dict[str, Any]:
    """Returns the values of the other axes at each step: seconds since the start, and tokens."""
    elapsed = Series(record.times.steps, record.times.values - record.times.values[:1]).thinned()
    tokens = record.series.get(TRAIN + "tokens", Series.of({})).finite()
    has_tokens = len(tokens) > 0
    seen = np.interp(elapsed.steps, [0, *tokens.steps], [0, *tokens.values]) if has_tokens else []
    return {
        "name": record.name,
        "steps": elapsed.steps.tolist(),
        "time": [round(float(value), 2) for value in elapsed.values],
        "tokens": [round(float(value)) for value in seen],
    }


def _points(series: Series) -> dict[str, Any]:
    values = [None if np.isnan(value) else float(f"{value:.6g}") for value in series.values]
    return {"steps": series.steps.tolist(), "values": values}


def _embedded(data: Mapping[str, Any]) -> str:
    """Returns JSON that cannot end the script element around it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


@functools.cache
def _template(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
