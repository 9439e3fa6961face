"""A run that cannot fit says by how much, and what would help, instead of a raw error or a kill."""

import shlex

import jax
import pytest
from test_inspect import arguments, program, report, section
from tiny_runs import train

import t5lite
from t5lite import configuration
from t5lite.configuration.unused import check_used
from t5lite.errors import InputError, RunError
from t5lite.models import ComputeSpec
from t5lite.optimizers import AdamW
from t5lite.parallel import Layout
from t5lite.planning import Capacity, device_bytes, step_memory
from t5lite.planning import capacity as capacity_here
from t5lite.planning import footprint as memory
from t5lite.planning.capacity import host_bytes
from t5lite.planning.footprint import Footprint
from t5lite.text import in_bytes
from t5lite.training import Update

LAYOUT = Layout(compiler_options={"cpu": {"xla_backend_optimization_level": 0}})
OPTIMIZER = AdamW(learning_rate=0.01)
FULL_LINE = 100
WORDS = ("remat", "num_microbatches=2", "fsdp", "mu_dtype")


@pytest.fixture(scope="module")
def built():
    return program(LAYOUT, OPTIMIZER)


@pytest.fixture
def footprint(built):
    return Footprint(
        built, compute=ComputeSpec(), update=Update(), layout=LAYOUT, optimizer=OPTIMIZER
    )


def small(monkeypatch, count):
    """Makes the memory of each device so small."""
    monkeypatch.setattr(memory, "capacity", lambda device: Capacity(int(count), "this host"))


def refused(check):
    with pytest.raises(InputError) as error:
        check()
    first, *advice = str(error.value).splitlines()
    assert 1 <= len(advice) <= 3
    return first, "\n".join(advice)


def test_a_state_that_does_not_fit_is_refused_before_anything_is_compiled(
    built, footprint, monkeypatch
):
    state = device_bytes(built.state)
    small(monkeypatch, state)
    footprint.check_state()
    small(monkeypatch, state / 2)
    first, advice = refused(footprint.check_state)
    assert first == (
        f"parameters and optimizer state need {in_bytes(state)} a device, "
        f"{in_bytes(state - state // 2)} more than the {in_bytes(state // 2)} of this host"
    )
    assert "remat" not in advice  # which would not help
    assert 'AdamW.mu_dtype = "bfloat16"' in advice


def test_a_step_that_does_not_fit_is_refused_with_what_would_help(built, footprint, monkeypatch):
    state, total = device_bytes(built.state), step_memory(built).total
    assert total > state
    # The state is there already and has taken its part.
    small(monkeypatch, total - state)
    footprint.check_step()
    small(monkeypatch, total - state - 1000)
    first, advice = refused(footprint.check_step)
    assert first.startswith(f"a step needs {in_bytes(total)} a device, 0.977 KiB more than the ")
    assert "ComputeSpec.remat" in advice


def test_advice_is_what_is_not_done_yet():
    """A device has two rows, of which a microbatch may have one."""
    built = program(LAYOUT, OPTIMIZER, rows=16)

    def advice(remat="none", num_microbatches=1, optimizer=None):
        settings = {
            "compute": ComputeSpec(remat=remat),
            "update": Update(num_microbatches=num_microbatches),
            "layout": LAYOUT,
            "optimizer": optimizer,
        }
        found = memory.savings(built, **settings, bytes_here=2**40)
        return [next(word for word in WORDS if word in each) for each in found]

    assert advice(optimizer=OPTIMIZER) == ["remat", "num_microbatches=2", "fsdp", "mu_dtype"]
    assert advice(remat="full") == ["num_microbatches=2", "fsdp"]
    assert advice(num_microbatches=2) == ["remat", "fsdp"]


@pytest.mark.parametrize("config", ["gpt_nano", "gpt2_small"])
def test_flags_that_are_advised_are_taken_as_they_stand(config):
    settings = {"compute": ComputeSpec(), "update": Update(), "layout": LAYOUT, "optimizer": None}
    built = program(LAYOUT, OPTIMIZER, rows=16)
    advice = [*memory.savings(built, **settings, bytes_here=2**40)]
    words = [word for each in advice for word in shlex.split(each)]
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    assert len(bindings) == 4
    given = configuration.parse([f"configs/{config}.gin"], bindings)
    check_used(given.source, t5lite.train)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.", RunError),
        ("INTERNAL: something else", jax.errors.JaxRuntimeError),
    ],
)
def test_a_device_that_runs_out_of_memory_is_explained(footprint, message, kind):
    with pytest.raises(kind) as error, footprint.explained():
        raise jax.errors.JaxRuntimeError(message)
    if kind is RunError:
        assert str(error.value).startswith("a device ran out of memory: Out of memory allocating 7")
        assert "ComputeSpec.remat" in str(error.value)
        assert len(str(error.value).splitlines()) <= 5


def test_train_refuses_and_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    small(monkeypatch, 1000)
    with pytest.raises(InputError, match=r"^parameters and optimizer state need .* more than"):
        train(folder, steps=1)
    assert not folder.exists()


def test_inspect_compares_with_the_memory_here(tmp_path, monkeypatch):
    text = section(report(**arguments(tmp_path)), "the cost")
    assert "memory  at least " in text
    assert " has " in text
    small(monkeypatch, 1000)
    text = section(report(**arguments(tmp_path)), "the cost")
    assert "more than the 0.977 KiB of this host: train would refuse it" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= FULL_LINE


def test_a_host_tells_its_memory_and_devices_share_it():
    found = capacity_here(jax.local_devices()[0])
    assert found is not None
    assert 2**20 < found.bytes * len(jax.local_devices()) < 2**50
    assert host_bytes() is not None
