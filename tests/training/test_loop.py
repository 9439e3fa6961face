"""The loop: what is due when, in which order, and what is kept if it ends early."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from t5lite.errors import InputError
from t5lite.objectives import Classification, Contrastive, MaskedLM, Regression, TokenLabels
from t5lite.parallel import Layout, make_mesh
from t5lite.reporting import Meter, Progress
from t5lite.training import (
    Duration,
    Edit,
    Ledger,
    Loop,
    NonFiniteLoss,
    Run,
    Saver,
    Stop,
    Tuning,
    Update,
    saving,
    signals,
)
from t5lite.training.saving import SaveTimes

LAYOUT = Layout()
DATA = types.SimpleNamespace(batch_size=8)
MODEL = types.SimpleNamespace()
OBJECTIVE = types.SimpleNamespace(
    token_arrays=("encoder_input_tokens",),
    axes=lambda: {"encoder_input_tokens": ("batch", "length"), "tokens": ("batch", "length")},
    limits=lambda model: {},
)


class Counting:
    """Batches that hold their own number, from 1."""

    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        return {"encoder_input_tokens": np.full((8, 2), self.count, np.int32)}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    @property
    def epoch(self):
        return self.count // 4


class Memory:
    """A writer and a checkpointer that remember what they are given."""

    def __init__(self, events):
        self.events, self.lines, self.saved = events, [], []

    def write(self, step, metrics):
        self.lines.append((step, dict(metrics)))
        self.events.append(f"write {step}")

    def save(self, step, state, *, progress, metrics):
        assert int(state.step) == step
        self.saved.append((step, json.loads(json.dumps(progress)), dict(metrics)))
        self.events.append(f"save {step}")

    def is_best(self, metrics):
        return metrics.get("best", False)

    def wait(self):
        self.events.append("wait")

    def close(self):
        pass


class Each:
    """A callback that notes its turns, and returns what `results` has for a step."""

    def __init__(self, name, every, results=None):
        self.name, self.every, self.results, self.memory = name, every, results or {}, 0

    def __call__(self, run, state, *, step):
        assert int(state.step) == step
        run.events.append(f"{self.name} {step}")
        self.memory += 1
        result = self.results.get(step)
        return result(run) if callable(result) else result


class Remembering(Each):
    def state_dict(self):
        return {"memory": self.memory}

    def load_state_dict(self, state):
        self.memory = state["memory"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["extra"], meta_fields=["step"])
@dataclasses.dataclass
class CountingState:
    step: int
    extra: dict = dataclasses.field(default_factory=dict)

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass
class Scene:
    """A loop around a step that only counts."""

    loop: Loop
    memory: Memory
    events: list
    said: list

    def run(self, start=0):
        return self.train(CountingState(start))

    def train(self, state):
        return self.loop.train(state) if self.loop.begin(state) else state

    @property
    def lines(self):
        return self.memory.lines

    @property
    def saved(self):
        return [step for step, _, _ in self.memory.saved]


def make(
    tmp_path,
    *,
    steps=6,
    tokens=None,
    epochs=None,
    callbacks=(),
    bad=(),
    spikes=(),
    sums=lambda step: {},
    rate=None,
    step=None,
    on_nan="stop",
    max_skips=100,
    log_every=1,
    checkpoint_every=100,
    checkpoint_minutes=None,
    learning_rate=lambda state: None,
    **options,
):
    """Step n's loss is n, unless it is one of the `bad` ones, and it has n tokens."""
    events, said = [], []
    duration = Duration(steps, tokens, epochs)
    memory = Memory(events)
    run = Run(
        model_dir=str(tmp_path),
        model=MODEL,
        objective=OBJECTIVE,
        data=DATA,
        layout=LAYOUT,
        mesh=make_mesh(LAYOUT),
        steps=steps,
        callbacks=callbacks,
        writers=[memory],
        say=said.append,
    )
    run.events = events

    def step_fn(state, batch):
        step = state.step + 1
        events.append(f"step {step}")
        assert isinstance(batch["encoder_input_tokens"], jax.Array)
        metrics = {
            "tokens": np.int32(step),
            "applied": np.bool_(step not in bad and step not in spikes),
            "spike": np.bool_(step in spikes),
            "loss": np.float32(np.nan if step in bad else step),
            "gradient_norm": np.float32(10 * step),
            "parameter_norm": np.float32(1),
            "finite": np.bool_(step not in bad),
            "sums": sums(step),
        }
        scale = state.extra.get("update_scale")
        metrics |= {} if scale is None else {"update_scale": scale}
        metrics |= {} if rate is None else {"learning_rate": np.float32(rate(step))}
        return state.replace(step=step), metrics

    batches = Counting()
    ledger = Ledger(
        run,
        Meter(),
        Progress(duration, active=False),
        update=Update(on_nan=on_nan, max_skips=max_skips),
        log_every=log_every,
    )
    saver = Saver(
        memory,
        run=run,
        batches=batches,
        ledger=ledger,
        every=checkpoint_every,
        every_minutes=checkpoint_minutes,
        learning_rate=learning_rate,
    )
    loop = Loop(run, step or step_fn, batches, ledger, saver, duration, **options)
    return Scene(loop, memory, events, said)


