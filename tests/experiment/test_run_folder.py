"""What a run may write into its folder, and what it leaves as it is."""

import json
import pathlib

import pytest
from tiny_runs import SPEC, array_data, train

import t5lite
from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.experiment.run_folder import check_files, describe, description_of
from t5lite.interop import check_target
from t5lite.models import override
from t5lite.reporting import JsonLines
from t5lite.reporting.report import is_report, render
from t5lite.reporting.report.record import Record
from t5lite.reporting.report.series import Series

SMALL = override(SPEC, {"*.num_layers": 1})
FILES = [*JsonLines.files, "report.html"]
FACTS = {
    "headline": "a run",
    "data": "",
    "parameters": [],
    "examples": [],
    "seed": 0,
    "versions": {},
}


@pytest.mark.parametrize(
    "name",
    ["config.gin", "model.json", "run.json", "vocabulary", "labels.json", "metrics.jsonl"],
)
def test_a_file_of_others_is_never_overwritten(name, tmp_path):
    (tmp_path / name).write_text('{"mine": 1}')
    (tmp_path / "notes.md").write_text("not in the way")
    with pytest.raises(InputError, match=rf"holds {name}, which no run of t5lite wrote") as error:
        train(tmp_path, model=SMALL, operative_config=lambda: "")
    assert len(str(error.value).splitlines()) <= 5
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    assert {path.name for path in tmp_path.iterdir()} == {name, "notes.md"}


def test_a_report_is_told_from_another_page(tmp_path):
    page = tmp_path / "report.html"
    empty = Series.of({})
    record = Record("a", {"train/loss": Series.of({1: 2.0})}, {}, {}, "", {}, empty)
    page.write_text(render([record]))
    assert is_report(page)
    check_files(tmp_path, FILES)
    page.write_text("<html><title>mine</title></html>")
    with pytest.raises(InputError, match=r"report\.html"):
        check_files(tmp_path, FILES)


def test_a_run_that_listed_no_files_owns_what_such_runs_wrote(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("{}")
    facts = {key: FACTS[key] for key in ("headline", "parameters", "versions")}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    check_files(tmp_path, FILES)


def written(folder):
    return {path: path.stat().st_mtime_ns for path in pathlib.Path(folder).rglob("*")}


def test_files_that_say_the_same_already_are_not_written(tmp_path):
    def write(config="a = 1\n", spec=SMALL):
        description = description_of(spec, array_data(vocab=Bytes()))
        describe(tmp_path, description, config=config, of_writers=FILES, facts=FACTS)

    write()
    check_files(tmp_path, FILES)  # they are its own now, those of its writers too
    before = written(tmp_path)
    write()
    changed = {path.name for path, at in written(tmp_path).items() if before[path] != at}
    assert changed <= {"run.json"}
    write(config="a = 2\n")
    assert (tmp_path / "config.gin").read_text() == "a = 2\n"

    # A run of another writer than it had does not take what has come to the folder since.
    (tmp_path / "mlflow_run_id").write_text("mine")
    with pytest.raises(InputError, match="mlflow_run_id"):
        check_files(tmp_path, [*FILES, "mlflow_run_id"])


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (" run", "begins or ends with a space"),
        ("run\n", "begins or ends with a space"),
        (None, "must be the path"),
        (3, "must be the path"),
        ("/", "is the root"),
        ("/tmp/..", "is the root"),
        ("gs://", "names no bucket"),
        (__file__, "is a file"),
    ],
)
def test_a_folder_that_nobody_can_mean(folder, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nothing = dict.fromkeys(["model", "objective", "data", "optimizer"])
    with pytest.raises(InputError, match=rf"(?s)train\.model_dir = .*{why}"):
        t5lite.train(folder, **nothing)
    with pytest.raises(InputError, match=rf"(?s)TARGET = .*{why}"):
        check_target(folder)
    assert not [*tmp_path.iterdir()]
