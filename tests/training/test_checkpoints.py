"""A checkpoint is complete or ignored, fits or says why not, and outlives every accident."""

import dataclasses
import errno
import functools
import gc
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError
from t5lite.training.checkpoints import CheckpointError, Checkpoints
from t5lite.training.restore import load_params

# A failed read leaves TensorStore callbacks behind that find Orbax's event loop closed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True, scope="module")
def collected():
    """What is left behind is collected here, where its warnings are expected."""
    yield
    gc.collect()


class Moments(NamedTuple):
    count: Any
    mean: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "frozen", "opt_state", "rng", "extra"],
    meta_fields=[],
)
@dataclasses.dataclass
class State:
    step: Any
    params: Any
    frozen: Any
    opt_state: Any
    rng: Any
    extra: Any


def make_mesh(*shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return Mesh(np.array(devices).reshape(shape), ("data", "model")[: len(shape)])


BY_DATA = PartitionSpec("data")
REPLICATED = PartitionSpec()


def make_state(step=1, *, mesh=None, spec=BY_DATA, rows=8):
    mesh = mesh or make_mesh(8)
    rng = np.random.default_rng(step)

    def place(array, spec=REPLICATED):
        return jax.device_put(array, NamedSharding(mesh, spec))

    params = {
        "encoder": {"kernel": place(rng.standard_normal((rows, 16)).astype(np.float32), spec)},
        "scale": place(rng.standard_normal(3).astype(jnp.bfloat16)),
    }
    return State(
        step=place(np.int32(step)),
        params=params,
        frozen={},
        opt_state=((), [Moments(place(np.int32(step)), jax.tree.map(lambda x: x + x, params))]),
        rng=place(np.array([step, 7], np.uint32)),
        extra={"ema": None},
    )


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save_steps(model_dir, *steps, **config):
    """Saves these steps and returns the checkpoints folder."""
    with Checkpoints(**config).open(model_dir) as checkpointer:
        for step in steps:
            assert checkpointer.save(step, make_state(step), progress={"position": step})
    return pathlib.Path(model_dir) / "checkpoints"


# Saving and restoring.


def test_everything_comes_back_bit_for_bit(tmp_path):
    state = make_state(3)
    with Checkpoints().open(tmp_path) as checkpointer:
        assert checkpointer.restore(abstract(state)) is None
        progress = {"data": {"shards": [1, 2]}, "callbacks": [{"best": 0.5}]}
        checkpointer.save(3, state, progress=progress, metrics={"loss": 2.5, "bad": float("nan")})
        checkpointer.wait()
        restored = checkpointer.restore(abstract(state))
    assert_same(restored.state, state)
    assert restored.state.params["encoder"]["kernel"].sharding.spec == BY_DATA
    assert (restored.step, restored.progress, restored.metrics) == (3, progress, {"loss": 2.5})


@pytest.mark.parametrize(
    ("shape", "spec"), [((1,), ()), ((2,), ("data",)), ((2, 4), ("model", "data"))]
)
def test_restores_onto_another_mesh(tmp_path, shape, spec):
    state = make_state(5)
    save_steps(tmp_path, 5)
    expected = abstract(make_state(0, mesh=make_mesh(*shape), spec=PartitionSpec(*spec)))
    with Checkpoints().open(tmp_path) as checkpointer:
        restored = checkpointer.restore(expected).state
    assert_same(restored, state)
    for leaf, want in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding == want.sharding


def test_leaves_without_sharding_come_back_as_numpy(tmp_path):
    save_steps(tmp_path, 5)
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state(5))
    with Checkpoints().open(tmp_path) as checkpointer:
        restored = checkpointer.restore_step(5, expected).state
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(restored))
    assert_same(restored, make_state(5))


def test_donating_the_state_right_after_saving_changes_nothing(tmp_path):
    zero = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)
    state, before = make_state(1, rows=8192), make_state(1, rows=8192)
    progress = {"position": [1]}
    with Checkpoints().open(tmp_path) as checkpointer:
        checkpointer.save(1, state, progress=progress)
        jax.block_until_ready(zero(zero(state)))
        progress["position"].append(2)
        restored = checkpointer.restore(abstract(before))
    assert_same(restored.state, before)
    assert restored.progress == {"position": [1]}