def test_callbacks_are_due_every_so_often_and_at_the_end_in_order(tmp_path):
    callbacks = [Each("b", 3), Each("a", 2)]
    scene = make(tmp_path, steps=7, callbacks=callbacks)
    assert scene.run().step == 7
    turns = [event for event in scene.events if event[0] in "ab"]
    assert turns == ["a 2", "b 3", "a 4", "b 6", "a 6", "b 7", "a 7"]


def test_a_new_best_measurement_is_saved_at_once(tmp_path):
    measured = {step: {"best": float(step in (2, 5))} for step in range(1, 8)}
    options = {"steps": 7, "checkpoint_every": 3, "learning_rate": lambda state: state.step / 10}
    scene = make(tmp_path, callbacks=[Each("measure", 1, measured)], **options)
    scene.run()
    assert scene.saved == [2, 3, 5, 6, 7]
    assert scene.memory.saved[0][-1] == {"best": 1.0}
    assert [progress["learning_rate"] for _, progress, _ in scene.memory.saved] == [
        step / 10 for step in scene.saved
    ]


def test_everything_due_happens_before_the_next_step_and_saving_comes_last(tmp_path):
    scene = make(tmp_path, steps=5, callbacks=[Each("a", 2)], checkpoint_every=4)
    scene.run()
    # A step's line is written once the next is under way, or before whatever else is due.
    assert scene.events == [
        *("step 1", "step 2", "write 1", "write 2", "a 2"),
        *("step 3", "step 4", "write 3", "write 4", "a 4", "save 4"),
        *("step 5", "write 5", "a 5", "save 5"),
    ]


def test_a_step_is_read_only_once_the_next_is_dispatched(tmp_path):
    scene = make(tmp_path, steps=4)
    scene.run()
    assert scene.events == [
        *("step 1", "step 2", "write 1", "step 3", "write 2", "step 4", "write 3", "write 4"),
        "save 4",
    ]
    assert [(step, line["train/loss"]) for step, line in scene.lines] == [
        (1, 1), (2, 2), (3, 3), (4, 4)
    ]  # fmt: skip


def test_a_line_averages_the_steps_since_the_last(tmp_path):
    def sums(step):
        return {"loss": (step * 2.0**step, 2.0**step), "accuracy": (1.0, 4.0)}

    scene = make(tmp_path, steps=7, log_every=3, sums=sums, rate=lambda step: step / 8)
    scene.run()
    assert [step for step, _ in scene.lines] == [3, 6, 7]
    first, second, last = (line for _, line in scene.lines)
    assert first["train/loss"] == pytest.approx((1 * 2 + 2 * 4 + 3 * 8) / (2 + 4 + 8))
    assert second["train/loss"] == pytest.approx((4 * 16 + 5 * 32 + 6 * 64) / (16 + 32 + 64))
    assert last["train/loss"] == 7
    # The objective's own loss is `loss`; what is minimised keeps a name of its own.
    assert second["train/total_loss"] == 5
    assert second["train/gradient_norm"] == 50
    assert second["train/accuracy"] == 0.25
    assert second["train/learning_rate"] == 6 / 8  # the last step's
    assert second["train/epoch"] == 1
    assert second["train/steps_per_second"] > 0


def test_an_average_survives_a_restart(tmp_path):
    whole = make(tmp_path, steps=6, log_every=6)
    whole.run()
    first = make(tmp_path, steps=6, log_every=6, checkpoint_every=4)
    first.run()
    ((step, progress, _), *_) = first.memory.saved
    second = make(tmp_path, steps=6, log_every=6)
    second.loop.saver.load_progress(progress)
    second.run(step)
    for name in ("train/loss", "train/gradient_norm", "train/epoch"):
        assert second.lines[0][1][name] == whole.lines[0][1][name]
    assert whole.lines[0][1]["train/loss"] == 3.5


