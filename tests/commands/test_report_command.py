"""`t5lite report`: which runs, under which names, into which file."""

import pytest
import report_runs

from t5lite.commands.report import names_of
from t5lite.main import main


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/nano", "b/nano"):
        report_runs.write_run(tmp_path / name, done=100)
    return tmp_path


def test_a_run_is_drawn_into_its_folder_and_several_into_this_one(runs, capsys):
    assert main(["report", "a/nano"]) == 0
    assert capsys.readouterr().out == "a/nano/report.html\n"
    assert "<h1>nano</h1>" in (runs / "a/nano/report.html").read_text()
    assert main(["report", "a/nano/", str(runs / "b/nano")]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = (runs / "report.html").read_text()
    assert "<h1>2 runs</h1>" in page
    assert '"name":"b/nano"' in page
    assert main(["report", "a/nano", "--output", "new/folder/page.html"]) == 0
    assert [path.name for path in (runs / "new/folder").iterdir()] == ["page.html"]


def test_names_are_as_short_as_they_can_be():
    assert names_of(["x/a", "x/b/"]) == ["a", "b"]
    assert names_of(["x/a/run", "x/b/run", "c"]) == ["a/run", "b/run", "c"]
    assert names_of(["gs://one/run", "gs://two/run"]) == ["one/run", "two/run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; give a model_dir"),
        (["a"], "a is not the folder of a run; give a model_dir, which has a metrics.jsonl"),
        (["a/nano", "./a/nano/"], "RUN = ./a/nano/: named twice; name each run once"),
        (["a/nano", "--output=a"], "--output=a: must be a file, e.g. a/report.html"),
        (["a/nano", "--output=file/x"], "cannot write file/x: "),
        (["a/nano", "--output=file"], "--output=file: exists and is not a report of t5lite"),
        ([], "the following arguments are required: RUN"),
        (["a/nano", "--gin.t5lite.train.seed=1"], "report reads no gin configuration"),
    ],
)
def test_bad_input(runs, capsys, arguments, message):
    (runs / "file").write_text("no folder")
    before = sorted(runs.rglob("*"))
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(runs.rglob("*")) == before
