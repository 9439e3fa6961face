"""Bars and stages, on a terminal and elsewhere."""

import io
import time

import pytest

from t5lite.reporting.bars import Bar, stages


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_counts_renames_and_begins_sections(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Bar("compiling", unit="step", total=4) as bar:
        bar.rename("training")
        for _ in range(4):
            bar.add()
        bar.section("validation")
        bar.add(3)
    shown = terminal.getvalue()
    assert "training: 100%" in shown
    assert "4/4" in shown
    assert shown.index("training") < shown.index("validation")


def test_a_bar_shows_amounts_and_a_note(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Bar("reading") as bar:
        bar(512, 1024, note="half")
        bar(1024, 1024, note="all")
    assert "reading: 100%" in terminal.getvalue()
    assert "all" in terminal.getvalue()


@pytest.mark.parametrize("active", [True, False])
def test_nothing_is_shown_outside_of_a_terminal_or_on_other_processes(capsys, monkeypatch, active):
    if not active:
        monkeypatch.setattr("sys.stderr", stream := Terminal())
    with Bar("reading", active=active) as bar:
        bar(1, 2)
        bar.add()
    assert capsys.readouterr().err == ""
    assert active or stream.getvalue() == ""


def test_stages_are_one_line_of_a_terminal_and_lines_of_a_log(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with stages("plan") as show:
        show("lowering")
        show("")
        deadline = time.monotonic() + 20
        while "plan: lowering" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "plan: lowering, " in terminal.getvalue()
    assert "\n" not in terminal.getvalue()
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    with stages("plan") as show:
        show("lowering")
        show("compiling")
    assert log.getvalue() == "plan: lowering\nplan: compiling\n"