def test_metrics_of_a_callback_reach_writers_later_callbacks_and_checkpoints(tmp_path):
    seen = []
    callbacks = [
        Each("a", 2, {2: {"validation/loss": 0.5}, 4: {"validation/loss": jnp.float32(0.25)}}),
        Each("b", 2, dict.fromkeys((2, 4), lambda run: seen.append(dict(run.metrics)))),
    ]
    scene = make(tmp_path, steps=4, callbacks=callbacks, checkpoint_every=3)
    scene.run()
    assert seen == [{"validation/loss": 0.5}, {"validation/loss": 0.25}]
    assert (2, {"validation/loss": 0.5}) in scene.lines
    # The best checkpoint is chosen by what was measured at its own step, not before.
    assert [(step, metrics) for step, _, metrics in scene.memory.saved] == [
        (3, {}),
        (4, {"validation/loss": 0.25}),
    ]
    # But a run that resumes at step 3 knows what is known so far.
    again = make(tmp_path)
    again.loop.saver.load_progress(scene.memory.saved[0][1])
    assert again.loop.run.metrics == {"validation/loss": 0.5}


def test_a_callback_can_stop_the_run(tmp_path):
    callbacks = [
        Each("a", 1, {3: Stop("good enough")}),
        Each("b", 1, {3: Stop("too late")}),
        Each("c", 3, {3: {"validation/loss": 1.0}}),
    ]
    scene = make(tmp_path, callbacks=callbacks, log_every=2)
    assert scene.run().step == 3
    assert scene.events[-6:] == ["a 3", "b 3", "c 3", "write 3", "write 3", "save 3"]
    assert scene.said == ["stopped at step 3: good enough"]


def test_a_callback_that_fails_does_not_cost_the_training_before_it(tmp_path):
    def fail(run):
        raise OSError("no such host")

    scene = make(tmp_path, callbacks=[Each("a", 3, {3: fail})])
    with pytest.raises(OSError, match="no such host"):
        scene.run()
    assert scene.events[-2:] == ["a 3", "save 3"]


def test_a_callback_can_check_the_run_before_the_first_step(tmp_path):
    class Checking(Each):
        def check(self, run):
            raise ValueError(f"no split in {run.data}")

    scene = make(tmp_path, callbacks=[Checking("a", 100)])
    with pytest.raises(ValueError, match="no split in namespace"):
        scene.run()
    assert scene.events == []


def test_callbacks_and_data_remember_over_a_restart(tmp_path):
    first = make(
        tmp_path, callbacks=[Each("a", 1), Remembering("b", 2)], checkpoint_every=4, steps=5
    )
    first.run()
    ((step, progress, _), *_) = first.memory.saved
    assert step == 4
    assert progress["callbacks"] == [["Remembering", "", {"memory": 2}]]
    callbacks = [Each("a", 1), Remembering("b", 2)]
    second = make(tmp_path, callbacks=callbacks, steps=5)
    second.loop.saver.load_progress(progress)
    assert (callbacks[0].memory, callbacks[1].memory) == (0, 2)
    second.run(step)
    assert second.loop.batches.count == 5


class Lowering(Each):
    def __call__(self, run, state, *, step):
        scale = state.extra["update_scale"] * jnp.float32(0.3)
        return Edit(state.replace(extra={"update_scale": scale}))


def scaled_state(step=0, scale=1.0):
    return CountingState(step, {"update_scale": jnp.float32(scale)})


def test_a_scale_of_updates_holds_from_the_next_step_on_and_is_saved(tmp_path):
    states = []
    scene = make(tmp_path, callbacks=[Lowering("h", 2)])
    inner = scene.memory.save
    scene.memory.save = lambda step, state, **rest: (
        states.append(state), inner(step, state, **rest)
    )  # fmt: skip
    scene.loop.saver.every = 4
    scene.train(scaled_state())
    expected = [1, 1, 0.3, 0.3, 0.09, 0.09]
    # It is written from the first step on that it scales.
    written = [line.get("train/update_scale", 1) for _, line in scene.lines]
    assert written == pytest.approx(expected)
    assert [int(state.step) for state in states] == [4, 6]
    # A run that resumes comes to the same numbers, to the last bit.
    again = make(tmp_path, callbacks=[Lowering("h", 2)])
    last = again.train(states[0])
    assert again.lines[0][1]["train/update_scale"] == scene.lines[4][1]["train/update_scale"]
    assert last.extra["update_scale"] == states[1].extra["update_scale"]


