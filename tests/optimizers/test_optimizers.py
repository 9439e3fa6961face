"""What every optimizer must do: one row in the table buys all tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from t5lite.errors import InputError
from t5lite.optimizers import (
    SGD,
    Adafactor,
    AdamW,
    AdamWScale,
    DecayMask,
    FromOptax,
    Lion,
    schedules,
)

# Row: constructor, settings, a learning rate that solves the quadratic, name of its weight decay.
ROWS = {
    "adafactor": (Adafactor, {"min_dim_size_to_factor": 4}, 0.1, "weight_decay_rate"),
    "adafactor_momentum": (Adafactor, {"beta1": 0.9}, 0.1, "weight_decay_rate"),
    "adamw": (AdamW, {"weight_decay": 0.0}, 0.1, "weight_decay"),
    "adamw_scale": (AdamWScale, {}, 0.1, "weight_decay"),
    "lion": (Lion, {"weight_decay": 0.0}, 0.1, "weight_decay"),
    "sgd": (SGD, {}, 0.1, None),
    "sgd_nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, 0.02, None),
    "optax_adabelief": (functools.partial(FromOptax, optax.adabelief), {}, 0.1, None),
}
row = pytest.mark.parametrize(("make", "settings", "rate", "decay"), ROWS.values(), ids=ROWS)

AXES = {
    "token_embedding": P("vocab", "embed"),
    "layers": {
        "query": P("layers", "embed", "heads", "kv"),
        "norm": P("layers", "embed"),
        "bias": P("layers", "heads", "kv"),
    },
}
SIZES = {"vocab": 12, "embed": 6, "heads": 2, "kv": 4, "layers": 3}


def draw(seed):
    """A tree like AXES, its layers of very different size: a scale across layers would show."""
    leaves, treedef = jax.tree.flatten(AXES)
    rng = np.random.default_rng(seed)
    drawn = []
    for names in leaves:
        value = rng.normal(size=[SIZES[name] for name in names])
        if names[0] == "layers":
            value *= np.array([0.01, 1.0, 5.0]).reshape(-1, *[1] * (len(names) - 1))
        drawn.append(jnp.asarray(value, jnp.float32))
    return treedef.unflatten(drawn)


def shapes_of(axes):
    """Shapes for logical names; sizes do not matter to how an optimizer is made."""
    return jax.tree.map(lambda names: jax.ShapeDtypeStruct([8] * len(names), jnp.float32), axes)


class Runner:
    """Applies an optimizer; the state and the parameters are donated, as in training."""

    def __init__(self, optimizer, axes=AXES):
        self.transformation = optax.with_extra_args_support(optimizer(axes, shapes_of(axes)))
        self.step = jax.jit(self._step, donate_argnums=(0, 1))

    def _step(self, params, state, gradient):
        updates, state = self.transformation.update(gradient, state, params, value=jnp.float32(0))
        return optax.apply_updates(params, updates), state

    def __call__(self, params, gradients):
        params = jax.tree.map(jnp.copy, params)
        state = self.transformation.init(params)
        for gradient in gradients:
            params, state = self.step(params, state, gradient)
        return params


@pytest.fixture(scope="module")
def run():
    """Returns a row's runner, compiled once: its first step has rate 0, all others the row's."""

    @functools.lru_cache
    def runner(row_id):
        make, settings, rate, _ = ROWS[row_id]
        return Runner(make(functools.partial(rate_after_first, rate), **settings))

    return lambda request: runner(request.node.callspec.id)


def rate_after_first(rate, step):
    return jnp.where(step == 0, 0.0, rate).astype(jnp.float32)


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def changed(a, b):
    return jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.any(x != y)), a, b))


@row
def test_solves_a_quadratic(make, settings, rate, decay):
    optimizer = make(schedules.linear(peak=rate, total_steps=300), **settings)
    transformation = optax.with_extra_args_support(optimizer(AXES, shapes_of(AXES)))
    target = draw(0)

    def loss_fn(params):
        errors = jax.tree.map(lambda p, t: jnp.sum(jnp.square(p - t)), params, target)
        return sum(jax.tree.leaves(errors))

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(loss_fn)(params)
        updates, state = transformation.update(gradient, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    start = jax.tree.map(lambda x: x * 0.5, target)
    solve = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300)[1])
    losses = solve((start, transformation.init(start)))
    assert losses[-1] < 1e-2 * losses[0]


@row
def test_the_schedule_is_evaluated_from_step_zero(make, settings, rate, decay, run, request):
    """A rate of zero changes nothing; any other changes every parameter."""
    params = draw(0)
    assert not any(changed(run(request)(params, [draw(1)]), params))
    assert all(changed(run(request)(params, [draw(1)] * 2), params))


@row
def test_stacked_layers_are_updated_as_layers_one_by_one(make, settings, rate, decay, run, request):
    params, gradients = draw(0), [draw(seed) for seed in (1, 2, 3)]
    stacked = run(request)(params, gradients)
    axes = AXES | {"layers": jax.tree.map(lambda names: P(*names[1:]), AXES["layers"])}
    alone = Runner(make(functools.partial(rate_after_first, rate), **settings), axes)
    for layer in range(SIZES["layers"]):

        def one(tree, layer=layer):
            return tree | {"layers": jax.tree.map(lambda x: x[layer], tree["layers"])}

        got = alone(one(params), [one(gradient) for gradient in gradients])
        assert_same(got, one(stacked), rtol=1e-5, atol=1e-7)


@row
def test_heads_and_kv_are_updated_as_if_joined(make, settings, rate, decay, run, request):
    def joined(tree):
        shapes = {"query": (3, 6, 8), "bias": (3, 8)}
        flat = {name: tree["layers"][name].reshape(shape) for name, shape in shapes.items()}
        return tree | {"layers": tree["layers"] | flat}

    names = {"query": P("layers", "embed", "joined_kv"), "bias": P("layers", "joined_kv")}
    axes = AXES | {"layers": AXES["layers"] | names}
    params, gradients = draw(0), [draw(seed) for seed in (1, 2, 3)]
    flat = Runner(make(functools.partial(rate_after_first, rate), **settings), axes)
    got = flat(joined(params), [joined(gradient) for gradient in gradients])
    assert_same(got, joined(run(request)(params, gradients)), rtol=1e-5, atol=1e-7)


@row
def test_state_is_nothing_but_arrays(make, settings, rate, decay, run, request):
    """Saved as NumPy arrays and restored, it goes on bit for bit."""
    runner, gradient = run(request), draw(1)
    carry = runner.step(draw(0), runner.transformation.init(draw(0)), gradient)
    leaves, treedef = jax.tree.flatten(carry)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    saved = [np.array(leaf) for leaf in leaves]
    continued = runner.step(*carry, gradient)
    resumed = runner.step(*treedef.unflatten([jnp.array(leaf) for leaf in saved]), gradient)
    jax.tree.map(np.testing.assert_array_equal, resumed, continued)
    assert jax.tree.structure(continued) == treedef


@row
def test_every_leaf_of_the_state_can_be_named(make, settings, rate, decay):
    """It stands at a parameter's path and has its shape, or the optimizer names it itself."""
    optimizer = make(rate, **settings)
    state = jax.eval_shape(optimizer(AXES, draw(0)).init, draw(0))
    if hasattr(optimizer, "state_axes"):
        names = optimizer.state_axes(AXES, draw(0))
        assert jax.tree.structure(names) == jax.tree.structure(state)
        shapes = jax.tree.map(lambda leaf: tuple(SIZES[name] for name in leaf), names)
        assert jax.tree.leaves(shapes) == jax.tree.leaves(jax.tree.map(lambda x: x.shape, state))
        return
    shapes = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(draw(0))[0]
    }
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        spelt = jax.tree_util.keystr(path)
        inherited = [shape for name, shape in shapes.items() if spelt.endswith(name)]
        assert leaf.shape == () or [leaf.shape] == inherited


