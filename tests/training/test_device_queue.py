"""Between two dispatches the host waits for one thing: the metrics of the step before."""

import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from t5lite import optimizers
from t5lite.models import ComputeSpec
from t5lite.objectives import Objective
from t5lite.parallel import Layout, make_mesh
from t5lite.reporting import Meter, Progress
from t5lite.training import (
    Duration,
    Ledger,
    Loop,
    LossScale,
    Run,
    Saver,
    Update,
    build,
    transformation,
)
from t5lite.training.state import next_learning_rate

LAYOUT, STEPS = Layout(), 30
BAD = (2, 3, 7)  # steps whose gradient is not finite


class Line:
    """The gradient of its one weight is the mean of the batch's features."""

    compute = ComputeSpec()

    def init(self, key):
        del key
        return {"weight": jnp.zeros(())}

    def axes(self):
        return {"weight": PartitionSpec()}


class Product(Objective):
    token_arrays = ()

    def axes(self):
        return {"features": ("batch",)}

    def limits(self, model):
        return {}

    def weights(self, batch):
        return {"product": jnp.float32(batch["features"].size)}

    def loss(self, model, params, batch, *, frozen, rngs, train):
        total = jnp.sum(batch["features"]) * params["weight"]
        return {"product": (total, 1.0)}, {"total": (total, jnp.float32(1))}


class Features:
    """Batches of nothing but the gradient that is wanted."""

    epoch = None

    def __init__(self, bad=()):
        self._steps, self._bad = itertools.count(1), bad

    def __next__(self):
        step = next(self._steps)
        return {"features": np.full((2, 1), np.inf if step in self._bad else step, np.float32)}

    def state_dict(self):
        return {}


def program_of(optimizer, **update):
    return build(
        Line(),
        Product(),
        optimizer,
        {"features": jax.ShapeDtypeStruct((2, 1), jnp.float32)},
        layout=LAYOUT,
        mesh=make_mesh(LAYOUT, jax.devices()[:1]),
        update=Update(**update),
    )


def test_only_metrics_of_the_step_before_are_waited_for(tmp_path):
    schedule = mock.Mock(side_effect=optimizers.schedules.rsqrt(warmup_steps=4))
    program = program_of(optimizers.SGD(schedule), loss_scale=LossScale(), spike_threshold=99.0)
    made_by, reads = {}, []  # the step that an array is of, and what is read after which step

    def step_fn(state, batch):
        state, metrics = program.step(state, batch)
        number = max(made_by.values(), default=0) + 1
        # Arrays are kept, so that no other one gets their ids.
        kept.append((state, metrics))
        made_by.update({id(leaf): number for leaf in jax.tree.leaves((state, metrics))})
        return state, metrics

    kept = []
    mesh, data = make_mesh(LAYOUT, jax.devices()[:1]), mock.Mock(batch_size=2)
    duration, batches = Duration(STEPS), Features()
    run = Run(str(tmp_path), None, Product(), data, LAYOUT, mesh, STEPS, say=lambda text: None)
    ledger = Ledger(run, Meter(), Progress(duration, active=False))
    checkpointer = mock.Mock(**{"is_best.return_value": False})
    saver = Saver(checkpointer, run=run, batches=batches, ledger=ledger, every=10 * STEPS)
    loop = Loop(run, step_fn, batches, ledger, saver, duration)
    state = program.init(0)
    array_type = type(state.step)
    on_host = array_type._value  # what every way to a number or a NumPy array goes through

    def reading(array):
        reads.append((max(made_by.values(), default=0), made_by.get(id(array))))
        return on_host.fget(array)

    with mock.patch.object(array_type, "_value", property(reading)):
        loop.train(state)
    training = [(dispatched, of) for dispatched, of in reads if 0 < dispatched < STEPS]
    assert len(training) > 5 * (STEPS - 2)  # the metrics are seen
    assert all(of == dispatched - 1 for dispatched, of in training)
    # The schedule is compiled with the step, and evaluated nowhere else.
    assert all(isinstance(call.args[0], jax.core.Tracer) for call in schedule.mock_calls)


def test_the_reported_rate_is_the_rate_of_the_update():
    """Skipped updates do not count, whatever skips them, and a restart changes nothing."""
    schedule = optimizers.schedules.linear(peak=1.0, total_steps=8, warmup_steps=2)
    program = program_of(optimizers.SGD(schedule), loss_scale=LossScale())
    state, num_updates, batches = program.init(0), 0, Features(BAD)
    for step in range(1, 10):
        if step == 5:  # as a checkpoint would have it
            state = jax.tree.map(jnp.asarray, jax.device_get(state))
        before = float(state.params["weight"])
        state, metrics = program.step(state, next(batches))
        assert metrics["learning_rate"] == schedule(num_updates)
        applied = step not in BAD
        assert metrics["applied"] == applied
        moved = before - float(state.params["weight"])
        assert moved == pytest.approx(step * schedule(num_updates) if applied else 0)
        num_updates += applied


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.Adafactor,
        optimizers.AdamW,
        optimizers.AdamWScale,
        optimizers.Lion,
        optimizers.SGD,
        lambda rate: optimizers.FromOptax(
            lambda rate: optax.chain(
                optax.apply_every(3),  # whose count starts over
                optax.adabelief(rate),
                optax.contrib.reduce_on_plateau(accumulation_size=5),
            ),
            rate,
        ),
    ],
)
def test_every_optimizer_tells_its_rate(optimizer):
    params = {"weight": jnp.ones((2, 3))}
    one = optimizer(lambda count: count / 8)
    updates = transformation(one, {"weight": PartitionSpec("embed", "mlp")}, params)
    state = updates.init(params)
    for step in range(5):
        assert next_learning_rate(one, state) == step / 8
        _, state = updates.update(params, state, params, value=jnp.float32(1))
    assert next_learning_rate(optimizer(0.25), state) == 0.25


def test_an_unknown_rate_is_not_reported():
    params = {"weight": jnp.ones(())}
    bare = optax.sgd(0.1)
    assert next_learning_rate(bare, bare.init(params)) is None
    uncounted = optimizers.FromOptax(lambda rate: optax.sgd(0.1), lambda count: 0.1)
    assert next_learning_rate(uncounted, bare.init(params)) is None
