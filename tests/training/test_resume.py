"""A run that is killed and started again ends as if nothing had happened, to the last bit."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_runs
from tiny_runs import FAST, SPEC, STEPS, array_data, lines
from tiny_runs import train_guarded as train

from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.models import override
from t5lite.optimizers import SGD, Adafactor
from t5lite.parallel import Layout
from t5lite.reporting import JsonLines, Report
from t5lite.training import EarlyStopping, Update, load_params
from t5lite.training.claims import claimed

FRESH = "to start a new run from its parameters, set .*Checkpoints.restore_from = '"
PROGRAM = pathlib.Path(__file__).parent.parent / "tiny_runs.py"


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """Returns `run(model_dir, when) -> finished process` with one device, killed `when`."""
    settings = {
        "XLA_FLAGS": re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"]),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }

    def run(model_dir, when="never"):
        return subprocess.run(
            [sys.executable, str(PROGRAM), str(model_dir), when],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="module")
def whole(child, tmp_path_factory):
    """The model_dir of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    process = child(folder)
    assert process.returncode == 0, process.stderr
    assert "resuming" not in process.stdout
    return folder


def checkpoints(model_dir):
    """The steps of all complete checkpoints."""
    folder = pathlib.Path(model_dir) / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def everything(model_dir):
    """All arrays of the newest checkpoint, by name."""
    tree = load_params(model_dir, part="").params
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_ends_alike(model_dir, whole):
    assert checkpoints(model_dir)[-1] == checkpoints(whole)[-1] == STEPS
    actual, expected = everything(model_dir), everything(whole)
    assert actual.keys() == expected.keys()
    for part in ("params", "opt_state", "extra", "rng", "step"):
        assert any(part in name for name in expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(actual[name], leaf, err_msg=name)
    assert lines(model_dir) == lines(whole)
    assert [line["step"] for line in lines(model_dir)] == list(range(1, STEPS + 1))


def test_the_run_learns_something(whole):
    losses = [line["train/loss"] for line in lines(whole) if "train/loss" in line]
    assert losses[-1] < losses[0] - 0.02
    last = lines(whole)[-1]
    assert last["train/epoch"] > 0  # it has begun its data anew
    # All that is kept from step to step has been at work, or would not be tested.
    assert last["train/skipped_updates"] > 0
    assert last["train/loss_scale"] > 2.0**15
    assert 0 < last["train/update_scale"] < 1
    assert everything(whole)["['extra']['spike']['count']"] == STEPS - last["train/skipped_updates"]
    # Every checkpoint's average is another than its parameters, or neither would be tested.
    arrays = everything(whole)
    pairs = [(name, name.replace("['params']", "['extra']['ema']", 1)) for name in arrays]
    differ = [not np.array_equal(arrays[a], arrays[b]) for a, b in pairs if a != b and b in arrays]
    assert len(differ) > 20
    assert all(differ)


@pytest.fixture(scope="module")
def noticed(child, tmp_path_factory):
    """A model_dir whose run was killed, and then given notice by a scheduler."""
    folder = tmp_path_factory.mktemp("noticed")
    # While a checkpoint is being written, the first one as a rule.
    process = child(folder, "saving")
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert list((folder / "checkpoints").glob("*tmp*"))
    saved = (checkpoints(folder) or [0])[-1]
    assert lines(folder)[-1]["step"] > saved

    process = child(folder, f"SIGTERM@{saved + 6}")
    assert ("resuming" in process.stdout) == (saved > 0)
    assert process.returncode == 143, process.stderr
    # The step that was under way is finished first.
    assert f"step {saved + 7} is saved" in process.stdout
    assert checkpoints(folder)[-1] == saved + 7
    assert not list((folder / "checkpoints").glob("*tmp*"))
    return folder


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(child, whole, noticed, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(noticed, folder)
    step = checkpoints(folder)[-1]
    # Between two checkpoints, of which the newer is damaged afterwards.
    process = child(folder, "SIGKILL@14")
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert f"resuming {folder} at step {step}/{STEPS} (" in process.stdout
    assert lines(folder)[-1]["step"] == 14
    older, newer = checkpoints(folder)[-2:]
    assert newer < 14
    for path in (folder / "checkpoints" / str(newer)).rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)

    process = child(folder)
    assert process.returncode == 0, process.stderr
    assert re.search(rf"checkpoints/{newer}\b.*trying the one before", process.stdout, re.DOTALL)
    assert f"resuming {folder} at step {older}/{STEPS} (" in process.stdout
    assert_ends_alike(folder, whole)


@pytest.mark.slow
def test_it_goes_on_with_other_devices(whole, noticed, tmp_path, capsys):
    folder = tmp_path / "sharded"
    shutil.copytree(noticed, folder)
    trained = train(folder, layout=Layout({"fsdp": 4, "tensor": 2}, compiler_options={"cpu": FAST}))
    assert len(trained.state.step.sharding.device_set) == 8
    assert f"resuming {folder} at step {checkpoints(noticed)[-1]}" in capsys.readouterr().out
    actual, expected = everything(folder), everything(whole)
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, rtol=1e-3, atol=1e-4, err_msg=name)
    for one, other in zip(lines(folder), lines(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


# What a second run into the same folder says.


@pytest.fixture
def finished(whole, tmp_path):
    folder = tmp_path / "finished"
    shutil.copytree(whole, folder)
    return folder


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
    before = contents(finished)
    trained = train(finished)
    assert contents(finished) == before
    assert f"already trained to step {STEPS}/{STEPS} (100%)" in capsys.readouterr().out
    assert trained.state.step == STEPS


class Refusing:
    every = 1

    def check(self, run):
        raise InputError("Refusing: not with me")

    def __call__(self, run, state, *, step):
        return None


class Unreachable:
    """A writer of metrics whose server is away."""

    def __init__(self, folder):
        self.folder = folder

    def check(self):
        raise InputError("Unreachable: no server")

    def write(self, step, metrics):
        raise NotImplementedError

    def close(self):
        return None


def contents(folder):
    """Every file below a folder, and what is in it."""
    paths = sorted(pathlib.Path(folder).rglob("*"))
    return {path: path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"model": override(SPEC, {"encoder.num_layers": 3, "decoder.blocks.0.mlp.hidden": 32})},
            r"(?s)a run of another model.*decoder.blocks.0.mlp.hidden: 24 -> 32.*and 2 more",
            id="model",
        ),
        pytest.param(
            {"seed": 1}, f"(?s)seed` was 0 in the checkpoint and is 1.*{FRESH}", id="data position"
        ),
        pytest.param(
            {"data": array_data(batch_size=16)},
            rf"(?s)is 16 now.*multiples of 8 resume with num_shards = 8.*{FRESH}",
            id="batch size",
        ),
        pytest.param(
            {"optimizer": SGD(0.1)},
            f"(?s)the run was trained with Adafactor, now SGD.*{FRESH}",
            id="optimizer",
        ),
        pytest.param(
            {"optimizer": Adafactor(0.05, beta1=0.9, min_dim_size_to_factor=999)},
            f"(?s)a setting of Adafactor has changed.*opt_state/.*{FRESH}",
            id="setting",
        ),
        pytest.param({"layout": Layout({"data": 3})}, "does not multiply", id="layout"),
        pytest.param({"callbacks": [Refusing()]}, "not with me", id="callback"),
        pytest.param(
            {"callbacks": [EarlyStopping(metric="held_out/los", patience=1, every=2)]},
            "did you mean held_out/loss",
            id="watched metric",
        ),
        pytest.param({"writers": [JsonLines, Unreachable]}, "no server", id="writer"),
        pytest.param({"writers": [JsonLines, Report]}, "holds report.html", id="file"),
        pytest.param({"data": array_data(vocab=Bytes())}, "only 32 embeddings", id="vocabulary"),
    ],
)
def test_a_refused_run_changes_nothing(finished, changes, message):
    (finished / "report.html").write_text("<title>mine</title>")  # this run wrote none
    before = contents(finished)
    options = {"steps": STEPS + 1, "operative_config": lambda: "other", **changes}
    with pytest.raises(InputError, match=message) as error:
        train(finished, *options.pop("callbacks", ()), **options)
    assert len(str(error.value).splitlines()) <= 5
    assert contents(finished) == before


