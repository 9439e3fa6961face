"""Runs of older versions load and resume; `old_runs/make_old_runs.py` made them."""

import importlib.util
import json
import pathlib
import zipfile

import jax
import numpy as np
import pytest

import t5lite
from t5lite.training import load_params
from t5lite.training.restore import named

FOLDER = pathlib.Path(__file__).parent / "old_runs"
VERSIONS = sorted(path.stem for path in FOLDER.glob("*.zip"))


def make_old_runs():
    location = FOLDER / "make_old_runs.py"
    spec = importlib.util.spec_from_file_location(location.stem, location)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=VERSIONS)
def old_run(request, tmp_path, monkeypatch):
    with zipfile.ZipFile(FOLDER / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_there_is_a_run_of_the_first_version_and_one_of_the_last():
    assert VERSIONS == ["bb3d487", "d47a409"]


def test_an_old_run_loads(old_run):
    loaded = t5lite.load(old_run)
    leaves = jax.tree.leaves(loaded.params)
    assert sum(leaf.size for leaf in leaves) == sum(
        leaf.size for leaf in jax.tree.leaves(loaded.model.shapes())
    )
    assert all(np.isfinite(leaf).all() for leaf in map(np.asarray, leaves))
    assert len(loaded.generate(["say one two"], max_new_tokens=3)) == 1


def resumed(steps):
    """Goes on with the run in this folder; its data have another order since."""
    made = make_old_runs()
    with pytest.warns(UserWarning, match="the data position is of an earlier version"):
        return t5lite.train("run", steps=steps, **made.settings()), made


def test_the_whole_state_of_an_old_run_is_restored(old_run, capsys):
    trained, made = resumed(3)
    assert f"{old_run} is already trained to step {made.KEPT}" in capsys.readouterr().out
    saved = named(load_params(old_run, part="").params)
    state = {name: np.asarray(leaf) for name, leaf in named(trained.state).items()}
    assert state.keys() - saved.keys() <= {"extra/update_scale"}  # which starts at 1
    for name, leaf in saved.items():
        np.testing.assert_array_equal(state[name], leaf, err_msg=name)


def test_an_old_run_resumes(old_run, capsys):
    trained, made = resumed(make_old_runs().STEPS)
    said = capsys.readouterr().out
    assert f"resuming {old_run} at step {made.KEPT}" in said
    assert "initialised" not in said
    assert int(trained.state.step) == made.STEPS
    lines = map(json.loads, (old_run / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    expected = json.loads((old_run.parent / "losses.json").read_text())[made.KEPT :]
    assert [*losses] == [4, 5, 6]
    # The same rate and moments on other examples: it falls as it fell.
    assert [*losses.values()] == pytest.approx(expected, rel=0.05)
