"""The chosen steps are traced, and no others."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from t5lite.errors import InputError
from t5lite.training.profiling import Profile


def run(profile, folder, steps):
    """Returns what is said of traces."""
    step_fn = jax.jit(lambda state: {"x": jnp.tanh(state["x"] @ state["x"])})
    state = {"x": jnp.ones((64, 64))}
    message = []
    profiler = profile.open(folder, say=message.append)
    for step in steps:
        profiler.before_step(step)
        state = step_fn(state)
        profiler.after_step(step, state)
    profiler.close()
    return message


def traced_steps(folder):
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    assert list(path.parent.glob("*.xplane.pb"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}


@pytest.mark.slow
def test_traces_the_chosen_steps_into_the_model_dir(tmp_path):
    assert run(Profile(steps=(3, 2)), tmp_path / "run", range(1, 8)) == [
        "profile of steps up to 4 written"
    ]
    assert traced_steps(tmp_path / "run") == {3, 4}


def test_a_run_that_ends_while_tracing_still_writes(tmp_path):
    profile = Profile(steps=(2, 100), folder=str(tmp_path / "traces"))
    assert run(profile, tmp_path / "run", range(1, 4)) == []
    assert traced_steps(tmp_path / "traces") == {2, 3}
    assert not (tmp_path / "run").exists()


def test_a_run_that_resumes_later_traces_nothing(tmp_path):
    assert run(Profile(steps=(3, 2)), tmp_path / "run", range(4, 8)) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [(0, 1), (3, 0), (3,), (1.0, 2), (True, 2)])
def test_bad_steps_are_named(steps):
    with pytest.raises(InputError, match=r"Profile\.steps"):
        Profile(steps=steps)