def test_later_callbacks_and_checkpoints_see_an_edited_state(tmp_path):
    seen = []

    class Seeing(Each):
        def __call__(self, run, state, *, step):
            seen.append(float(state.extra["update_scale"]))

    callbacks = [Seeing("before", 1), Lowering("l", 2), Seeing("after", 1)]
    scene = make(tmp_path, steps=2, callbacks=callbacks)
    last = scene.train(scaled_state())
    assert seen == pytest.approx([1, 1, 1, 0.3])
    assert last.extra["update_scale"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda extra: {"update_scale": extra["update_scale"].astype(jnp.bfloat16)}, "bfloat16"),
        (lambda extra: {"update_scale": jnp.ones(2, jnp.float32)}, r"float32\[\] to float32\[2\]"),
        (lambda extra: extra | {"more": jnp.float32(0)}, "another structure than the state"),
    ],
)
def test_an_edit_keeps_structure_shapes_and_types(tmp_path, edit, message):
    class Editing(Each):
        def __call__(self, run, state, *, step):
            return Edit(state.replace(extra=edit(state.extra)))

    scene = make(tmp_path, steps=2, callbacks=[Editing("e", 2)])
    with pytest.raises(InputError, match=f"the Edit of Editing .*{message}"):
        scene.train(scaled_state())


def test_an_edit_may_hold_arrays_of_the_host(tmp_path):
    class Editing(Each):
        def __call__(self, run, state, *, step):
            return Edit(state.replace(extra={"update_scale": np.float32(0.5)}))

    last = make(tmp_path, steps=2, callbacks=[Editing("e", 2)]).train(scaled_state())
    assert isinstance(last.extra["update_scale"], jax.Array)
    assert float(last.extra["update_scale"]) == 0.5


def test_a_result_that_is_none_of_a_callbacks_is_refused(tmp_path):
    scene = make(tmp_path, steps=2, callbacks=[Each("e", 2, {2: 0.5})])
    with pytest.raises(InputError, match="Each returned float: a callback returns metrics"):
        scene.run()


def test_batches_can_depend_on_the_state_and_be_on_the_devices(tmp_path):
    class Rollouts(Counting):
        def next_batch(self, state):
            seen.append(state.step)
            return jax.device_put(next(self), DEVICE)

    DEVICE, seen = make_mesh(LAYOUT).devices.flat[0], []
    scene = make(tmp_path, steps=3)
    scene.loop.batches = Rollouts()
    assert scene.run().step == 3
    assert seen == [0, 1, 2]


def test_a_callback_can_end_a_run_before_its_first_step(tmp_path):
    class Checking(Each):
        def check(self, run):
            return Stop("it was good enough")

    scene = make(tmp_path, callbacks=[Checking("a", 1)])
    assert scene.run(3).step == 3
    assert scene.events == []
    assert scene.said == ["not trained any further: it was good enough"]


def test_a_callback_that_is_new_leaves_the_others_their_memory(tmp_path):
    first = make(tmp_path, callbacks=[Remembering("b", 2)], steps=4)
    first.run()
    callbacks = [type("New", (Remembering,), {})("n", 1), Remembering("b", 2)]
    second = make(tmp_path, callbacks=callbacks)
    second.loop.saver.load_progress(first.memory.saved[-1][1])
    assert [callback.memory for callback in callbacks] == [0, 2]


def test_callbacks_of_one_class_are_distinguished_by_their_metric(tmp_path):
    def watching(metric, **options):
        callback = Remembering(metric, 1, **options)
        callback.metric = metric
        return callback

    scene = make(tmp_path, steps=4, callbacks=[watching("a"), watching("b")])
    scene.loop.run.callbacks[0].memory = 10
    scene.run()
    alone = watching("b")
    make(tmp_path, callbacks=[alone]).loop.saver.load_progress(scene.memory.saved[-1][1])
    assert alone.memory == 4


def test_a_run_that_is_stopped_writes_its_last_steps(tmp_path):
    stop = Each("stop", 5, {5: Stop("enough")})
    scene = make(tmp_path, steps=20, log_every=3, callbacks=[stop])
    scene.run()
    assert [step for step, line in scene.lines if "train/loss" in line] == [3, 5]


def test_a_finished_run_does_nothing(tmp_path):
    scene = make(tmp_path, steps=6, callbacks=[Each("a", 1)])
    assert scene.run(6).step == 6
    assert scene.events == []
    assert scene.said == [f"{tmp_path} is already trained to step 6/6 (100%)"]


def test_checkpoints_are_saved_when_due_and_once_at_the_end(tmp_path):
    scene = make(tmp_path, steps=6, checkpoint_every=3)
    scene.run()
    assert scene.saved == [3, 6]
    scene = make(tmp_path, steps=7, checkpoint_every=3)
    scene.run()
    assert scene.saved == [3, 6, 7]


# Ends that are not a number of steps: step n has n tokens, and four steps are an epoch.