def test_the_same_step_twice_is_saved_once(tmp_path):
    state = make_state(2)
    with Checkpoints().open(tmp_path) as checkpointer:
        assert checkpointer.save(2, state, progress={}) is True
        assert checkpointer.save(2, make_state(9), progress={}) is False
        assert_same(checkpointer.restore(abstract(state)).state, state)
        assert checkpointer.steps() == [2]


def test_progress_that_is_not_json_fails_before_anything_is_written(tmp_path):
    with Checkpoints().open(tmp_path) as checkpointer:
        with pytest.raises(TypeError, match="JSON"):
            checkpointer.save(1, make_state(1), progress={"x": np.int64(3)})
        assert checkpointer.steps() == []


# What stays.


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_newest_and_the_best_stay_also_over_a_restart(tmp_path, mode, best):
    config = Checkpoints(keep=2, best="loss", best_mode=mode)
    losses = {1: 3.0, 2: 1.0, 3: 9.0, 4: 2.0, 5: 1.0, 6: 9.0, 7: float("nan"), 8: 2.0}
    for steps in ((1, 2, 3, 4), (5, 6, 7, 8)):
        with config.open(tmp_path) as checkpointer:
            for step in steps:
                metrics = {"loss": losses[step]}
                checkpointer.save(step, make_state(step), progress={}, metrics=metrics)
                assert step in checkpointer.steps()
    with config.open(tmp_path) as checkpointer:
        assert checkpointer.steps() == [best, 7, 8]
        assert checkpointer.best_step == best
        assert_same(checkpointer.restore_step(best, abstract(make_state())).state, make_state(best))


@pytest.mark.parametrize(("mode", "values"), [("min", (2.5, 3.0)), ("max", (3.5, 3.0))])
def test_best_is_better_than_every_checkpoint(tmp_path, mode, values):
    better, equal = values
    config = Checkpoints(keep=1, best="loss", best_mode=mode)
    with config.open(tmp_path) as checkpointer:
        assert checkpointer.is_best({"loss": 9.0})
        assert not checkpointer.is_best({})
        checkpointer.save(1, make_state(1), progress={}, metrics={"loss": 3.0})
    with config.open(tmp_path, writable=False) as checkpointer:  # of an earlier run, too
        assert checkpointer.is_best({"loss": better})
        assert not checkpointer.is_best({"loss": equal})
        assert not checkpointer.is_best({"loss": float("nan")})
    with Checkpoints().open(tmp_path, writable=False) as checkpointer:
        assert not checkpointer.is_best({"loss": better})


