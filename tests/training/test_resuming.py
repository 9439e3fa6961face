"""What a run takes over from a checkpoint whose settings were others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.errors import InputError
from t5lite.optimizers import AdamW, FromOptax
from t5lite.training import Checkpoints, LossScale, Update
from t5lite.training.state import initial_state, name_of

PARAMS = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "scale": np.ones(3, np.float32)}
NONE = Update()
PARTS = {
    "ema": Update(ema_decay=0.9),
    "spike": Update(spike_threshold=3.0),
    "loss_scale": Update(loss_scale=LossScale(initial=8.0)),
}


def make_state(update=NONE, optimizer=optax.adam(1e-3), factor=1.0):
    params = {name: jnp.asarray(array * np.float32(factor)) for name, array in PARAMS.items()}
    return initial_state(params, optimizer, rng=jax.random.key(0), extra=update.extra(params))


def resume(folder, saved, wanted, *, update=NONE, was="AdamW", now="AdamW"):
    """Saves one state and restores it as another; returns it, and what was said."""
    messages = []
    with Checkpoints().open(folder, optimizer=was) as checkpointer:
        checkpointer.save(5, saved, progress={})
    with Checkpoints().open(folder, warn=messages.append, optimizer=now) as checkpointer:
        return checkpointer.restore(wanted, extra=update.extra).state, messages


@pytest.mark.parametrize("part", PARTS)
def test_a_new_part_of_extra_starts_from_the_parameters(tmp_path, part):
    update = PARTS[part]
    saved, wanted = make_state(factor=2.0), make_state(update)
    state, messages = resume(tmp_path, saved, wanted, update=update)
    assert messages == [f"not in the checkpoint of step 5, initialised: {part}"]
    expected = saved.replace(extra=update.extra(saved.params))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.mark.parametrize("part", PARTS)
def test_an_unused_part_of_extra_is_dropped(tmp_path, part):
    saved = make_state(PARTS[part], factor=2.0)
    state, messages = resume(tmp_path, saved, make_state())
    assert messages == [f"no longer used, dropped at step 5: {part}"]
    jax.tree.map(np.testing.assert_array_equal, state, saved.replace(extra=NONE.extra({})))


def test_moments_of_another_dtype_are_cast(tmp_path):
    half = optax.adam(1e-3, mu_dtype=jnp.bfloat16)
    saved, wanted = make_state(factor=2.0), make_state(optimizer=half)
    saved = saved.replace(opt_state=jax.tree.map(lambda leaf: leaf + 1, saved.opt_state))
    state, messages = resume(tmp_path, saved, wanted)
    assert messages == ["2 arrays of the optimizer's state change their dtype"]
    assert state.opt_state[0].mu["kernel"].dtype == jnp.bfloat16
    jax.tree.map(
        lambda new, old: np.testing.assert_array_equal(new.astype(old.dtype), old),
        state.opt_state,
        saved.opt_state,
    )


def test_another_optimizer_with_the_same_state_is_reported(tmp_path):
    _, messages = resume(tmp_path, make_state(), make_state(), now="AdamWScale")
    assert messages == [
        "the run was trained with AdamW, now AdamWScale, which takes its state over"
    ]


@pytest.mark.parametrize(
    ("was", "expected"),
    [
        ("AdamW", "trained with AdamW, now SGD"),
        (None, "the optimizer, or a setting of it, has changed"),  # by a version that kept no name
        ("SGD", "a setting of SGD has changed"),
    ],
)
def test_another_optimizer_is_named_with_the_advice_for_a_new_run(tmp_path, was, expected):
    with pytest.raises(InputError, match=expected) as error:
        resume(tmp_path, make_state(), make_state(optimizer=optax.sgd(0.1)), was=was, now="SGD")
    lines = str(error.value).splitlines()
    assert len(lines) <= 5
    assert f"restore_from = '{tmp_path}/checkpoints/5'" in lines[-1]


def test_other_parameters_are_not_blamed_on_the_optimizer(tmp_path):
    wanted = make_state()
    wanted.params["kernel"] = jnp.zeros((3, 5))
    with pytest.raises(InputError, match=r"params/kernel: saved float32\[3, 4\]"):
        resume(tmp_path, make_state(), wanted, now="SGD")


def test_optimizers_have_names():
    assert name_of(AdamW(1e-3)) == "AdamW"
    assert name_of(FromOptax(optax.adabelief, 1e-3)) == "FromOptax(adabelief)"
    assert name_of(optax.sgd(0.1)) == "an Optax transformation"
    assert name_of(lambda axes: optax.sgd(0.1)) == "<lambda>"
