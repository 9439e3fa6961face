"""Early stopping and the plateau schedule, by what they do to a run."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.parallel import Layout, make_mesh
from t5lite.training import EarlyStopping, Edit, ReduceOnPlateau, Run, Stop

EVERY = 10


class State(types.SimpleNamespace):
    def __init__(self, extra):
        super().__init__(extra=extra)

    def replace(self, extra):
        return State(extra)


def make_run(message=None):
    layout = Layout()
    say = (lambda text: None) if message is None else message.append
    run = Run("", None, None, None, layout, make_mesh(layout), None, say=say)
    run.state = State({"update_scale": jnp.float32(1)})
    return run


def play(callback, values, *, run=None, first=1, metric="held_out/loss"):
    """Shows it one measurement after the other; returns the number of the one it stopped at."""
    run = run or make_run()
    for number, value in enumerate(values, first):
        if value is not None:
            run.record(number * EVERY, {metric: value})
        result = callback(run, run.state, step=number * EVERY)
        if isinstance(result, Stop):
            return number, result.reason
        if isinstance(result, Edit):
            run.state = result.state
    return None


def stopping(**options):
    return EarlyStopping(**({"patience": 2, "every": EVERY} | options))


@pytest.mark.parametrize(
    ("values", "options", "number"),
    [
        ([3, 2, 2.5, 2], {}, 4),  # no worse is not better
        ([3, 2, 2.5, 1.9, 2, 2], {}, 6),
        ([3, 2, 2.5, 2.5], {"patience": 3}, None),
        ([3, 2.95, 2.9, 2.5], {"min_delta": 0.2}, 3),
        ([3, 2.95, 2.7, 2.5], {"min_delta": 0.2}, None),  # better than the best, by and by
        ([1, 2, 2, 1], {"mode": "max"}, 4),
        ([np.nan, np.nan], {}, 2),
        ([np.nan, 3, np.nan, 2, np.nan, np.inf], {}, 6),
        ([3, None, None, None], {}, None),  # nothing new was measured
        ([3, 4, None, 4], {}, 4),
    ],
)
def test_patience(values, options, number):
    stopped = play(stopping(**options), values)
    assert (stopped and stopped[0]) == number


def test_the_reason_names_the_best_value_and_its_step():
    _, reason = play(stopping(), [3, 2.25, 2.5, 2.5])
    assert reason == "held_out/loss was not better than 2.25, of step 20, in 2 measurements"
    _, reason = play(stopping(patience=1), [np.nan])
    assert reason == "held_out/loss was not ever finite, in 1 measurement"


@pytest.mark.parametrize("cut", range(5))
def test_it_remembers_over_a_restart(cut):
    values = [3, 2, 2.5, 1.9, 2, 2]
    first = stopping()
    play(first, values[:cut])
    second = stopping()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.check(make_run()) is None
    number, _ = play(second, values[cut:], first=cut + 1)
    assert number == 6
    # The same command again would not train on; one with more patience would.
    again, patient = stopping(), stopping(patience=3)
    for callback in (again, patient):
        callback.load_state_dict(second.state_dict())
    assert "better than 1.9" in again.check(make_run()).reason
    assert patient.check(make_run()) is None


def test_another_metric_restarts_the_watch():
    first = stopping()
    play(first, [3, 3, 3])
    second = stopping(metric="held_out/accuracy")
    second.load_state_dict(first.state_dict())
    assert second.check(make_run()) is None


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceOnPlateau])
def test_an_unmeasured_metric_is_refused(kind):
    callback = kind(metric="held_out/los", patience=1, every=EVERY)
    with pytest.raises(InputError, match=rf"^{kind.__name__}.metric = 'held_out/los'") as error:
        play(callback, [3])
    assert "did you mean held_out/loss?" in str(error.value)
    assert "a callback before this one must measure it" in str(error.value)
    assert len(str(error.value).splitlines()) <= 4


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (EarlyStopping, {"patience": 0}),
        (EarlyStopping, {"every": 0}),
        (EarlyStopping, {"every": 2.5}),
        (EarlyStopping, {"min_delta": -1}),
        (EarlyStopping, {"mode": "least"}),
        (ReduceOnPlateau, {"factor": 1.0}),
        (ReduceOnPlateau, {"cooldown": -1}),
        (ReduceOnPlateau, {"minimum": 1.0}),
    ],
)
def test_fields_that_make_no_sense(kind, options):
    (name,) = options
    with pytest.raises(InputError, match=rf"^{kind.__name__}.{name} = "):
        kind(**({"patience": 1, "every": EVERY} | options))


# The plateau schedule.


def scales(values, **options):
    """The scale after each measurement."""
    callback = ReduceOnPlateau(**({"patience": 2, "every": EVERY} | options))
    run, actual = make_run(), []
    for number, value in enumerate(values, 1):
        play(callback, [value], run=run, first=number)
        actual.append(float(run.state.extra["update_scale"]))
    return actual


def test_each_plateau_multiplies_the_updates():
    assert scales([3, 3, 3, 3, 3, 2, 3, 3]) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_a_cooldown_waits_before_it_waits():
    assert scales([3] * 7, cooldown=2) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_the_minimum_is_of_all_factors_together():
    assert scales([3] * 6, patience=1, factor=0.1, minimum=0.03) == pytest.approx(
        [1, 0.1, *4 * [0.03]]
    )


def test_it_says_what_it_does_once():
    message = []
    callback = ReduceOnPlateau(patience=1, every=EVERY, factor=0.1, minimum=0.1)
    play(callback, [3, 3, 3, 3], run=make_run(message))
    assert message == [
        "step 20: held_out/loss was not better than 3, of step 10, in 1 measurement; "
        "updates are now scaled by 0.1"
    ]


def test_a_plateau_and_its_cooldown_survive_a_restart():
    values = [3, 3, 3, 3, 3, 3, 3, 2, 3, 3]
    whole = scales(values, cooldown=1)
    for cut in range(1, len(values)):
        first = ReduceOnPlateau(patience=2, every=EVERY, cooldown=1)
        second = ReduceOnPlateau(patience=2, every=EVERY, cooldown=1)
        run = make_run()
        play(first, values[:cut], run=run)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        again = make_run()
        again.state = run.state
        play(second, values[cut:], run=again, first=cut + 1)
        assert again.state.extra["update_scale"] == whole[-1]