def test_without_a_best_metric_only_the_newest_stay(tmp_path):
    folder = save_steps(tmp_path, *range(1, 6), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["4", "5"]


def test_the_latest_save_stays_even_below_an_older_number(tmp_path):
    folder = save_steps(tmp_path, 10, 20, 15, keep=1)
    assert [path.name for path in folder.iterdir()] == ["15"]


def test_a_misspelt_best_metric_is_reported_once(tmp_path):
    messages = []
    with Checkpoints(best="validation/los").open(tmp_path, warn=messages.append) as checkpointer:
        checkpointer.save(1, make_state(1), progress={})
        for step in (2, 3):
            metrics = {"validation/loss": 1.0}
            checkpointer.save(step, make_state(step), progress={}, metrics=metrics)
        assert checkpointer.best_step is None
    assert len(messages) == 1
    assert "validation/los'" in messages[0]
    assert "did you mean validation/loss?" in messages[0]


# What does not fit.


def replaced(state, **params):
    return dataclasses.replace(state, params={**state.params, **params})


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (jax.ShapeDtypeStruct((4,), jnp.bfloat16), r"saved bfloat16\[3\], expected bfloat16\[4\]"),
        (jax.ShapeDtypeStruct((3,), jnp.float32), r"saved bfloat16\[3\], expected float32\[3\]"),
        ({"x": jax.ShapeDtypeStruct((3,), jnp.bfloat16)}, r"/x: saved nothing, expected bfloat16"),
        ({}, r"saved bfloat16\[3\], expected nothing"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_and_no_damage(tmp_path, scale, message):
    save_steps(tmp_path, 1, 2)
    messages = []
    with Checkpoints().open(tmp_path, warn=messages.append) as checkpointer:
        with pytest.raises(InputError, match=rf"params/scale.*{message}"):
            checkpointer.restore(replaced(abstract(make_state()), scale=scale))
        assert checkpointer.steps() == [1, 2]
    assert messages == []


def test_a_long_list_of_differences_is_cut_short(tmp_path):
    save_steps(tmp_path, 1)
    many = {f"part_{i}": jax.ShapeDtypeStruct((2,), np.float32) for i in range(9)}
    with (
        Checkpoints().open(tmp_path) as checkpointer,
        pytest.raises(InputError, match="and 6 more") as caught,
    ):
        checkpointer.restore(replaced(abstract(make_state()), **many))
    assert len(str(caught.value).splitlines()) == 5


# Damage.


def data_files(step):
    return [path for path in (step / "state").rglob("d/*") if path.is_file()]


def truncate_data(step):
    for path in data_files(step):
        os.truncate(path, path.stat().st_size // 2)


def remove_data(step):
    for path in data_files(step):
        path.unlink()


def remove_manifest(step):
    (step / "state" / "manifest.ocdbt").unlink()


def truncate_metadata(step):
    os.truncate(step / "state" / "_METADATA", 100)


def remove_metadata(step):
    (step / "state" / "_METADATA").unlink()


def spoil_progress(step):
    (step / "progress" / "metadata").write_text('{"progress": ')


def empty_progress(step):
    (step / "progress" / "metadata").write_text("{}")


def remove_progress(step):
    shutil.rmtree(step / "progress")


def empty_folder(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        truncate_data,
        remove_data,
        remove_manifest,
        truncate_metadata,
        remove_metadata,
        spoil_progress,
        empty_progress,
        remove_progress,
        empty_folder,
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_and_is_replaced(tmp_path, damage):
    damage(save_steps(tmp_path, 1, 2, 3, keep=3) / "3")
    messages = []
    config = Checkpoints(keep=2, best="loss")
    with config.open(tmp_path, warn=messages.append) as checkpointer:
        restored = checkpointer.restore(abstract(make_state()))
        assert_same(restored.state, make_state(2))
        assert (restored.step, restored.progress) == (2, {"position": 2})
        assert checkpointer.save(3, make_state(3), progress={"position": 3}) is True
        assert checkpointer.restore(abstract(make_state())).step == 3
    (message,) = messages
    assert str(tmp_path / "checkpoints" / "3") in message
    assert "trying the one before" in message
    assert len(message.splitlines()) == 1
    with config.open(tmp_path, warn=pytest.fail) as checkpointer:
        assert checkpointer.restore(abstract(make_state())).progress == {"position": 3}


def test_a_damaged_checkpoint_takes_no_place_and_goes_after_the_next_save(tmp_path):
    empty_folder(save_steps(tmp_path, 10, 20, 30) / "30")
    with Checkpoints(keep=2).open(tmp_path, warn=lambda text: None) as checkpointer:
        assert checkpointer.restore(abstract(make_state())).step == 20
        assert checkpointer.steps() == [10, 20, 30]
        checkpointer.save(25, make_state(25), progress={})
        checkpointer.wait()
        assert checkpointer.steps() == [20, 25]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["20", "25"]


def test_a_damaged_checkpoint_is_not_the_best(tmp_path):
    config = Checkpoints(keep=1, best="loss")
    with config.open(tmp_path) as checkpointer:
        for step, loss in ((1, 2.0), (2, 1.0)):
            checkpointer.save(step, make_state(step), progress={}, metrics={"loss": loss})
    folder = save_steps(tmp_path, 3, keep=3)
    remove_manifest(folder / "3")
    remove_manifest(folder / "2")
    with config.open(tmp_path, warn=lambda text: None) as checkpointer:
        assert checkpointer.best_step == 2
        with pytest.raises(CheckpointError, match="none of the 2"):
            checkpointer.restore(abstract(make_state()))
        assert checkpointer.best_step is None


def test_with_every_checkpoint_damaged_no_run_restarts(tmp_path):
    folder = save_steps(tmp_path, 1, 2)
    spoil_progress(folder / "1")
    remove_manifest(folder / "2")
    messages = []
    with (
        Checkpoints().open(tmp_path, warn=messages.append) as checkpointer,
        pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* can be read"),
    ):
        checkpointer.restore(abstract(make_state()))
    assert len(messages) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_other_folders_are_ignored_and_leftovers_are_cleared(tmp_path):
    folder = save_steps(tmp_path, 1)
    for leftover in ("2.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "1", folder / leftover)
    (folder / "3").write_text("a file")
    (folder / "notes").mkdir()
    with Checkpoints().open(tmp_path, warn=pytest.fail) as checkpointer:
        assert checkpointer.steps() == [1]
        assert checkpointer.restore(abstract(make_state())).step == 1
        checkpointer.save(2, make_state(2), progress={})
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3", "notes"]


KILLED = """
import os, pathlib, signal, sys
import jax, numpy as np
from t5lite.training.checkpoints import Checkpoints
folder = pathlib.Path(sys.argv[1])
big = jax.numpy.asarray(np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32))
checkpointer = Checkpoints().open(folder)
checkpointer.save(1, {"x": jax.numpy.ones(3)}, progress={})
checkpointer.wait()
checkpointer.save(2, {"x": big}, progress={})
while not list((folder / "checkpoints").glob("2.*/state*/ocdbt.process_0/d/*")):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], check=False, capture_output=True, timeout=120
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()
    folder = tmp_path / "checkpoints"
    assert not (folder / "2").exists()
    assert any(path.name.startswith("2.orbax") for path in folder.iterdir())
    with Checkpoints().open(tmp_path, warn=pytest.fail) as checkpointer:
        restored = checkpointer.restore({"x": jax.ShapeDtypeStruct((3,), np.float32)})
        assert restored.step == 1
        checkpointer.save(2, {"x": restored.state["x"]}, progress={})
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


# A full disk.


@pytest.mark.parametrize("surface", ["wait", "save", "close"])
def test_a_write_that_fails_in_the_background_surfaces_with_the_one_before_intact(
    tmp_path, surface
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = make_state(2, rows=16384)
    checkpointer = Checkpoints(keep=1).open(tmp_path)
    checkpointer.save(1, make_state(1), progress={})
    checkpointer.wait()
    # No file may grow beyond 256 KiB: writing fails as it does when the disk is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
    try:
        checkpointer.save(2, big, progress={})
        with pytest.raises(CheckpointError, match="step 2 could not be saved") as caught:
            {
                "wait": checkpointer.wait,
                "save": lambda: checkpointer.save(3, make_state(3), progress={}),
                "close": checkpointer.close,
            }[surface]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert str(tmp_path / "checkpoints") in message
    assert "File too large" in message
    assert "that of step 1 is intact" in message
    assert len(message.splitlines()) <= 4
    with Checkpoints(keep=1).open(tmp_path, warn=pytest.fail) as checkpointer:
        assert checkpointer.steps() == [1]
        assert_same(checkpointer.restore(abstract(make_state())).state, make_state(1))
        assert checkpointer.save(2, big, progress={}) is True
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_run_may_go_on_after_a_failed_save(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(keep=2).open(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "save", full)
            with pytest.raises(CheckpointError, match=r"No space left.*\n.*no earlier one"):
                checkpointer.save(1, make_state(1), progress={})
        for step in (1, 2, 3):
            checkpointer.save(step, make_state(step), progress={})
        checkpointer.wait()
        assert checkpointer.steps() == [2, 3]


# Bad input.


def test_an_unwritable_model_dir_is_an_early_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"model_dir = '.*file/run' cannot be written"):
        Checkpoints().open(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_model_dir_without_permission_is_an_early_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        Checkpoints().open(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("every", 0),
        ("every", 2.5),
        ("every", True),
        ("keep", -1),
        ("best_mode", "lowest"),
        ("restore_mapping", [("a", "b")]),
    ],
)
def test_bad_configuration_names_the_field(field, value):
    with pytest.raises(InputError, match=rf"Checkpoints\.{field}"):
        Checkpoints(**{field: value})


@pytest.mark.parametrize("folder", ["gs://bucket/run", "s3://bucket/run"])
def test_object_stores_are_no_local_folders(folder, monkeypatch):
    made = []
    monkeypatch.setattr(type(epath.Path(folder)), "mkdir", lambda path, **_: made.append(str(path)))
    monkeypatch.setattr(type(epath.Path(folder)), "write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Checkpoints().open(folder)
    assert made == [f"{folder}/checkpoints"]


def test_relative_folders_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_steps("run", 1)
    assert load_params("run").folder == tmp_path / "run" / "checkpoints" / "1"


# Parameters alone.


def test_parameters_load_from_every_folder(tmp_path):
    folder = save_steps(tmp_path, 1, 2)
    for place, step in ((tmp_path, 2), (str(folder), 2), (folder / "1", 1)):
        loaded = load_params(place)
        assert loaded.folder.name == str(step)
        assert loaded.fresh == ()
        assert_same(loaded.params, jax.tree.map(np.asarray, make_state(step).params))
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(loaded.params))
    with pytest.raises(InputError, match="no checkpoint in"):
        load_params(tmp_path / "nowhere")


def bytes_read():
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/")
    (actual,) = [m for m in metrics if m["name"].endswith("bytes_read")]
    return actual["values"][0]["value"]


def test_only_the_parameters_are_read_from_the_disk(tmp_path):
    rng = np.random.default_rng(0)
    state = {"params": rng.random(64), "opt_state": rng.random(1_000_000)}
    with Checkpoints().open(tmp_path) as checkpointer:
        checkpointer.save(1, {**state, "params": {"x": state["params"]}}, progress={})
    before = bytes_read()
    np.testing.assert_array_equal(load_params(tmp_path).params["x"], state["params"])
    middle = bytes_read()
    load_params(tmp_path / "checkpoints" / "1", part="")
    assert 0 < middle - before < 100_000 < 1_000_000 < bytes_read() - middle


def test_parameters_load_in_the_requested_dtype_and_sharding(tmp_path):
    save_steps(tmp_path, 4)
    sharding = NamedSharding(make_mesh(2, 2), PartitionSpec("model", "data"))
    like = {
        "encoder": {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.bfloat16, sharding=sharding)},
        "scale": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    params = load_params(tmp_path, like).params
    kernel = np.asarray(make_state(4).params["encoder"]["kernel"])
    assert params["encoder"]["kernel"].sharding == sharding
    assert params["encoder"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["encoder"]["kernel"], kernel.astype(jnp.bfloat16))
    assert type(params["scale"]) is np.ndarray
    like["scale"] = jax.ShapeDtypeStruct((3,), jnp.int32)
    with pytest.raises(InputError, match=r"scale: saved bfloat16\[3\], expected int32\[3\]"):
        load_params(tmp_path, like)
    like["scale"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    with pytest.raises(InputError, match=r"scale: saved bfloat16\[3\], expected float32\[5\]"):
        load_params(tmp_path, like)


def test_a_mapping_renames_keeps_fresh_and_leaves_out(tmp_path):
    save_steps(tmp_path, 1)
    head = np.full((2, 2), 7, np.float32)
    like = {
        "body": {"kernel": jax.ShapeDtypeStruct((8, 16), np.float32)},
        "copy": jax.ShapeDtypeStruct((8, 16), jnp.bfloat16),
        "head": head,
    }
    mapping = [
        (r"body/(.*)", r"encoder/\1"),
        ("copy", "encoder/kernel"),
        ("head", None),
        (None, "sca.e"),
    ]
    loaded = load_params(tmp_path, like, mapping=mapping)
    kernel = np.asarray(make_state(1).params["encoder"]["kernel"])
    np.testing.assert_array_equal(loaded.params["body"]["kernel"], kernel)
    np.testing.assert_array_equal(loaded.params["copy"], kernel.astype(jnp.bfloat16))
    assert loaded.params["head"] is head
    assert loaded.fresh == ("head",)


def test_the_first_rule_that_matches_counts(tmp_path):
    save_steps(tmp_path, 1)
    like = abstract(make_state().params)
    loaded = load_params(tmp_path, like, mapping=[("scale", "scale"), (".*", None), (None, ".*")])
    assert loaded.fresh == ("encoder/kernel",)
    assert loaded.params["encoder"]["kernel"] is like["encoder"]["kernel"]


def test_names_missing_on_either_side_are_all_listed_with_the_nearest(tmp_path):
    save_steps(tmp_path, 1)
    leaf = jax.ShapeDtypeStruct((3,), np.float32)
    like = {"encoder": {"kernal": leaf}, "scale": leaf, "zzz": leaf, "body": leaf}
    with pytest.raises(InputError) as caught:
        load_params(tmp_path, like, mapping=[("body", "encoders/kernel"), ("scale", None)])
    assert str(caught.value).splitlines()[1:3] == [
        "missing in the checkpoint: body (as encoders/kernel) (nearest: encoder/kernel), "
        "encoder/kernal (nearest: encoder/kernel), zzz",
        "missing in the model: encoder/kernel (nearest: encoder/kernal), scale (nearest: scale)",
    ]


@pytest.mark.parametrize("rule", ["ab", ("a",), (None, None), ("a", 3), ("(", "b"), (None, "[")])
def test_a_rule_that_is_none_is_refused(tmp_path, rule):
    with pytest.raises(InputError, match="restore_mapping"):
        Checkpoints(restore_from=str(tmp_path), restore_mapping=[rule])
    with pytest.raises(InputError, match="restore_mapping"):
        load_params(tmp_path, {}, mapping=[rule])


def test_a_mapping_needs_names_to_map(tmp_path):
    with pytest.raises(InputError, match="like"):
        load_params(tmp_path, mapping=[("a", "b")])


def test_another_part_of_the_state_can_be_read(tmp_path):
    ema = {"kernel": np.arange(3.0)}
    with Checkpoints().open(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {}, "extra": {"ema": ema}}, progress={})
    np.testing.assert_array_equal(
        load_params(tmp_path, part="extra/ema").params["kernel"], ema["kernel"]
    )
    with pytest.raises(InputError, match=r"part = 'extra/emas': .* it has "):
        load_params(tmp_path, part="extra/emas")


def test_damaged_parameters_are_an_error_that_names_the_folder(tmp_path):
    folder = save_steps(tmp_path, 1, 2)
    truncate_data(folder / "2")
    with pytest.raises(
        CheckpointError, match=r"checkpoints/2 is damaged.*checkpoints/1: give its fol"
    ):
        load_params(tmp_path)
    assert load_params(folder / "1").folder.name == "1"


# Several processes.

PROCESS = """
import json, pathlib, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
folder, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, index)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from t5lite.training import checkpoints, restore
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
def make(step):
    full = np.arange(8.0, dtype=np.float32) * step
    return {"params": {"x": jax.make_array_from_callback((8,), sharding, lambda i: full[i])}}
wanted = {"params": {"x": jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding)}}
told = []
with checkpoints.Checkpoints(keep=2).open(folder, warn=told.append) as checkpointer:
    for step in (1, 2, 3):
        checkpointer.save(step, make(step), progress={"position": step})
    first = checkpointer.restore(wanted)
    read = restore.read_arrays
    def fail_on_one(folder, expected):
        if index == 1 and folder.name == "3":
            raise OSError("lost")
        return read(folder, expected)
    restore.read_arrays = fail_on_one
    second = checkpointer.restore(wanted)
    restore.read_arrays = read
    checkpointer.save(4, make(4), progress={})
    checkpointer.wait()
    steps = checkpointer.steps()
def local(restored):
    return [float(v) for s in restored.state["params"]["x"].addressable_shards for v in s.data]
params = checkpoints.load_params(folder).params["x"].tolist()
print(json.dumps([first.step, local(first), second.step, local(second), steps, told, params]))
"""


@pytest.mark.slow
def test_two_processes_save_restore_and_fall_back_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, tmp_path, port, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    for index, (out, err) in enumerate(results):
        assert processes[index].returncode == 0, err
        first, at_3, second, at_2, steps, messages, params = json.loads(out.splitlines()[-1])
        mine = np.arange(8.0).reshape(2, 4)[index]
        assert (first, at_3) == (3, (mine * 3).tolist())
        assert (second, at_2) == (2, (mine * 2).tolist())
        assert steps == [2, 4]
        assert ("lost" if index else "another process") in messages[0]
        assert params == (np.arange(8.0) * 4).tolist()
