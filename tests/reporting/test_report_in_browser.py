"""The page's script, where there is a browser to run it."""

import re
import shutil
import subprocess

import pytest
import report_runs

from t5lite.reporting.report import read_record, render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1280,2400"),
)
# Points, zooms, changes the axis, takes a logarithm, hides a line and turns a page.
USE = """
const plots = document.querySelectorAll(".plot svg"), box = plots[0].getBoundingClientRect();
const act = (type, x) => plots[0].dispatchEvent(new PointerEvent(type,
  {clientX: box.left + x, clientY: box.top + 50, pointerId: 1, bubbles: true}));
act("pointermove", 200);
document.body.dataset.pointed = document.querySelectorAll(".hair").length;
document.body.dataset.shown = document.querySelector(".flag").textContent;
plots[0].setPointerCapture = () => {};
act("pointerdown", 100); act("pointermove", 300); act("pointerup", 300);
document.body.dataset.zoomed = !document.getElementById("reset").hidden;
document.querySelector('[data-x="time"]').click();
document.querySelector("figcaption button").click();
document.querySelector(".legend button").click();
document.body.dataset.paths = plots[0].querySelectorAll("path:not(.raw):not(.lost)").length;
document.querySelector(".texts button").click();
document.body.dataset.page = document.querySelector(".texts output").textContent;
document.getElementById("theme").click();
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("runs", [1, 2])
def test_the_charts_are_drawn_and_answer(tmp_path, runs):
    folders = [report_runs.write_run(tmp_path / f"run{n}", seed=n, lost=(50,)) for n in range(runs)]
    page = render([read_record(folder) for folder in folders])
    late = f"<script>setTimeout(() => {{{USE}}}, 500)</script></body>"
    (tmp_path / "page.html").write_text(page.replace("</body>", late), encoding="utf-8")
    address = (tmp_path / "page.html").as_uri()
    finished = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}/profile", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    charts = re.findall(r"<figure", finished.stdout)
    assert len(re.findall(r"<svg role=\"img\"", finished.stdout)) == len(charts)
    seen = dict(re.findall(r'data-(pointed|shown|zoomed|paths|page)="([^"]*)"', finished.stdout))
    assert int(seen["pointed"]) == len(charts)
    assert re.match(r"step \d+", seen["shown"])
    assert seen["zoomed"] == "true"
    assert seen["paths"] == ("1" if runs == 1 else "2")  # one run's lines, or one line, hidden
    assert seen["page"] == "step 700"
    assert 'data-theme="dark"' in finished.stdout
