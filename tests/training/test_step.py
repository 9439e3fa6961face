"""One step is the same however the batch is cut, and on however many devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import (
    OBJECTIVE,
    SPEC,
    assert_close,
    assert_same,
    batches,
    first_params,
    make_program,
    place,
    run,
    start,
)

from t5lite.errors import InputError
from t5lite.models import Model
from t5lite.objectives import Contrastive, MaskedLM, Objective, Seq2Seq
from t5lite.training import (
    LossScale,
    TrainState,
    Tuning,
    Update,
    frozen_of,
    initial_state,
    transformation,
)
from t5lite.training.step import segment_arrays, train_step

WHOLE, HALVES, QUARTERS = (Update(num_microbatches=n) for n in (1, 2, 4))


@functools.cache
def program_of(optimizer: str, *mesh, update=WHOLE):
    """The compiled step on eight devices, or on one without a mesh."""
    return make_program(*mesh, optimizer=optimizer, update=update, num_devices=8 if mesh else 1)


@functools.cache
def alone(optimizer: str):
    """The state and metrics after three steps of the whole batch on one device."""
    state, metrics = run(program_of(optimizer), 3)
    return jax.device_get(state), metrics


def test_rows_weigh_differently():
    # Or a mean of means would pass for the mean.
    weights = batches(2)[1]["decoder_loss_weights"].sum(axis=1)
    assert len(set(weights)) >= 4
    quarters = weights.reshape(2, 4).sum(axis=0)
    assert quarters.max() >= quarters.min() + 4


def test_the_loss_is_the_sum_over_the_weight():
    batch, model = batches(1)[0], Model(SPEC)

    @jax.jit
    def logits(params):
        return model.logits(params, model.hidden(params, batch)[0])

    values = np.asarray(logits(first_params()), np.float64)
    log_z = np.log(np.exp(values).sum(axis=-1))
    target = np.take_along_axis(values, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
    weights = batch["decoder_loss_weights"]
    nll = (weights * (log_z - target)).sum() / weights.sum()
    z_loss = (weights * log_z**2).sum() / weights.sum()

    metrics = alone("adafactor")[1][0]
    assert OBJECTIVE.z_loss * z_loss > 0.05
    assert metrics["loss"] == pytest.approx(nll + OBJECTIVE.z_loss * z_loss, rel=1e-5)
    total, weight = metrics["sums"]["loss"]
    assert total / weight == pytest.approx(nll, rel=1e-5)
    assert weight == weights.sum()


@pytest.mark.parametrize(
    ("optimizer", "mesh", "update"),
    [
        pytest.param("adamw", "data=8", WHOLE, marks=pytest.mark.slow),
        pytest.param("adafactor", "fsdp=8", WHOLE, marks=pytest.mark.slow),
        pytest.param("adamw", "tensor=8", WHOLE, marks=pytest.mark.slow),
        ("adafactor", "data=2 fsdp=2 tensor=2", WHOLE),
        pytest.param("adamw", "data=4 seq=2", WHOLE, marks=pytest.mark.slow),
        ("adafactor", "", HALVES),
        ("adamw", "data=2 tensor=4", QUARTERS),
    ],
)
@pytest.mark.light("adafactor--update5")
def test_devices_and_microbatches_change_nothing(optimizer, mesh, update, capfd):
    expected, whole = alone(optimizer)
    axes = [(name, int(size)) for name, size in (axis.split("=") for axis in mesh.split())]
    actual, parts = run(program_of(optimizer, *axes, update=update), 3)
    # What XLA calls replicating an activation because it knows no way between two shardings.
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    moved = optax.tree.norm(optax.tree.sub(expected.params, first_params()))
    assert moved > 0.3
    # The loss and the norm of the gradient tell a factor that the optimizer would forgive.
    assert_close(parts, whole, rtol=1e-5)
    assert_close(actual.params, expected.params, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_eight_devices_are_deterministic():
    program = program_of("adafactor", ("data", 2), ("fsdp", 2), ("tensor", 2))
    (one, _), (other, _) = run(program, 3), run(program, 3)
    assert_same(one, other)


def test_a_batch_without_tokens_has_a_finite_loss():
    program = program_of("adafactor")
    empty = {name: np.zeros_like(rows) for name, rows in batches(1)[0].items()}
    _, metrics = program.step(start(program), place(program, empty))
    assert metrics["finite"]
    assert metrics["loss"] == 0


def test_poisoned_parameters_stay_and_are_reported():
    leaves, structure = jax.tree.flatten(first_params())
    poisoned = np.array(leaves[0])
    poisoned.flat[0] = np.nan
    program = program_of("adafactor")
    state = start(program, jax.tree.unflatten(structure, [poisoned, *leaves[1:]]))
    kept = jax.device_get(state)
    after, metrics = program.step(state, place(program, batches(1)[0]))
    assert not metrics["finite"]
    assert_same(jax.device_get(after), kept.replace(step=np.int32(1)))


# What needs no network: `y = slope · x + shift`.


class Line(Objective):
    """Its squared error, a term without weight, and what chance there was."""

    token_arrays = ()

    def weights(self, batch):
        return {"error": jnp.sum(batch["weight"])}

    def loss(self, model, params, batch, *, frozen, rngs, train):
        assert train
        error = jnp.square(params["slope"] * batch["x"] + params["shift"] - batch["y"])
        total = jnp.sum(batch["weight"] * error)
        largest = jnp.max(batch["x"])
        terms = {"error": (total, 1.0), "largest": (largest * params["slope"], 0.5)}
        chance = jax.random.uniform(rngs["dropout"])
        return terms, {"seen": (total, jnp.sum(batch["weight"])), "chance": (chance, chance)}


BATCH = {
    "x": jnp.array([[1.0], [2.0], [3.0], [4.0]]),
    "y": jnp.array([[3.0], [3.0], [3.0], [3.0]]),
    "weight": jnp.array([[1.0], [0.0], [1.0], [2.0]]),
}
# Errors 2-3, 6-3 and twice 8-3, over a weight of 4; the largest x is 4.
LOSS = (1 + 9 + 2 * 25) / 4 + 0.5 * 2 * 4
SLOPE = 2 * (1 * -1 + 3 * 3 + 2 * 4 * 5) / 4 + 0.5 * 4
SHIFT = 2 * (-1 + 3 + 2 * 5) / 4


def line(slope=2.0, shift=0.0):
    return {"slope": jnp.float32(slope), "shift": jnp.float32(shift)}


def values(params):
    return np.array([params["slope"], params["shift"]])


def line_step(
    params=None,
    batch=BATCH,
    *,
    optimizer=optax.sgd(1.0),
    steps=1,
    seed=0,
    frozen=None,
    references=None,
    extra=None,
    objective=None,
    **options,
):
    """Takes steps and returns every state and metrics."""
    params = line() if params is None else params
    optimizer = transformation(optimizer, None, params)
    update = options.get("update", Update())
    extra = update.extra(params) | (extra or {})
    frozen = frozen_of(frozen or {}, references or {})
    state = initial_state(params, optimizer, rng=jax.random.key(seed), frozen=frozen, extra=extra)
    step = functools.partial(
        train_step, model=None, objective=objective or Line(), optimizer=optimizer, **options
    )
    step, states, metrics = jax.jit(step), [state], []
    for _ in range(steps):
        state, record = step(state, batch)
        states.append(state)
        metrics.append(record)
    return states, metrics


def test_a_step_by_hand():
    (_, after), (metrics,) = line_step()
    assert metrics["loss"] == pytest.approx(LOSS)
    assert metrics["gradient_norm"] == pytest.approx(np.hypot(SLOPE, SHIFT))
    assert metrics["sums"]["seen"] == (60, 4)
    assert values(after.params) == pytest.approx((2 - SLOPE, -SHIFT))
    assert metrics["parameter_norm"] == pytest.approx(np.hypot(2 - SLOPE, SHIFT))
    assert isinstance(after, TrainState)
    assert after.step == 1


def test_a_term_without_weight_is_the_mean_over_microbatches():
    _, (metrics,) = line_step(update=Update(num_microbatches=2))
    # Microbatches are rows 0, 2 and rows 1, 3, so that devices keep the rows they have.
    assert metrics["loss"] == pytest.approx(LOSS - 0.5 * 2 * 4 + 0.5 * 2 * (3 + 4) / 2)
    assert metrics["sums"]["seen"] == (60, 4)


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.5, 0.5 / np.hypot(SLOPE, SHIFT)), (1e6, 1)])
def test_clipping_keeps_the_direction(clip_norm, factor):
    (_, after), (metrics,) = line_step(update=Update(clip_norm=clip_norm))
    assert values(after.params) == pytest.approx((2 - factor * SLOPE, -factor * SHIFT))
    assert metrics["gradient_norm"] == pytest.approx(np.hypot(SLOPE, SHIFT))  # before it


def test_the_average_follows_the_parameters():
    states, _ = line_step(optimizer=optax.sgd(0.01), steps=4, update=Update(ema_decay=0.75))
    expected = values(states[0].params)
    assert values(states[0].extra["ema"]) == pytest.approx(expected)
    for state in states[1:]:
        expected = 0.75 * expected + 0.25 * values(state.params)
        assert values(state.extra["ema"]) == pytest.approx(expected)
    assert values(state.params) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "weight"])
def test_a_poisoned_batch_changes_nothing_but_the_step(name, bad, num_microbatches):
    poisoned = BATCH | {name: BATCH[name].at[3, 0].set(bad)}
    update = Update(num_microbatches=num_microbatches, ema_decay=0.9, clip_norm=1.0)
    (before, after), (metrics,) = line_step(
        batch=poisoned, optimizer=optax.adam(0.1), update=update
    )
    assert not metrics["finite"]
    assert_same(after, before.replace(step=jnp.int32(1)))


def test_an_infinite_gradient_of_a_finite_loss_is_skipped():
    @jax.custom_jvp
    def kink(x):
        return x

    kink.defjvp(lambda primals, tangents: (primals[0], jnp.inf * tangents[0]))

    class Exploding(Tuning):
        def merge(self, trained, frozen):
            return trained | {"shift": kink(trained["shift"])}

    (before, after), (metrics,) = line_step(tuning=Exploding())
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]
    assert_same(after.params, before.params)


# What a guard keeps away.


@functools.cache
def guarded_step(update, objective):
    optimizer = transformation(optax.sgd(1e-3, momentum=0.9), None, line())
    params = line()
    state = initial_state(params, optimizer, rng=jax.random.key(0), extra=update.extra(params))
    step = functools.partial(
        train_step, model=None, objective=objective, optimizer=optimizer, update=update
    )
    return state, jax.jit(step)


def guarded(update, values, objective):
    """Takes a step for each `y`; returns the states before, between and after, and metrics."""
    state, step = guarded_step(update, objective)
    states, metrics = [state], []
    for y in values:
        state, record = step(states[-1], {"y": jnp.full((4, 1), y, jnp.float32)})
        states.append(state)
        metrics.append(record)
    return states, metrics


class Told(Objective):
    """Its loss is `y`, with a gradient of 1."""

    token_arrays = ()

    def weights(self, batch):
        return {}

    def loss(self, model, params, batch, *, frozen, rngs, train):
        shift = params["shift"] - jax.lax.stop_gradient(params["shift"])
        return {"told": (jnp.mean(batch["y"]) + shift, 1.0)}, {}


TOLD = Told()
SPIKES = Update(spike_threshold=4.0, spike_warmup_steps=5, ema_decay=0.9, clip_norm=1.0)
CALM = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.1]


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_spike_changes_nothing_but_the_step(num_microbatches):
    update = dataclasses.replace(SPIKES, num_microbatches=num_microbatches)
    states, metrics = guarded(update, [*CALM, 2.0, 1.05], TOLD)
    assert [bool(record["spike"]) for record in metrics] == [*7 * [False], True, False]
    assert [bool(record["applied"]) for record in metrics] == [*7 * [True], False, True]
    assert all(record["finite"] for record in metrics)
    before, spiked, after = states[7:10]
    counted = before.extra["spike"] | {"in_a_row": jnp.int32(1)}
    expected = before.replace(step=jnp.int32(8), extra=before.extra | {"spike": counted})
    assert_same(spiked, expected)
    assert after.params["shift"] < spiked.params["shift"]
    # The statistics are those of the losses that counted.
    losses = [*CALM, 1.05]
    statistics = after.extra["spike"]
    assert statistics["mean"] == pytest.approx(np.mean(losses))
    assert statistics["variance"] == pytest.approx(np.var(losses), rel=1e-4)
    assert (statistics["count"], statistics["in_a_row"]) == (8, 0)


def test_no_spikes_during_warmup():
    _, metrics = guarded(SPIKES, [1.0, 1.1, 1.0, 1.1, 9.0], TOLD)
    assert not any(record["spike"] for record in metrics)


def test_neither_a_fall_nor_a_nan_is_a_spike():
    states, metrics = guarded(SPIKES, [*CALM, 0.0, np.nan, np.inf], TOLD)
    assert not any(record["spike"] for record in metrics)
    assert [bool(record["finite"]) for record in metrics[-3:]] == [True, False, False]
    assert_same(states[-1].extra, states[-3].extra)
    assert np.isfinite(states[-1].extra["spike"]["mean"])


def test_a_new_level_is_learnt_after_ten_spikes():
    states, metrics = guarded(SPIKES, [*CALM, *12 * [5.0], 5.1, *CALM], TOLD)
    assert [bool(record["spike"]) for record in metrics] == [
        *7 * [False],
        *10 * [True],
        *10 * [False],
    ]
    assert (states[18].extra["spike"]["mean"], states[18].extra["spike"]["count"]) == (5, 1)


def test_the_running_mean_forgets():
    update = Update(spike_threshold=100.0, spike_decay=0.5, spike_warmup_steps=2)
    states, _ = guarded(update, [2.0, 0.0, 2.0, 2.0], TOLD)
    means = [float(state.extra["spike"]["mean"]) for state in states]
    assert means == [0, 2, 1, 1.5, 1.75]


# What float16 does not hold.


class Half(Objective):
    """Its loss is `y · shift`, in float16: there the gradient is `y` times the loss scale."""

    token_arrays = ()

    def weights(self, batch):
        return {}

    def loss(self, model, params, batch, *, frozen, rngs, train):
        shift = params["shift"].astype(jnp.float16).astype(jnp.float32)
        return {"product": (jnp.mean(batch["y"]) * shift, 1.0)}, {}


HALF = Half()


def test_a_loss_scale_keeps_small_gradients_from_vanishing():
    _, (lost,) = guarded(Update(), [1e-9], HALF)
    assert lost["gradient_norm"] == 0
    (_, after), (kept,) = guarded(Update(loss_scale=LossScale()), [1e-9], HALF)
    assert kept["gradient_norm"] == pytest.approx(1e-9, rel=1e-2)
    assert after.params["shift"] == pytest.approx(-1e-12, rel=1e-2)
    assert kept["loss_scale"] == 2.0**15


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_loss_scale_changes_nothing_else(num_microbatches):
    plain = Update(num_microbatches=num_microbatches, clip_norm=2.0, ema_decay=0.5)
    scaled = dataclasses.replace(plain, loss_scale=LossScale())
    options = {"optimizer": optax.adam(0.1), "steps": 3}
    expected, record = line_step(update=plain, **options)
    actual, scaled_told = line_step(update=scaled, **options)
    assert_same(actual[-1].params, expected[-1].params)
    for name in ("loss", "gradient_norm"):
        assert [each[name] for each in scaled_told] == [each[name] for each in record]
    assert actual[-1].extra["loss_scale"] == {"scale": 2.0**15, "good_steps": 3}


def test_the_scale_falls_at_once_and_grows_with_patience():
    update = Update(loss_scale=LossScale(initial=8.0, growth_steps=2), ema_decay=0.5)
    # 10,000 times 8 is beyond float16, times 4 it is not; 100,000 never is.
    states, metrics = guarded(update, [1.0, *4 * [1e4], *4 * [1e5], 1.0], HALF)
    scales = [float(record["loss_scale"]) for record in metrics]
    assert scales == [8, 8, 4, 4, 8, 4, 2, 1, 1, 1]
    applied = [bool(record["applied"]) for record in metrics]
    assert applied == [True, False, True, True, False, *4 * [False], True]
    # Only at the minimum is it a NaN like any other.
    assert [bool(record["finite"]) for record in metrics] == [*7 * [True], False, False, True]
    for before, after, counts in zip(states[:-1], states[1:], applied, strict=True):
        if not counts:
            kept = before.replace(step=after.step, extra=before.extra | {"loss_scale": None})
            assert_same(after.replace(extra=after.extra | {"loss_scale": None}), kept)


def test_the_scale_stays_in_its_bounds():
    scale = LossScale(initial=2.0**31, growth_steps=1)
    state = scale.after(scale.start(), jnp.bool_(True))
    assert state == {"scale": 2.0**31, "good_steps": 0}


@pytest.mark.parametrize(
    "changes",
    [{"initial": 0.5}, {"growth": 1.0}, {"backoff": 1.0}, {"minimum": 0.0}, {"growth_steps": 0}],
)
def test_loss_scales_that_make_no_sense(changes):
    (name,) = changes
    with pytest.raises(InputError, match=f"LossScale.{name}"):
        LossScale(**changes)


def test_updates_can_be_scaled_from_outside():
    scale = {"update_scale": jnp.float32(0.25)}
    (before, whole), _ = line_step(optimizer=optax.adam(0.1))
    (_, quarter), (metrics,) = line_step(optimizer=optax.adam(0.1), extra=scale)
    moved = values(whole.params) - values(before.params)
    assert values(quarter.params) - values(before.params) == pytest.approx(0.25 * moved, rel=1e-4)
    assert_same(quarter.opt_state, whole.opt_state)
    assert metrics["update_scale"] == quarter.extra["update_scale"] == 0.25


def test_every_text_is_counted_once_without_padding():
    rows = {
        "encoder_input_tokens": np.array([[5, 6, 0]] * 8),
        "decoder_input_tokens": np.array([[0, 8, 0]] * 8),
        "decoder_target_tokens": np.array([[8, 1, 0]] * 8),
        "decoder_loss_weights": np.array([[1.0, 1, 0]] * 8),
        "encoder_segment_ids": np.array([[1, 1, 0]] * 8),
        "decoder_segment_ids": np.array([[1, 1, 0]] * 8),
    }

    def count(objective, **more):
        return sum(map(np.count_nonzero, segment_arrays(objective, rows | more)))

    assert count(Seq2Seq()) == 8 * 4
    assert count(Seq2Seq(topology="decoder")) == count(MaskedLM()) == 8 * 2
    assert count(Contrastive(), other_segment_ids=rows["encoder_segment_ids"]) == 8 * 4

    class Counting(Line):
        token_arrays = ("mine",)

    mine = {"mine": jnp.array([[0], [3], [0], [1]])}
    _, (metrics,) = line_step(batch=BATCH | mine, objective=Counting())
    assert metrics["tokens"] == 2
    _, (metrics,) = line_step()
    assert metrics["tokens"] == 0
    with pytest.raises(InputError, match=r"Counting\.token_arrays 'mine'"):
        segment_arrays(Counting(), rows)


def test_chance_depends_on_step_seed_and_microbatch():
    def chances(seed):
        states, metrics = line_step(
            line(0), optimizer=optax.sgd(0.0), steps=3, seed=seed, update=Update()
        )
        assert_same(states[0].rng, states[-1].rng)
        return [float(record["sums"]["chance"][0]) for record in metrics]

    assert chances(0) == chances(0)
    assert len({*chances(0), *chances(1)}) == 6
    _, (metrics,) = line_step(update=Update(num_microbatches=2))
    assert metrics["sums"]["chance"][0] != pytest.approx(2 * chances(0)[0])


def test_a_tuning_of_ones_own_trains_a_delta_over_frozen_parameters():
    class Delta(Tuning):
        def merge(self, trained, frozen):
            return frozen | {"slope": frozen["slope"] + trained["slope"]}

    frozen = line(1.5)
    (_, after), (metrics,) = line_step({"slope": jnp.float32(0.5)}, frozen=frozen, tuning=Delta())
    assert after.params["slope"] == pytest.approx(0.5 - SLOPE)
    assert_same(after.frozen["params"], frozen)
    assert metrics["loss"] == pytest.approx(LOSS)
    assert metrics["gradient_norm"] == pytest.approx(SLOPE)  # the frozen ones have none


def test_the_optimizer_receives_the_loss():
    def update(updates, state, params=None, *, value, **extra):
        del state, params, extra
        return jax.tree.map(jnp.zeros_like, updates), value

    seeing = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    (_, after), _ = line_step(optimizer=seeing)
    assert after.opt_state == pytest.approx(LOSS)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_microbatches": 0},
        {"num_microbatches": 1.5},
        {"clip_norm": 0},
        {"ema_decay": 1.0},
        {"on_nan": "ignore"},
        {"spike_threshold": 0.0},
        {"spike_decay": 1.0},
        {"spike_warmup_steps": 1},
        {"loss_scale": 2.0**15},
    ],
)
def test_updates_that_make_no_sense(changes):
    (name,) = changes
    with pytest.raises(InputError, match=name):
        Update(**changes)


def test_other_objects_are_refused_as_optimizers():
    with pytest.raises(InputError, match="'adam'"):
        transformation("adam", None, None)
