"""The report holds all that a run's files say, whatever they say, and nothing from elsewhere."""

import html.parser
import json
import math
import re

import numpy as np
import pytest
import report_runs

from t5lite.errors import InputError
from t5lite.reporting import JsonLines, Writers
from t5lite.reporting.report import Report, describe_run, read_record, render, writer
from t5lite.reporting.report.charts import sections
from t5lite.reporting.report.record import bindings
from t5lite.reporting.report.series import Series, gap
from t5lite.reporting.report.words import duration, number

VOID = {"meta", "link", "input", "br", "wbr"}
NASTY = "</script><script>alert(1)</script> & <b onclick='x'>\u2028 ]]> {title} \x00"


class Page(html.parser.HTMLParser):
    """Tags, texts and the data of a page, whose tags must close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        scripts = [text for tag, text in self.texts if tag == "script"]
        self.data, self.code = json.loads(scripts[0]), scripts[1]
        assert len(scripts) == 2

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))

    @property
    def text(self):
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))

    @property
    def titles(self):
        return [chart["title"] for chart in self.data["charts"]]

    def chart(self, title):
        return self.data["charts"][self.titles.index(title)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return report_runs.write_run(tmp_path_factory.mktemp("runs") / "small", lost=(50,))


@pytest.fixture(scope="module")
def page(run):
    return Page(render([read_record(run)]))


def test_every_part_is_there(page):
    for shown in (
        *("small", "finished", "t5, 1,935,104 parameters, float32, on 1 device (cpu)"),
        *("of 800", "Held-out loss", "Perplexity", "15", "task python_docs"),
        *("smallest item", "span filling at step 800", "step 100", "cross_attention"),
        *("[2 × 128 × 4 × 32] layers embed heads kv", "t5lite.train.seed", "config.gin"),
    ):
        assert shown in page.text
    assert page.titles == [
        *("Loss", "Train–validation gap", "Accuracy", "Perplexity", "Z loss", "Span filling"),
        *("Margin", "Learning rate", "Gradient norm", "Parameter norm", "Skipped updates"),
        *("Tokens per second", "Model FLOP per second", "Steps per second", "Input wait"),
    ]
    anchors = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert anchors < set(ids)
    calls = re.findall(r'getElementById\("(\w+)"\)', page.code)
    assert set(calls) <= set(ids)


def test_it_fetches_nothing(page):
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    for tag, attributes in page.tags:
        assert tag not in {"img", "iframe", "base", "object", "embed"}
        assert not (tag == "script" and "src" in attributes)
        for name in ("src", "href", "action"):
            assert re.match(r"#|data:,$", attributes.get(name, "#"))
    style = " ".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    for call in ("fetch(", "XMLHttpRequest", "import(", "eval(", "innerHTML"):
        assert call not in page.code


def test_the_lines_hold_the_metrics(run, page):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train, held_out = page.chart("Loss")["lines"]
    expected = {each["step"]: each["train/loss"] for each in lines if "train/loss" in each}
    assert train["steps"] == list(expected)
    assert train["values"] == [v and pytest.approx(v, rel=1e-5) for v in expected.values()]
    assert train["values"].count(None) == 1
    assert held_out["steps"] == list(range(100, 801, 100))
    assert page.data["runs"][0]["tokens"][-1] == lines[-3]["train/tokens"]
    seconds = lines[-1]["time"] - lines[0]["time"]
    assert read_record(run).seconds == pytest.approx(seconds)
    assert page.data["runs"][0]["time"][0] == 0
    assert page.data["runs"][0]["time"][-1] == pytest.approx(seconds, abs=0.01)
    spans = page.chart("Span filling")["lines"]
    assert [line["label"] for line in spans] == ["Loss", "Unigram", "Shuffled inputs"]


def test_runs_are_laid_over_each_other(run, tmp_path):
    other = report_runs.write_run(tmp_path / "wide", hidden=512, rate=0.03, done=400)
    page = Page(render([read_record(run), read_record(other)]))
    assert [each["name"] for each in page.data["runs"]] == ["small", "wide"]
    loss = [(line["run"], line["label"]) for line in page.chart("Loss")["lines"]]
    assert loss == [(0, "train"), (0, "held out"), (1, "train"), (1, "held out")]
    settings = [record.settings() for record in map(read_record, (run, other))]
    differ = {name for name in settings[0] if settings[0][name] != settings[1][name]}
    assert differ == {
        "t5lite.models.override.changes",
        "t5lite.optimizers.AdamWScale.learning_rate",
    }
    assert "{'*.blocks.*.mlp.hidden': 512, '*.dropout_rate': 0.0}" in page.text
    assert "task python_docs" in page.text
    same = Page(render([read_record(run), read_record(run, name="again")]))
    assert "No setting differs." in same.text


def test_whatever_a_run_says_stays_text(tmp_path):
    folder = report_runs.write_run(tmp_path / NASTY[10:19], examples=[NASTY], done=100)
    writer = JsonLines(folder)
    writer.write(100, {f"{NASTY}/{NASTY}": 1.0})
    writer.text(100, NASTY, NASTY)
    (folder / "config.gin").write_text(f"a.b = '{NASTY}'\n# {NASTY}")
    describe_run(
        folder,
        headline=NASTY,
        data=NASTY,
        parameters=[(NASTY, (2, 3), (NASTY, None))],
        examples=[NASTY],
        seed=0,
        versions={NASTY: NASTY},
        started=0.0,
    )
    records = [read_record(folder), read_record(folder, name=NASTY)]
    for shown in (records[:1], records[1:], records):
        page = Page(render(shown))  # which has found two scripts, ours
        assert all("onclick" not in attributes for _, attributes in page.tags)
        assert page.text.count("alert(1)") >= 6


@pytest.mark.parametrize("value", [1.5, 0.0, -3.0, math.nan, math.inf])
def test_one_point_of_anything_is_drawn(tmp_path, value):
    JsonLines(tmp_path, clock=lambda: 1.0).write(1, {"train/loss": value, "held_out/loss": value})
    page = Page(render([read_record(tmp_path)]))
    expected = value if math.isfinite(value) else None
    assert page.chart("Loss")["lines"][0]["values"] == [expected]


def test_files_that_are_missing_or_broken_leave_their_part_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/x": 2}\n[1]\n{"step": 2, "tra')
    (tmp_path / "run.json").write_text('{"head')
    (tmp_path / "config.gin").write_bytes(b"\xff = 1")
    (tmp_path / "texts.jsonl").write_text('{"step": 1}\n')
    page = Page(render([read_record(tmp_path)]))
    assert page.titles == ["X"]
    assert page.data["runs"][0]["steps"] == []


@pytest.mark.parametrize("count", [1, 2000, 2001, 50_000])
def test_long_series_are_thinned_and_keep_their_ends_and_extremes(count):
    values = np.random.default_rng(0).standard_normal(count)
    values[count // 3] = 99.0
    values[count // 2] = np.nan
    series = Series(np.arange(count), values)
    thinned = series.thinned(2000)
    assert len(thinned) <= 2000
    assert len(thinned) > min(count, 2000) / 2
    assert (thinned.steps[0], thinned.steps[-1]) == (0, count - 1)
    assert (np.diff(thinned.steps) > 0).all()
    if count > 1:
        assert np.nanmax(thinned.values) == 99.0
        assert np.nanmin(thinned.values) == np.nanmin(values)
        assert np.isnan(thinned.values).any()
    assert len(Series(np.arange(count), np.full(count, np.nan)).thinned()) <= 2000


def test_the_gap_compares_with_the_training_just_before():
    train = Series.of({step: 10.0 - step for step in range(1, 41)})
    held_out = Series.of({0: 1.0, 4: 7.0, 8: math.nan, 40: -20.0})
    actual = gap(train, held_out)
    assert actual.steps.tolist() == [4, 40]
    # The steps 1 to 4, and of 5 to 40 the last ten.
    assert actual.values.tolist() == [7.0 - 7.5, -20.0 - (10 - 35.5)]


def test_each_metric_is_drawn_once(run):
    record = read_record(run)
    charts = [chart for actual in sections([record]).values() for chart in actual]
    actual = [line.series for chart in charts for line in chart.lines]
    drawn = [name for name, series in record.series.items() if any(s is series for s in actual)]
    assert len(actual) == len(drawn) + 1  # the gap is nobody's metric
    assert set(record.series) - set(drawn) == {"train/tokens", "train/epoch"}


def test_losses_of_a_mixtures_parts_share_a_chart(tmp_path):
    for step in (1, 2):
        names = ("train/loss", "held_out/loss", "held_out/books/loss", "held_out/web/en/loss")
        JsonLines(tmp_path).write(step, dict.fromkeys(names, 1.0 / step))
    charts = sections([read_record(tmp_path)])
    assert list(charts) == ["Loss"]
    chart = charts["Loss"][-1]
    assert chart.title == "Held-out loss by part"
    assert [line.label for line in chart.lines] == ["books", "web/en"]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({"steps": 400}, 0.5),
        ({"tokens": 100}, 0.75),
        ({"epochs": 2.0, "steps": 1000}, 0.25),
        ({"steps": 100}, 1.0),
        ({}, None),
    ],
)
def test_finished_share(tmp_path, ends, expected):
    nothing = {"headline": "", "data": "", "parameters": [], "examples": [], "versions": {}}
    describe_run(tmp_path, **nothing, seed=0, started=0.0, **ends)
    JsonLines(tmp_path).write(200, {"train/tokens": 75, "train/epoch": 0.5})
    assert read_record(tmp_path).share() == expected


def test_bindings_are_compared_without_their_layout():
    actual = bindings("# a = 1\nA = 2\nx.y/b.c = \\\n  {'k': 1,\n   'l': 2}\nt.model_dir = 'x'\n")
    assert actual == {"A": "2", "x.y/b.c": "{'k': 1, 'l': 2}"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((3.14159, "3.142"), (0, "0"), (12_345, "12.3k"), (9999.0, "9999"), (1.94e9, "1.94G")),
        *((1.5e-5, "1.5e-5"), (math.nan, "–"), (None, "–"), (-2e6, "-2M")),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (7200, "2 h"), (90_000, "1 d 1 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# --- the writer ---------------------------------------------------------------------------------


def test_the_page_is_rewritten_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    now, pages = [0.0], []

    def draw(records, *, status):
        now[0] += 2.0  # seconds that drawing takes
        pages.append((records[0].step, status))
        return "page"

    monkeypatch.setattr(writer, "render", draw)
    both = Writers([JsonLines(tmp_path), Report(tmp_path, clock=lambda: now[0])])
    both.rewind(0)
    for step in range(1, 40):
        now[0] += 10.0
        both.write(step, {"train/loss": 1.0})
    # After a minute; then not before a hundred times the two seconds are over.
    assert pages == [(6, "running"), (26, "running")]
    both.close()
    assert pages[-1] == (39, "ended")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "report.html"}
    assert (tmp_path / "report.html").read_text() == "page"


def test_a_report_that_fails_warns_once_and_leaves_the_page_before(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("before")
    monkeypatch.setattr(writer, "render", lambda *_, **__: 1 / 0)
    both = Writers([JsonLines(tmp_path), Report(tmp_path, seconds=0.0)])
    with pytest.warns(UserWarning, match="report.html cannot be drawn: ZeroDivisionError"):
        both.write(1, {"train/loss": 1.0})
    for step in range(2, 6):  # a second warning would be an error
        both.write(step, {"train/loss": 1.0})
    both.close()
    assert (tmp_path / "report.html").read_text() == "before"


def test_there_is_no_page_without_metrics(tmp_path):
    alone = Report(tmp_path, seconds=0.0)
    alone.close()
    alone.write(1, {"train/loss": 1.0})
    alone.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ended_early_says_so(run, tmp_path):
    folder = report_runs.write_run(tmp_path / "run", done=300)
    report = Report(folder)
    report.write(300, {})
    report.close()
    assert "ended early" in Page((folder / "report.html").read_text()).text
    assert "not at its end" in Page(render([read_record(folder)])).text
    for status in ("running", "ended"):
        assert "finished" in Page(render([read_record(run)], status=status)).text
    (folder / "run.json").unlink()  # nobody knows where it was to end
    for status, shown in (("running", ["status running"]), ("ended", []), (None, [])):
        page = Page(render([read_record(folder)], status=status))
        classes = [attributes.get("class", "") for _, attributes in page.tags]
        assert [each for each in classes if each.startswith("status")] == shown


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not the folder of a run; give a model_dir"),
        ({"run.json": "{}"}, "has no metrics yet: it has run.json"),
        ({"metrics.jsonl": '{"ste'}, "has no metrics yet: its metrics.jsonl has no whole line"),
    ],
)
def test_folders_that_cannot_be_drawn(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_record(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_record(tmp_path / "missing")
