"""Settings that must meet do, or a run does not begin; what is only odd is said."""

import dataclasses
import json
import re

import jax
import numpy as np
import optax
import pytest
from tiny_runs import FAST, OBJECTIVE, OPTIMIZERS, SPEC, array_data, train

from t5lite.errors import InputError
from t5lite.evaluation import HeldOut, Samples, SpanFilling
from t5lite.experiment import Experiment
from t5lite.experiment.settings import learning_rate, notes, rate_change
from t5lite.layers import EmbeddingHeadSpec
from t5lite.models import Model, override
from t5lite.objectives import Contrastive
from t5lite.optimizers import AdamW, schedules
from t5lite.parallel import Layout, make_mesh
from t5lite.training import (
    Checkpoints,
    EarlyStopping,
    Profile,
    ReduceOnPlateau,
    Run,
    TrainState,
    Update,
    build,
    load_params,
)
from t5lite.training.stopping import check_watched

SMALL = override(SPEC, {"*.num_layers": 1})


@pytest.fixture(scope="module")
def run():
    layout = Layout()
    mesh = make_mesh(layout, jax.devices()[:1])
    return Run("", Model(SMALL), OBJECTIVE, array_data(), layout, mesh, 8)


class Undeclared:
    every = 3

    def __call__(self, run, state, *, step):
        return {"mine/loudness": 1.0}


def stopping(metric="held_out/loss", every=4):
    return EarlyStopping(metric=metric, patience=1, every=every)


def test_held_out_knows_its_metrics_before_it_measures(run):
    # Those of the objective, which tests/evaluation compares to what is returned.
    assert {"held_out/loss", "held_out/perplexity", "held_out/accuracy"} <= HeldOut(
        every=1
    ).metric_names(run)


@pytest.mark.parametrize(
    ("callbacks", "best", "message"),
    [
        ([HeldOut(every=4), stopping("held_out/los")], None, "did you mean held_out/loss"),
        ([HeldOut(every=4)], "held_out/accurracy", "did you mean held_out/accuracy"),
        ([HeldOut(every=4, prefix="test")], "held_out/loss", "test/loss"),
        (
            [Samples(every=2), ReduceOnPlateau(metric="samples/exact", patience=1, every=2)],
            None,
            "did you mean samples/exact_match",
        ),
        ([SpanFilling(every=4), stopping("span_filling/margins")], None, "span_filling/margin"),
        ([stopping()], None, "no callback measures any"),
        ([], "held_out/loss", "no callback measures any"),
        ([HeldOut(every=4), stopping(every=6)], None, "every 4 steps; set a multiple of 4"),
        ([HeldOut(every=4), stopping(every=2)], None, "every 4 steps; set a multiple of 4"),
        ([stopping(), HeldOut(every=4)], None, "put EarlyStopping last"),
    ],
)
def test_what_watches_and_what_measures_never_meet(callbacks, best, message, run):
    with pytest.raises(InputError, match=message) as error:
        check_watched(callbacks, run, best=best)
    field = "Checkpoints.best" if best else r"EarlyStopping|ReduceOnPlateau"
    assert re.search(field, str(error.value))
    assert len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize(
    ("callbacks", "best"),
    [
        ([], None),
        ([HeldOut(every=4), stopping(), stopping(every=8)], "held_out/perplexity"),
        ([HeldOut(every=3), HeldOut(every=2, prefix="b"), stopping("b/loss")], "held_out/loss"),
        ([Undeclared(), HeldOut(every=4), stopping("mine/loudness", every=3)], "mine/loudness"),
    ],
)
def test_what_meets_is_accepted(callbacks, best, run):
    check_watched(callbacks, run, best=best)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": [HeldOut(every=2), HeldOut(every=3)]}, "the same prefix, 'held_out'"),
        ({"profile": Profile(steps=(99, 2))}, r"Profile.steps = \(99, 2\).* train.steps = 17"),
    ],
)
def test_a_run_of_settings_without_effect_does_not_begin(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", model=SMALL, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeldOut(every=1, max_batches=0),
        lambda: Samples(every=1, num_examples=0),
        lambda: SpanFilling(every=1, max_spans=0),
    ],
)
def test_nothing_to_measure_is_refused(make):
    with pytest.raises(InputError, match="= 0: must be a whole number of at least 1"):
        make()


@pytest.mark.parametrize(("batch_size", "num_microbatches"), [(1, 1), (8, 8)])
def test_negatives_in_the_batch_need_another_row(batch_size, num_microbatches):
    spec = override("bert_nano", {"vocab": 32, "heads": [EmbeddingHeadSpec()]})
    layout, data = Layout(), array_data(batch_size=batch_size, pack=False, num_shards=1)
    with pytest.raises(InputError, match=r"Contrastive .* needs at least 2"):
        build(
            Model(spec),
            Contrastive(),
            OPTIMIZERS["adamw"],
            data.batch_shapes(Contrastive()),
            layout=layout,
            mesh=make_mesh(layout, jax.devices()[:1]),
            update=Update(num_microbatches=num_microbatches),
        )


# What is legitimate, and said.


