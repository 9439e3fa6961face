"""Rates are exact, bars stay bars and logs stay lines."""

import io
import sys
import types

import jax
import pytest

from t5lite.reporting import Position
from t5lite.reporting.progress import Progress
from t5lite.reporting.rates import Meter, Rates, peak_flops
from t5lite.training.duration import Duration


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_rates_are_counts_over_elapsed_time():
    clock = Clock()
    meter = Meter(peak=1000.0, clock=clock)
    for _ in range(4):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 2.0
        meter.step(tokens=30, flops=500.0)
    assert meter.read() == Rates(
        steps_per_second=0.4,
        tokens_per_second=12.0,
        flops_per_second=200.0,
        utilisation=0.2,
        input_wait=0.2,
    )
    clock.now += 10.0
    for _ in range(2):
        meter.step(tokens=5, flops=0.0)
    second = meter.read()
    assert (second.steps_per_second, second.tokens_per_second) == (0.2, 1.0)
    assert (second.utilisation, second.input_wait) == (0.0, 0.0)


def test_few_steps_are_read_together_with_earlier_ones():
    clock = Clock()
    meter = Meter(clock=clock)
    for _ in range(3):
        clock.now += 2.0
        meter.step(tokens=10, flops=0.0)
    assert meter.read().tokens_per_second == 5.0
    clock.now += 0.5  # only the end of it: it began before the last reading
    meter.step(tokens=10, flops=0.0)
    assert meter.read().tokens_per_second == 40 / 6.5


def test_pauses_do_not_count():
    clock = Clock()
    meter = Meter(clock=clock)
    meter.step(tokens=10, flops=1.0)
    clock.now += 2.0
    with meter.paused():
        clock.now += 100.0
    clock.now += 3.0
    rates = meter.read()
    assert rates.tokens_per_second == 2.0
    assert rates.utilisation is None
    assert "utilisation" not in rates.metrics()
    assert rates.metrics()["tokens_per_second"] == 2.0


def test_a_reading_during_a_pause_counts_the_rest_of_the_pause_out():
    clock = Clock()
    meter = Meter(clock=clock)
    with meter.paused():
        clock.now += 5.0
        meter.read()
        clock.now += 5.0
    clock.now += 2.0
    meter.step(tokens=10, flops=0.0)
    assert meter.read().tokens_per_second == 5.0


def test_an_immediate_reading_does_not_divide_by_zero():
    assert Meter(clock=Clock()).read().tokens_per_second == 0.0


def test_the_peak_is_that_of_all_devices_or_unknown():
    def device(kind):
        return types.SimpleNamespace(device_kind=kind)

    assert peak_flops(4 * [device("TPU v5 lite")]) == 4 * 1.97e14
    assert peak_flops([device("NVIDIA H100 80GB HBM3")]) == 9.89e14
    assert peak_flops([device("TPU v4"), device("abacus")]) is None
    assert peak_flops(jax.devices()) is None


def bar(steps, *, start=0, **options):
    progress = Progress(Duration(steps), **options)
    progress.begin(Position(start))
    return progress


RATES = Rates(
    steps_per_second=2.0,
    tokens_per_second=52_140.0,
    flops_per_second=3.4e9,
    utilisation=None,
    input_wait=0.024,
)


def test_a_log_gets_whole_lines_at_intervals(capsys):
    clock, stream = Clock(), io.StringIO()
    progress = bar(1000, seconds=20.0, stream=stream, clock=clock)
    for step in range(1, 291):
        clock.now = 10.0 + 0.5 * step  # ten seconds of compiling first
        metrics = {"loss": 1 / step, "learning_rate": 1e-3} if step % 10 == 0 else None
        progress.update(Position(step), metrics=metrics, rates=RATES if metrics else None)
        if step == 100:
            progress.say("hello")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "step 20/1000 (2%) loss 0.050 lr 1.0e-03 52.1k tok/s 3.40GFLOP/s 2% input 8:10 left"
    )
    assert [line.split()[1].split("/")[0] for line in lines] == [
        str(step) for step in (*range(20, 291, 40), 290)
    ]
    assert "\r" not in stream.getvalue()
    assert capsys.readouterr().out == "hello\n"