@pytest.mark.parametrize(("tokens", "last"), [(1, 1), (9, 4), (10, 4), (11, 5), (100, 14)])
def test_a_run_ends_with_the_step_that_reaches_its_tokens(tmp_path, tokens, last):
    scene = make(tmp_path, steps=None, tokens=tokens, callbacks=[Each("a", 100)])
    assert scene.run().step == last
    assert scene.saved == [last]
    assert scene.loop.batches.count == last
    assert scene.events[-3:] == [f"write {last}", f"a {last}", f"save {last}"]
    assert scene.lines[-1][1]["train/tokens"] == last * (last + 1) / 2
    if last == 14:  # far from the end no step is waited for
        assert scene.events[:4] == ["step 1", "step 2", "write 1", "step 3"]


def test_tokens_go_on_counting_after_a_restart(tmp_path):
    first = make(tmp_path, steps=None, tokens=100, checkpoint_every=6)
    first.run()
    ((step, progress, _), *_) = first.memory.saved
    second = make(tmp_path, steps=None, tokens=100)
    second.loop.saver.load_progress(progress)
    assert second.run(step).step == 14
    assert second.lines[-1][1]["train/tokens"] == 105
    assert second.said == [f"resuming {tmp_path} at step 6, 21/100 tokens (21%)"]
    third = make(tmp_path, steps=None, tokens=100, callbacks=[Each("a", 1)])
    third.loop.saver.load_progress(second.memory.saved[-1][1])
    assert third.run(14).step == 14
    assert third.events == []


def test_a_run_ends_with_the_step_that_completes_its_epochs(tmp_path):
    scene = make(tmp_path, steps=None, epochs=2)
    assert scene.run().step == 8
    assert [line["train/epoch"] for _, line in scene.lines] == [0, 0, 0, 1, 1, 1, 1, 2]


def test_batches_can_tell_the_part_of_an_epoch(tmp_path):
    scene = make(tmp_path, steps=None, epochs=1.5)
    with pytest.raises(InputError, match=r"^train.epochs = 1.5: must be whole"):
        scene.run()
    parts = property(lambda self: self.count / 4)
    scene.loop.batches = type("Parts", (Counting,), {"epoch": parts})()
    assert scene.run().step == 6
    assert [line["train/epoch"] for _, line in scene.lines] == [0.25, 0.5, 0.75, 1, 1.25, 1.5]


def test_data_without_epochs_cannot_end_a_run(tmp_path):
    scene = make(tmp_path, steps=None, epochs=1)
    scene.loop.batches = iter([])
    with pytest.raises(InputError, match=r"do not count epochs; set train.steps or train.tokens"):
        scene.run()


def test_the_first_end_counts(tmp_path):
    assert make(tmp_path, steps=5, tokens=1000, epochs=2).run().step == 5
    assert make(tmp_path, steps=50, tokens=1000, epochs=1).run().step == 4
    assert make(tmp_path, steps=50, tokens=5, epochs=9).run().step == 3


@pytest.mark.parametrize("epochs", [3, 9])
def test_several_processes_end_with_the_same_step_and_ask_each_other_seldom(
    tmp_path, monkeypatch, epochs
):
    asked = []

    def gather(mine):
        asked.append(mine)
        return [mine, max(mine - 1, 0)]  # the other process is an epoch behind

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("t5lite.training.duration.gather", gather)
    scene = make(tmp_path, steps=None, epochs=epochs)
    scene.loop.batches = type("Exact", (Counting,), {"epoch": property(lambda b: b.count / 4)})()
    # An epoch has four steps here, and is complete in both processes together two steps later.
    assert scene.run().step == 4 * epochs + 2
    assert len(asked) <= 8 + np.log2(epochs)
    asked.clear()
    assert make(tmp_path, steps=30).run().step == 30
    assert asked == []


def test_several_processes_end_after_the_step_that_all_agree_on(tmp_path, monkeypatch):
    asked = []

    def reached_preemption_sync_point(step):
        asked.append(step)
        return step == 5

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", reached_preemption_sync_point
    )
    scene = make(tmp_path, steps=30)
    with pytest.raises(SystemExit) as exited:
        scene.run()
    assert (exited.value.code, scene.saved) == (143, [5])
    assert asked == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "train.steps, train.tokens or train.epochs: one must say when to stop"),
        ({"steps": 0}, "train.steps = 0: must be a whole number of at least 1"),
        ({"tokens": 1e9}, "train.tokens = 1000000000.0: must be a whole number"),
        ({"tokens": True}, "train.tokens = True"),
        ({"epochs": 0}, "train.epochs = 0: must be a number above 0"),
        ({"epochs": np.inf}, "train.epochs = inf"),
        ({"epochs": "3"}, "train.epochs = '3'"),
    ],
)
def test_ends_that_make_no_sense(limits, message):
    with pytest.raises(InputError, match=message):
        Duration(**limits)