def said(*callbacks, steps=100, optimizer=None, best=None, mode="min", **update):
    return "\n".join(
        notes(
            Experiment(
                "unused",
                objective=None,
                data=None,
                steps=steps,
                callbacks=callbacks,
                checkpoints=Checkpoints(best=best, best_mode=mode),
                optimizer=optimizer or optax.sgd(0.1),
                update=Update(**update),
            )
        )
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (said(stopping()), ""),
        (said(stopping(every=50)), ""),
        (said(stopping(every=100)), "patience = 1 has no effect"),
        (said(EarlyStopping(metric="a/accuracy", patience=1, every=5)), "the smallest a/accuracy"),
        (said(best="a/exact_match"), "Checkpoints.best_mode = 'min': the smallest"),
        (said(best="a/exact_match", mode="max"), ""),
        (said(best="a/loss", mode="max"), "the largest a/loss"),
        (said(spike_threshold=3.0, spike_warmup_steps=100), "spike_threshold has no effect"),
        (said(spike_threshold=3.0, spike_warmup_steps=99), ""),
    ]
    + [
        (said(optimizer=AdamW(schedule)), message)
        for schedule, message in [
            (schedules.cosine(peak=1.0, total_steps=100), ""),
            (schedules.cosine(peak=1.0, total_steps=90), "0 before the run ends, at step 100"),
            (schedules.constant(peak=1.0, warmup_steps=50), ""),
            (schedules.rsqrt(warmup_steps=1000), "still rises"),
        ]
    ],
)
def test_a_note_says_what_is_more_often_a_mistake(text, message):
    assert message in text if message else not text


@pytest.mark.slow
def test_a_longer_schedule_is_said_and_the_best_stays(tmp_path, capsys):
    def once(steps):
        schedule = schedules.cosine(peak=0.01, total_steps=steps)
        train(
            tmp_path,
            model=SMALL,
            optimizer=AdamW(schedule),
            steps=steps,
            writers=[],
            callbacks=[Measured([9, 7, 8, 8, 6, 9], every=1)],
            checkpoints=Checkpoints(every=100, keep=1, best="held_out/loss"),
            layout=Layout({"data": 1}, compiler_options={"cpu": FAST}),
        )
        return capsys.readouterr().out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "t5lite.experiment.definition.make_mesh",
            lambda each: make_mesh(each, jax.devices()[:1]),
        )
        assert "note:" not in once(4)
        text = once(6)
    (note,) = re.findall("note: the learning rate at step 4 .*", text)
    was, now = re.search(r"was (\S+) and is now ([^,:\s]+)", note).groups()
    assert float(was) == 0  # its schedule had ended
    schedule = schedules.cosine(peak=0.01, total_steps=6)
    assert float(now) == pytest.approx(float(schedule(4)), rel=1e-2)
    # Of step 2, then of step 5: at steps that `Checkpoints.every` never meets.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"5", "6"}
    kept = json.loads((tmp_path / "checkpoints/5/progress/metadata").read_text())
    assert kept["metrics"] == {"held_out/loss": 6.0}


class Measured:
    """Measures what it is told to."""

    def __init__(self, values, every):
        self.values, self.every = values, every

    def metric_names(self, run):
        return {"held_out/loss"}

    def __call__(self, run, state, *, step):
        return {"held_out/loss": self.values[step - 1]}


def test_the_learning_rate_of_a_state_is_that_of_its_next_update():
    optimizer = AdamW(schedules.linear(peak=1.0, total_steps=10))
    params = {"x": np.zeros(2, np.float32)}
    make = optax.with_extra_args_support(
        optimizer({"x": jax.P()}, {"x": jax.ShapeDtypeStruct((), "float32")})
    )
    opt_state = make.init(params)
    for step in range(3):
        state = TrainState(np.int32(step), params, {}, opt_state, None, {})
        assert learning_rate(optimizer)(state) == pytest.approx(1 - step / 10)
        with jax.numpy_dtype_promotion("standard"):
            _, opt_state = make.update(params, opt_state, params)
    assert learning_rate(optax.sgd(0.1))(state) is None


@pytest.mark.parametrize(
    ("saved", "now", "changed"),
    [
        (None, 1.0, False),
        (1.0, None, False),
        (0.0, 0.0, False),
        (1.0, 1.001, False),
        (1e-4, 5e-4, True),
        (0.0, 1e-3, True),
        (1e-3, 0.0, True),
    ],
)
def test_a_rate_has_changed(saved, now, changed):
    assert bool([*rate_change(saved, now, step=3)]) is changed


def test_a_rule_that_matches_no_name(tmp_path):
    params = {"a": {"x": np.zeros(2, np.float32)}, "b": np.zeros(3, np.float32)}
    state = {"params": params}
    with Checkpoints().open(tmp_path) as checkpointer:
        checkpointer.save(1, jax.tree.map(jax.numpy.asarray, state), progress={})
    like = {"c": params["a"], "b": params["b"]}
    fits = [("c/(.*)", r"a/\1"), (None, "a/.*")]
    assert load_params(tmp_path, like, mapping=fits).fresh == ()
    for rule in [("c/x/(.*)", r"a/\1"), (None, "head/.*"), ("head/.*", None)]:
        with pytest.raises(InputError, match="rules that match no name: " + re.escape(str(rule))):
            load_params(tmp_path, like, mapping=[*fits, rule])


def test_watching_takes_no_notice_of_equal_callbacks(run):
    # Two callbacks may be equal as values.
    twice = [HeldOut(every=4), stopping(), dataclasses.replace(stopping())]
    check_watched(twice, run)