@row
def test_weight_decay_acts_on_the_chosen_matrices(make, settings, rate, decay):
    if decay is None:
        pytest.skip("has no weight decay")
    mask = DecayMask(exclude="embedding$")
    runner = Runner(make(0.5, **settings | {decay: 0.01, "decay_mask": mask}))
    params = draw(0)
    got = runner(params, [jax.tree.map(jnp.zeros_like, params)])
    # Adafactor's decay is not multiplied by the learning rate, all others' is.
    factor = 1 - 0.01 if make is Adafactor else 1 - 0.01 * 0.5
    params["layers"]["query"] *= factor
    assert_same(got, params, rtol=1e-6)


@row
def test_bfloat16_and_extreme_gradients_stay_finite(make, settings, rate, decay):
    transformation = make(1e-3, **settings)(AXES, shapes_of(AXES))
    update = jax.jit(transformation.update)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(0))
    for size in (0.0, 1e-30, 1e15):
        gradient = jax.tree.map(lambda x, size=size: (size * x).astype(jnp.bfloat16), draw(1))
        updates, state = update(gradient, transformation.init(params), params)
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(updates))
        for leaf in map(np.asarray, jax.tree.leaves((updates, state))):
            assert np.all(np.isfinite(leaf.astype(np.float32)))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}