# Numbers that are none.


def test_a_nan_stops_the_run_and_keeps_its_batch(tmp_path):
    scene = make(tmp_path, bad=[3], checkpoint_every=2)
    with pytest.raises(NonFiniteLoss, match=r"^step 3: loss nan .*step_3_process_0.npz"):
        scene.run()
    assert scene.saved == [2]
    assert [step for step, _ in scene.lines] == [1, 2]
    (path,) = (tmp_path / "bad_batches").iterdir()
    with np.load(path) as saved:
        assert list(saved) == ["encoder_input_tokens"]
        np.testing.assert_array_equal(saved["encoder_input_tokens"], np.full((8, 2), 3))


def test_a_nan_at_a_checkpoint_is_not_saved(tmp_path):
    scene = make(tmp_path, bad=[4], checkpoint_every=2)
    with pytest.raises(NonFiniteLoss):
        scene.run()
    assert scene.saved == [2]


def test_a_nan_in_the_last_step_is_reported(tmp_path):
    scene = make(tmp_path, bad=[6])
    with pytest.raises(NonFiniteLoss, match="step 6"):
        scene.run()


def test_skipped_updates_are_counted_and_left_out_of_the_average(tmp_path):
    options = {"on_nan": "skip", "log_every": 3}
    scene = make(tmp_path, bad=[2, 3, 4], checkpoint_every=4, **options)
    assert scene.run().step == 6
    (_, first), (_, second) = scene.lines
    assert first["train/loss"] == 1
    assert first["train/skipped_updates"] == 2
    assert second["train/loss"] == 5.5
    assert second["train/skipped_updates"] == 3
    assert len(list((tmp_path / "bad_batches").iterdir())) == 3
    assert [text.split(":")[0] for text in scene.said] == ["step 2", "step 3", "step 4"]
    assert all("the update was skipped" in text for text in scene.said)
    # The count goes on after a restart.
    again = make(tmp_path, **options)
    again.loop.saver.load_progress(scene.memory.saved[0][1])
    again.run(4)
    assert again.lines[0][1]["train/skipped_updates"] == 3


@pytest.mark.parametrize("kind", ["bad", "spikes"])
def test_updates_that_are_skipped_in_a_row_end_the_run(tmp_path, kind):
    options = {kind: range(3, 20), "on_nan": "skip", "max_skips": 5, "steps": 20}
    scene = make(tmp_path, checkpoint_every=2, **options)
    with pytest.raises(NonFiniteLoss, match="step 7: the last 5 updates were all skipped") as error:
        scene.run()
    assert "Update.max_skips = 5" in str(error.value)
    assert len(str(error.value).splitlines()) <= 5
    assert scene.saved == [2, 4, 6]
    # A restart gains no patience.
    again = make(tmp_path, **options)
    again.loop.saver.load_progress(scene.memory.saved[1][1])
    with pytest.raises(NonFiniteLoss, match="step 7: the last 5 updates"):
        again.run(4)


def test_an_update_between_skipped_ones_restarts_the_count(tmp_path):
    bad = [2, 3, 5, 6, 8, 9]
    assert make(tmp_path, bad=bad, on_nan="skip", max_skips=3, steps=10).run().step == 10


def test_a_spike_is_reported_counted_and_its_batch_saved(tmp_path):
    scene = make(tmp_path, spikes=[2, 4], log_every=6)  # whatever is to be done about a NaN
    assert scene.run().step == 6
    ((_, line),) = scene.lines
    assert line["train/skipped_updates"] == 2
    assert line["train/loss"] == (1 + 3 + 5 + 6) / 4
    assert line["train/tokens"] == 21  # seen, if not learnt from
    names = sorted(path.name for path in (tmp_path / "bad_batches").iterdir())
    assert names == ["step_2_process_0.npz", "step_4_process_0.npz"]
    assert scene.said[0].startswith("step 2: the loss 2.000 is a spike, far above those before it")
    assert scene.said[0].endswith("the update was skipped")


def test_a_loss_scale_that_falls_is_counted_and_nothing_more(tmp_path):
    scene = make(tmp_path)
    inner = scene.loop.step

    def step_fn(state, batch):
        state, metrics = inner(state, batch)
        fell = np.bool_(state.step == 3)
        return state, metrics | {"applied": ~fell, "loss_scale": np.float32(2 - fell)}

    scene.loop.step = step_fn
    scene.run()
    assert [line["train/loss_scale"] for _, line in scene.lines] == [2, 2, 1, 2, 2, 2]
    assert scene.lines[-1][1]["train/skipped_updates"] == 1
    assert scene.said == []
    assert not (tmp_path / "bad_batches").exists()


