import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.optimizers import schedules

WARMUP, TOTAL = 10, 100
ROWS = {
    "constant": schedules.constant(peak=0.5, warmup_steps=WARMUP),
    "linear": schedules.linear(peak=0.5, total_steps=TOTAL, warmup_steps=WARMUP, end=0.1),
    "cosine": schedules.cosine(peak=0.5, total_steps=TOTAL, warmup_steps=WARMUP, end=0.1),
    "rsqrt": schedules.rsqrt(base=0.5 * math.sqrt(WARMUP), warmup_steps=WARMUP),
    "wsd": schedules.wsd(peak=0.5, total_steps=TOTAL, warmup_steps=WARMUP, decay_steps=20, end=0.1),
}
row = pytest.mark.parametrize("schedule", ROWS.values(), ids=ROWS)


def curve(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


@row
def test_climbs_linearly_from_zero_to_the_full_rate_at_warmup_steps(schedule):
    expected = 0.5 * np.arange(WARMUP + 1) / WARMUP
    np.testing.assert_allclose(curve(schedule, range(WARMUP + 1)), expected, rtol=1e-6)
    assert float(schedule(0)) == 0.0


@row
def test_never_rises_after_warmup(schedule):
    rates = curve(schedule, range(WARMUP, 2 * TOTAL, 3))
    assert all(b <= a for a, b in itertools.pairwise(rates))


@row
def test_is_a_float32_scalar_for_every_kind_of_step(schedule):
    steps = [37, np.int32(37), jnp.int32(37)]
    rates = [schedule(step) for step in steps] + [jax.jit(schedule)(jnp.int32(37))]
    for rate in rates:
        assert rate.shape == ()
        assert rate.dtype == jnp.float32
        np.testing.assert_allclose(rate, rates[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_stays_at_its_end_value(name):
    np.testing.assert_allclose(curve(ROWS[name], [TOTAL, TOTAL + 1, 10 * TOTAL]), 0.1, rtol=1e-6)
    assert float(ROWS[name](TOTAL - 1)) > 0.1


def test_without_warmup_the_first_step_has_the_full_rate():
    assert float(schedules.constant(peak=0.5)(0)) == 0.5
    assert float(schedules.cosine(peak=0.5, total_steps=9)(0)) == 0.5


def test_linear_and_cosine_pass_their_midpoint_halfway():
    middle = WARMUP + (TOTAL - WARMUP) // 2
    np.testing.assert_allclose(curve(ROWS["linear"], [middle]), 0.3, rtol=1e-6)
    np.testing.assert_allclose(curve(ROWS["cosine"], [middle]), 0.3, rtol=1e-6)


def test_wsd_is_flat_until_the_last_decay_steps():
    np.testing.assert_array_equal(curve(ROWS["wsd"], range(WARMUP, TOTAL - 20 + 1)), 0.5)
    np.testing.assert_allclose(curve(ROWS["wsd"], [TOTAL - 10]), 0.3, rtol=1e-6)


def test_rsqrt_is_t5x_constant_linear_warmup_rsqrt_decay():
    def t5x(step, base=0.7, warmup=1000):
        rate = base * min(1.0, step / warmup) / math.sqrt(max(step, warmup))
        return max(rate, 1e-8)

    steps = [1, 2, 999, 1000, 1001, 54_321, 1_000_000]
    ours = schedules.rsqrt(base=0.7, warmup_steps=1000)
    np.testing.assert_allclose(curve(ours, steps), [t5x(step) for step in steps], rtol=1e-6)
    assert float(ours(0)) == 0.0 < t5x(0)


def test_rsqrt_without_climb_is_the_t5_paper():
    paper = schedules.rsqrt(base=1.0, warmup_steps=10_000, climb=False)
    steps = [0, 5_000, 10_000, 40_000]
    np.testing.assert_allclose(curve(paper, steps), [0.01, 0.01, 0.01, 0.005], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("constant", {"peak": -1.0}, "constant.peak = -1.0"),
        ("constant", {"peak": "1e-3"}, "constant.peak = '1e-3'"),
        ("constant", {"peak": math.nan}, "constant.peak = nan"),
        ("constant", {"peak": True}, "constant.peak = True"),
        ("constant", {"peak": 1.0, "warmup_steps": -1}, "whole number of at least 0"),
        ("linear", {"peak": 1.0, "total_steps": 1e4}, "write 10000"),
        ("linear", {"peak": 1.0, "total_steps": 5, "end": -1}, "linear.end = -1"),
        ("cosine", {"peak": 1.0, "total_steps": 10, "warmup_steps": 10}, "at least 11"),
        (
            "cosine",
            {"peak": 1.0, "total_steps": 40, "warmup_steps": 100},
            r"train for longer \(TRAIN_STEPS\), or set t5lite.*cosine.warmup_steps = 4$",
        ),
        ("rsqrt", {"warmup_steps": 0}, "rsqrt.warmup_steps = 0"),
        ("rsqrt", {"climb": 1}, "rsqrt.climb = 1"),
        ("wsd", {"peak": 1.0, "total_steps": 10, "decay_steps": 0}, "wsd.decay_steps = 0"),
        (
            "wsd",
            {"peak": 1.0, "total_steps": 10, "decay_steps": 6, "warmup_steps": 5},
            r"warmup_steps \(5\) \+ decay_steps \(6\)",
        ),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(InputError, match=message):
        getattr(schedules, name)(**settings)