def test_a_second_writer_is_refused(finished):
    before = contents(finished)
    with claimed(finished / ".claims", name=str(finished)):
        held = contents(finished)
        with pytest.raises(InputError, match=f"written by process {os.getpid()} on "):
            train(finished, steps=STEPS + 1)
        assert contents(finished) == held
    assert contents(finished) == before


@pytest.mark.slow
def test_averages_guards_and_callbacks_come_and_go(finished, capsys):
    """Each step resumes the same folder with less, then with more; parameters go on as they are."""
    tiny_runs.train(finished, steps=STEPS + 1, update=Update())
    said = capsys.readouterr().out
    for line in (
        f"no longer used, dropped at step {STEPS}: ema, loss_scale, spike",
        "no longer used, its state is dropped: ReduceOnPlateau(held_out/loss)",
        f"resuming {finished} at step {STEPS}",
    ):
        assert line in said
    assert [name for name in everything(finished) if "extra" in name] == [
        "['extra']['update_scale']"
    ]

    before = load_params(finished).params
    train(finished, steps=STEPS + 2)
    said = capsys.readouterr().out
    for line in (
        f"not in the checkpoint of step {STEPS + 1}, initialised: ema, loss_scale, spike",
        "not in the checkpoint, initialised: ReduceOnPlateau",
    ):
        assert line in said
    params = load_params(finished).params
    average = load_params(finished, part="extra/ema").params
    for old, new, mean in zip(*map(jax.tree.leaves, (before, params, average)), strict=True):
        np.testing.assert_allclose(mean, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-7)