# A scheduler's notice.


def terminate(run):
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_during_a_step_saves_it_and_exits(tmp_path):
    scene = make(tmp_path, checkpoint_every=100)
    inner = scene.loop.step

    def step_fn(state, batch):
        if state.step == 2:
            terminate(None)
        return inner(state, batch)

    scene.loop.step = step_fn
    with pytest.raises(SystemExit) as exit_:
        scene.run()
    assert exit_.value.code == 143
    assert scene.events[-4:] == ["write 2", "write 3", "save 3", "wait"]
    assert "step 3 is saved" in scene.said[-1]


def test_sigterm_during_a_callback_is_not_forgotten_to_be_saved(tmp_path):
    scene = make(tmp_path, callbacks=[Each("a", 2, {2: terminate})])
    with pytest.raises(SystemExit):
        scene.run()
    assert scene.saved[-1] == int(scene.said[-1].split("step ")[1].split(" ")[0])


def test_sigterm_in_the_last_step_ends_the_run_as_usual(tmp_path):
    scene = make(tmp_path, steps=2, callbacks=[Each("a", 2, {2: terminate})])
    before = signal.getsignal(signal.SIGTERM)
    assert scene.run().step == 2
    assert scene.saved == [2]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_loop_runs_in_a_thread_too(tmp_path):
    scene = make(tmp_path)
    thread = threading.Thread(target=scene.run)
    thread.start()
    thread.join()
    assert scene.saved == [6]


# Around the step.


def test_the_step_may_move_nothing_between_host_and_device(tmp_path):
    scene = make(tmp_path)
    inner = scene.loop.step

    def careless(state, batch):
        jax.jit(jnp.add)(batch["encoder_input_tokens"], np.ones((8, 2), np.int32))
        return inner(state, batch)

    scene.loop.step = careless
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        scene.run()


def test_the_profiler_surrounds_every_step(tmp_path):
    calls = []
    profiler = types.SimpleNamespace(
        before_step=lambda step: calls.append(("before", step)),
        after_step=lambda step, state: calls.append(("after", step)),
    )
    scene = make(tmp_path, steps=2, profiler=profiler)
    scene.run()
    assert calls == [("before", 1), ("after", 1), ("before", 2), ("after", 2)]


@pytest.mark.parametrize(
    ("objective", "name", "row", "message"),
    [
        (
            MaskedLM(),
            "encoder_input_tokens",
            [8, 9],
            "id 9 exceeds the model's 9 embeddings, 0 to 8; tokenise",
        ),
        (
            Contrastive(),
            "other_input_tokens",
            [9, 0],
            "other_input_tokens: the id 9 exceeds the model's 9 embeddings",
        ),
        (Classification(), "labels", 4, r"^labels: the id 4 .* 4 classes, 0 to 3; .*num_classes"),
        (
            TokenLabels(),
            "token_labels",
            [1, 7],
            r"^token_labels: the id 7 .* 3 .*, 0 to 2; .*num_labels",
        ),
    ],
)
def test_ids_beyond_the_model_are_refused(objective, name, row, message):
    model = types.SimpleNamespace(limits={"tokens": 9, "labels": 4, "token_labels": 3})
    run = Run("", model, objective, DATA, LAYOUT, make_mesh(LAYOUT), 1)
    rows = np.array([np.zeros_like(row)] * 7 + [row], np.int32)
    with pytest.raises(InputError, match=message):
        run.to_devices({name: rows})
    run.to_devices({name: np.maximum(rows - 7, 0)})
    run.to_devices({"encoder_segment_ids": np.full((8, 2), 100, np.int32)})
    with pytest.raises(InputError, match=r"without axes in the objective's axes\(\): 'mine'"):
        run.to_devices({"mine": rows})


def test_regression_targets_are_not_ids():
    model = types.SimpleNamespace(limits={"tokens": 9})
    run = Run("", model, Regression(), DATA, LAYOUT, make_mesh(LAYOUT), 1)
    run.to_devices({"labels": np.full((8, 1), 100, np.float32)})


class Pairing(Tuning):
    def merge(self, trained, frozen):
        return trained, frozen