def test_known_peaks_show_utilisation_and_long_runs_hours():
    clock, stream = Clock(), io.StringIO()
    progress = bar(100_000, seconds=0.0, stream=stream, clock=clock, start=50)
    rates = Rates(1.0, 1_234_567.0, 1e15, 0.412, 0.0)
    for step in (51, 52):
        clock.now = float(step)
        progress.update(Position(step), rates=rates)
    assert stream.getvalue().splitlines() == [
        "step 51/100000 (0%) 1.23M tok/s 41% util 0% input",
        "step 52/100000 (0%) 1.23M tok/s 41% util 0% input 27:45:48 left",
    ]


def test_the_last_step_is_always_shown_once():
    stream = io.StringIO()
    progress = bar(3, seconds=60.0, stream=stream, clock=Clock())
    for step in (1, 2, 3):
        progress.update(Position(step), metrics={"loss": step})
    progress.close()
    assert stream.getvalue() == "step 3/3 (100%) loss 3.000 0:00 left\n"
    resumed = bar(3, stream=stream, clock=Clock(), start=3)
    resumed.close()
    assert stream.getvalue().count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_texts_above_it(capsys):
    stream = Terminal()
    progress = bar(20, stream=stream, clock=Clock(), start=5)
    for step in range(6, 21):
        progress.update(Position(step), metrics={"loss": 2.5})
        if step == 10:
            progress.say("held-out loss 2.4")
    progress.close()
    frames = stream.getvalue().split("\r")
    assert "5/20" in frames[1]
    assert "20/20" in frames[-1]
    assert "loss 2.500" in frames[-1]
    assert stream.getvalue().count("\n") == 1
    assert capsys.readouterr().out == "held-out loss 2.4\n"


@pytest.mark.parametrize(
    ("limits", "position", "line"),
    [
        (
            {"tokens": 2_000_000},
            Position(7, 1_234_000, 1),
            "step 7, 1.23M/2.00M tokens (61%) epoch 1",
        ),
        ({"epochs": 2.5}, Position(7, 900, 1.44), "step 7, epoch 1.4/2.5 (57%) 900 tokens"),
        (
            {"steps": 100, "tokens": 1000, "epochs": 3},
            Position(29, 150, 2),
            "step 29/100, 150/1.00k tokens, epoch 2/3 (66%)",
        ),
        ({"steps": 100}, Position(29, 150, 0.07), "step 29/100 (29%) epoch 0.1 150 tokens"),
        ({"tokens": 1000}, Position(9, 1009), "step 9, 1.01k/1.00k tokens (100%)"),
    ],
)
def test_progress_is_shown_in_the_units_of_the_limits(limits, position, line):
    stream = io.StringIO()
    progress = Progress(Duration(**limits), seconds=0.0, stream=stream, clock=Clock())
    progress.begin(Position(1))
    progress.update(position)
    assert stream.getvalue() == f"{line}\n"


def test_the_time_left_follows_the_nearest_limit():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(Duration(tokens=1000), seconds=0.0, stream=stream, clock=clock)
    progress.update(Position(1, 100))
    clock.now = 30.0
    progress.update(Position(2, 400))
    assert stream.getvalue().splitlines()[-1] == "step 2, 400/1.00k tokens (40%) 1:00 left"


def test_other_processes_show_nothing(capsys):
    stream = Terminal()
    progress = bar(20, active=False, seconds=0.0, stream=stream, clock=Clock())
    progress.update(Position(20), metrics={"loss": 1.0})
    progress.say("hello")
    progress.close()
    assert stream.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_a_log_needs_no_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    bar(20, stream=io.StringIO()).close()
    with pytest.raises(ImportError):
        bar(20, stream=Terminal())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.4, "7"), (999.4, "999"), (999.6, "1.00k"), (12_345, "12.3k"), (4e17, "400P")],
)
def test_numbers_are_short(value, text):
    stream = io.StringIO()
    progress = bar(2, seconds=0.0, stream=stream, clock=Clock())
    progress.update(Position(1), rates=Rates(1.0, value, 1.0, 0.5, 0.0))
    assert stream.getvalue().split()[3] == text