@row
def test_learning_rate_is_an_attribute_and_checked(make, settings, rate, decay):
    schedule = schedules.constant(peak=rate)
    assert make(schedule, **settings).learning_rate is schedule
    assert make(0, **settings).learning_rate == 0
    for bad in (-1.0, float("nan"), "linear", None, True):
        with pytest.raises(InputError, match="learning_rate = "):
            make(bad, **settings)


def textbook(name, param, gradients, rate):
    """Updates in NumPy, at the settings of `test_equals_the_textbook`."""
    m, v = np.zeros_like(param), np.zeros_like(param)
    for t, g in enumerate(gradients, 1):
        if name in ("adamw", "adamw_scale"):
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            step = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
            if name == "adamw_scale":
                step = step * max(1e-3, np.sqrt(np.mean(param**2)))
            param = param - rate * step - rate * 0.1 * param
        elif name == "lion":
            step = np.sign(0.8 * m + 0.2 * g)
            m = 0.95 * m + 0.05 * g
            param = param - rate * step - rate * 0.1 * param
        else:
            m = 0.8 * m + g
            param = param - rate * (0.8 * m + g if name == "nesterov" else m)
    return param


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("adamw", AdamW(0.1, b1=0.8, b2=0.95, epsilon=1e-6, weight_decay=0.1)),
        ("adamw_scale", AdamWScale(0.1, b1=0.8, b2=0.95, epsilon=1e-6, weight_decay=0.1)),
        ("lion", Lion(0.1, b1=0.8, b2=0.95, weight_decay=0.1)),
        ("momentum", SGD(0.1, momentum=0.8)),
        ("nesterov", SGD(0.1, momentum=0.8, nesterov=True)),
    ],
)
def test_equals_the_textbook(name, optimizer):
    rng = np.random.default_rng(0)
    param, *gradients = (rng.normal(size=(5, 7)).astype(np.float32) for _ in range(5))
    got = Runner(optimizer, P("embed", "mlp"))(param, gradients)
    np.testing.assert_allclose(got, textbook(name, param, gradients, 0.1), rtol=1e-4, atol=1e-6)


def test_adamw_scale_is_near_nanot5():
    """nanoT5 enlarges epsilon during the first steps and decays after the step: second order."""
    rng = np.random.default_rng(0)
    start, *gradients = (rng.normal(size=(5, 7)).astype(np.float32) for _ in range(6))
    param, m, v = start, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        size = 0.02 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * max(1e-3, np.sqrt(np.mean(param**2)))
        param = param - size * m / (np.sqrt(v) + 1e-6)
        param = param - 0.02 * 0.01 * param
    got = Runner(AdamWScale(0.02, weight_decay=0.01), P("embed", "mlp"))(start, gradients)
    np.testing.assert_allclose(got, param, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(Adafactor, 0.1, beta1=0.9),
        functools.partial(AdamW, 0.1),
        functools.partial(AdamWScale, 0.1),
        functools.partial(Lion, 0.1),
        functools.partial(SGD, 0.1, momentum=0.9),
    ],
)
def test_only_the_first_moment_takes_mu_dtype(make):
    def dtypes(optimizer):
        state = jax.eval_shape(optimizer(AXES, draw(0)).init, draw(0))
        return [str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32]

    full, half = dtypes(make()), dtypes(make(mu_dtype="bfloat16"))
    assert set(full) == {"float32"}
    assert half.count("bfloat16") == len(jax.tree.leaves(AXES))
    assert len(half) == len(full)


def test_sgd_without_momentum_keeps_no_moments():
    assert jax.tree.leaves(SGD(0.1)(AXES, draw(0)).init(draw(0))) == []


@pytest.mark.parametrize("make", [Adafactor, AdamW, functools.partial(FromOptax, optax.adamax)])
def test_optax_schedules_work_where_promotion_is_strict(make):
    optimizer = make(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10))
    param = jnp.ones((2, 3))
    got = Runner(optimizer, P("embed", "mlp"))(param, [param] * 2)
    assert np.all(got < param)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(0.1, b1=1.0), r"AdamW\.b1 = 1\.0"),
        (lambda: AdamW(0.1, epsilon=0), r"AdamW\.epsilon = 0"),
        (lambda: AdamW(0.1, weight_decay=-1), r"AdamW\.weight_decay = -1"),
        (lambda: AdamW(0.1, mu_dtype=None), r"AdamW\.mu_dtype = None"),
        (lambda: AdamWScale(0.1, min_scale=0.0), r"AdamWScale\.min_scale = 0\.0"),
        (lambda: Lion(0.1, b2="0.9"), r"Lion\.b2 = '0\.9'"),
        (lambda: SGD(0.1, nesterov=True), "needs a momentum"),
        (lambda: FromOptax(optax.adam(0.1), 0.1), "without brackets"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