def test_a_run_evaluates_the_average_and_its_live_parameters_are_never_averaged():
    mesh = make_mesh(LAYOUT)
    run = Run("", MODEL, OBJECTIVE, DATA, LAYOUT, mesh, None, tuning=Pairing())
    state = types.SimpleNamespace(params="params", frozen={"params": "frozen"}, extra={})
    assert run.params(state) == ("params", "frozen")
    assert run.live_params(state) == ("params", "frozen")
    state.extra["ema"] = "average"
    assert run.params(state) == ("average", "frozen")
    assert run.live_params(state) == ("params", "frozen")
    rows = run.to_devices({"tokens": np.arange(16, dtype=np.int32).reshape(8, 2)})["tokens"]
    assert rows.addressable_shards[0].data.shape == (1, 2)
    assert run.jit(lambda x: x + 1)(rows).tolist() == (np.asarray(rows) + 1).tolist()


# Ctrl-C.


def press(run=None):
    os.kill(os.getpid(), signal.SIGINT)


def pressing(scene, at, times=1):
    """Makes the step after `at` one during which Ctrl-C is pressed."""
    inner = scene.loop.step

    def step_fn(state, batch):
        if state.step == at:
            for _ in range(times):
                press()
        return inner(state, batch)

    scene.loop.step = step_fn


def test_ctrl_c_during_a_step_saves_it_and_exits(tmp_path, capsys):
    scene = make(tmp_path)
    pressing(scene, at=2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as exit_:
        scene.run()
    assert exit_.value.code == 130
    assert scene.events[-3:] == ["write 3", "save 3", "wait"]
    assert "interrupted: step 3 is saved" in scene.said[-1]
    assert "Ctrl-C again leaves at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_REPEATED_SECONDS", 0.0)
    scene = make(tmp_path)
    pressing(scene, at=2, times=2)
    with pytest.raises(KeyboardInterrupt):
        scene.run()
    assert scene.saved == []


def test_one_ctrl_c_that_arrives_twice_is_one(tmp_path):
    scene = make(tmp_path)
    pressing(scene, at=2, times=2)
    with pytest.raises(SystemExit):
        scene.run()
    assert scene.saved == [3]


def test_ctrl_c_in_one_of_several_processes_is_a_notice_to_all(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(messages) and step == 5
    )
    previous = signal.signal(signal.SIGTERM, lambda *_: messages.append(1))  # JAX's service
    try:
        scene = make(tmp_path, steps=30)
        pressing(scene, at=2)
        with pytest.raises(SystemExit) as exited:
            scene.run()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert (exited.value.code, scene.saved, messages) == (130, [5], [1])


def test_a_second_ctrl_c_leaves_where_no_handler_runs():
    """The main thread computes in C, as in a compilation, and no signal interrupts that."""
    code = (
        "import hashlib, os, signal, threading\n"
        "from t5lite.training import signals\n"
        "press = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "with signals.leaving_at_once(), signals.catching_signals():\n"
        "    for seconds in (0.1, 0.9):\n"
        "        threading.Timer(seconds, press).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], timeout=50, capture_output=True, text=True
    )
    assert (finished.returncode, "interrupted" in finished.stderr) == (130, True)


# Saves by the clock.


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_saves_by_the_clock(tmp_path, monkeypatch):
    clock = Clock()
    scene = make(tmp_path, steps=10, checkpoint_every=100, checkpoint_minutes=0.5)
    scene.loop.saver.times = SaveTimes(0.5, clock=clock)
    inner = scene.loop.step

    def step_fn(state, batch):
        clock.seconds += 9
        return inner(state, batch)

    scene.loop.step = step_fn
    scene.run()
    assert scene.saved == [4, 8, 10]  # after 36 and 72 seconds, and at the end


@pytest.mark.parametrize("seconds", [0.01, 0.5, 20.0])
def test_saves_by_the_clock_of_process_0_cost_few_exchanges(monkeypatch, seconds):
    """Steps of some seconds each, after a first one that compiles."""
    clock, others = Clock(), Clock()
    exchanges = []

    def gather(value):
        exchanges.append(value)
        return [clock.seconds - times._since, value]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(saving, "gather", gather)
    times, other = SaveTimes(10, clock=clock), SaveTimes(10, clock=others)
    times.saved(0)
    saved, since = [], 0.0
    for step in range(1, round(3000 / seconds)):
        clock.seconds += 100 if step == 1 else seconds
        others.seconds += 1  # whose clock is wrong
        due = times.due(step)
        assert other.due(step) == due
        if due:
            saved.append(clock.seconds - since)
            since = clock.seconds
            times.saved(step)
            other.saved(step)
    assert len(saved) >= 4
    assert all(0.9 * 600 <= each <= 600 + seconds for each in saved)
    assert len(exchanges) / 2 <= 25 * (len(saved) + 1)
