"""Adafactor against T5X's formulas written out in NumPy, and against Optax where the two agree."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5lite.errors import InputError
from t5lite.optimizers import Adafactor, DecayMask

SMALL = {"min_dim_size_to_factor": 4}
EVERYTHING = DecayMask(matrices_only=False)


def t5x(param, gradients, rates, *, factored, scale=True, clip=1.0, beta1=None, decay=0.0, power=0):
    """Runs T5X's Adafactor on one unstacked parameter, factored over its two axes or not."""
    v_row = v_col = v = m = 0.0
    for step, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
        keep = 1.0 - (step + 1.0) ** -0.8
        squared = g * g + 1e-30
        if factored:
            v_row = keep * v_row + (1 - keep) * squared.mean(axis=1)
            v_col = keep * v_col + (1 - keep) * squared.mean(axis=0)
            y = g * ((v_row / v_row.mean()) ** -0.5)[:, None] * (v_col**-0.5)[None, :]
        else:
            v = keep * v + (1 - keep) * squared
            y = g * v**-0.5
        if clip is not None:
            y = y / max(1.0, math.sqrt((y * y).mean()) / clip)
        size = max(math.sqrt((param * param).mean()), 1e-3) if scale else 1.0
        y = rate * size * y
        if beta1 is not None:
            m = y = beta1 * m + (1 - beta1) * y
        param = (1 - decay * rate**power) * param - y
    return param


def run(optimizer, params, gradients, axes):
    """Applies one update per entry of `gradients` (trees) and returns parameters and state."""
    tx = optimizer(axes, params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params, state


def draw(shape, num_steps=4, seed=0):
    rng = np.random.default_rng(seed)
    # Rows of very different size: a wrong axis would show.
    sizes = np.geomspace(0.1, 3.0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    param = (sizes * rng.normal(size=shape)).astype(np.float32)
    gradients = [
        (sizes**-1 * 10.0**i * rng.normal(size=shape)).astype(np.float32) for i in range(num_steps)
    ]
    return param, gradients


OPTIONS = {
    "defaults": ({}, {}),
    "momentum": ({"beta1": 0.9, "clipping_threshold": 0.3}, {"beta1": 0.9, "clip": 0.3}),
    "absolute": (
        {"multiply_by_parameter_scale": False, "clipping_threshold": None},
        {"scale": False, "clip": None},
    ),
    "decay": ({"weight_decay_rate": 0.1, "decay_mask": EVERYTHING}, {"decay": 0.1}),
    "decay_by_rate_squared": (
        {
            "weight_decay_rate": 0.5,
            "weight_decay_rate_lr_exponent": 2.0,
            "decay_mask": EVERYTHING,
        },
        {"decay": 0.5, "power": 2},
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), OPTIONS.values(), ids=OPTIONS)
def test_equals_t5x_on_matrices_and_vectors(ours, theirs):
    rates = [0.1, 0.05, 0.2, 0.1]
    optimizer = Adafactor(lambda step: jnp.float32(np.array(rates))[step], **SMALL, **ours)
    axes = {"w": P("embed", "mlp"), "b": P("mlp")}
    w, w_gradients = draw((6, 9))
    b, b_gradients = draw((9,))
    gradients = [{"w": x, "b": y} for x, y in zip(w_gradients, b_gradients, strict=True)]
    params, _ = run(optimizer, {"w": jnp.array(w), "b": jnp.array(b)}, gradients, axes)
    wide = [x.astype(np.float64) for x in (w, *w_gradients)]
    expected = t5x(wide[0], wide[1:], rates, factored=True, **theirs)
    np.testing.assert_allclose(params["w"], expected, rtol=2e-5, atol=1e-6)
    wide = [x.astype(np.float64) for x in (b, *b_gradients)]
    expected = t5x(wide[0], wide[1:], rates, factored=False, **theirs)
    np.testing.assert_allclose(params["b"], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "names", [P("layers", "embed", "heads", "kv"), P("layers", "heads", "kv", "embed")]
)
def test_equals_t5x_on_stacked_attention_kernels(names):
    shape = tuple({"layers": 3, "embed": 6, "heads": 2, "kv": 4}[name] for name in names)
    param, gradients = draw(shape)
    got, state = run(Adafactor(0.1, **SMALL), jnp.array(param), gradients, names)
    assert state.v is None
    two_axes = (6, 8) if names[1] == "embed" else (8, 6)
    for layer in range(3):
        flat = [x[layer].reshape(two_axes).astype(np.float64) for x in (param, *gradients)]
        expected = t5x(flat[0], flat[1:], [0.1] * 4, factored=True)
        np.testing.assert_allclose(got[layer].reshape(two_axes), expected, rtol=2e-5, atol=1e-6)


def test_equals_optax_where_parameters_are_one_matrix_or_vector():
    shapes = {"w": (6, 9), "square": (8, 8), "b": (9,), "tiny": (3, 9)}
    drawn = {name: draw(shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    params = {name: jnp.array(param) for name, (param, _) in drawn.items()}
    gradients = [{name: gs[i] for name, (_, gs) in drawn.items()} for i in range(4)]
    both = {"min_dim_size_to_factor": 4, "weight_decay_rate": 0.01}
    ours = Adafactor(0.1, beta1=0.9, decay_mask=EVERYTHING, **both)
    got, _ = run(ours, params, gradients, None)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.adafactor(0.1, momentum=0.9, **both)
        expected, _ = run(lambda axes, shapes: theirs, params, gradients, None)
    for name in shapes:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_differs_from_optax_on_attention_kernels_and_stacks():
    # Optax factors over the two largest axes of the whole array and scales by the RMS of all of it.
    param, gradients = draw((3, 6, 2, 4))
    names = P("layers", "embed", "heads", "kv")
    got, _ = run(Adafactor(0.1, **SMALL), jnp.array(param), gradients, names)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.adafactor(0.1, **SMALL)
        expected, _ = run(lambda axes, shapes: theirs, jnp.array(param), gradients, names)
    assert np.abs(got - expected).max() > 1e-3


def test_factors_by_the_size_of_one_layer():
    axes = {"w": P("layers", "embed", "mlp"), "narrow": P("layers", "embed", "mlp")}
    params = {"w": jnp.ones((2, 128, 130)), "narrow": jnp.ones((200, 127, 130))}
    state = jax.eval_shape(Adafactor(0.1)(axes, params).init, params)
    assert (state.v_row["w"].shape, state.v_col["w"].shape) == ((2, 128), (2, 130))
    assert state.v["w"] is None
    assert state.v["narrow"].shape == (200, 127, 130)
    assert state.v_row["narrow"] is None
    whole = jax.eval_shape(Adafactor(0.1, factored=False)(axes, params).init, params)
    assert whole.v["w"].shape == (2, 128, 130)


def test_step_offset_restarts_the_second_moment():
    param, gradients = draw((6, 9))
    optimizer, names = Adafactor(0.1, step_offset=2, **SMALL), P("embed", "mlp")
    _, state = run(optimizer, jnp.array(param), gradients[:3], names)
    np.testing.assert_allclose(state.v_row, np.mean(gradients[2] ** 2, axis=1), rtol=1e-5)
    before, _ = run(optimizer, jnp.array(param), gradients[:2], names)
    expected, _ = run(Adafactor(0.1, **SMALL), jnp.array(param), gradients[:2], names)
    np.testing.assert_array_equal(before, expected)


AXES = {
    "square": P("layers", "heads", "kv", "embed"),
    "scale": P("layers", "embed"),
    "unnamed": P("embed"),
}
SHAPES = {"square": (2, 4, 2, 8), "scale": (2, 8), "unnamed": (8, 4)}


@pytest.mark.parametrize("beta1", [None, 0.9])
def test_state_axes_names_every_leaf(beta1):
    optimizer = Adafactor(0.1, beta1=beta1, **SMALL)
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    state = jax.eval_shape(optimizer(AXES, shapes).init, shapes)
    named = optimizer.state_axes(AXES, shapes)
    assert jax.tree.structure(named) == jax.tree.structure(state)
    assert named.v_row["square"] == P("layers", "heads", "kv")
    assert named.v_col["square"] == P("layers", "embed")
    assert named.v_row["unnamed"] == P("embed")
    assert named.v_col["unnamed"] == P(None)
    assert named.v["scale"] == P("layers", "embed")
    sizes = {"layers": 2, "heads": 4, "kv": 2, "embed": 8, None: 4}
    for leaf, names in zip(jax.tree.leaves(state), jax.tree.leaves(named), strict=True):
        assert leaf.shape[: len(names)] == tuple(sizes[name] for name in names)


def test_sharded_by_state_axes_equals_one_device():
    optimizer = Adafactor(0.1, **SMALL)
    drawn = {name: draw(shape) for name, shape in SHAPES.items()}
    params = {name: jnp.array(param) for name, (param, _) in drawn.items()}
    gradients = [{name: gs[i] for name, (_, gs) in drawn.items()} for i in range(3)]
    expected, _ = run(optimizer, params, gradients, AXES)

    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("model", "data"))
    rules = {"embed": "data", "heads": "model"}
    place = lambda names: NamedSharding(mesh, P(*[rules.get(name) for name in names]))  # noqa: E731
    shardings = jax.tree.map(place, (AXES, optimizer.state_axes(AXES, params)))
    tx = optimizer(AXES, params)

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, in_shardings=(*shardings, shardings[0]), out_shardings=shardings)
    sharded, state = jax.device_put((params, tx.init(params)), shardings)
    for gradient in gradients:
        sharded, state = step(sharded, state, jax.device_put(gradient, shardings[0]))
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "Adafactor.learning_rate = -1.0"),
        ({"learning_rate": "cosine"}, "or a schedule"),
        ({"beta1": 1.0}, r"Adafactor.beta1 = 1.0: must be a number in \[0, 1\)"),
        ({"clipping_threshold": 0}, "Adafactor.clipping_threshold = 0"),
        ({"step_offset": 0.5}, "Adafactor.step_offset = 0.5"),
        ({"min_dim_size_to_factor": 0}, "Adafactor.min_dim_size_to_factor = 0"),
        ({"epsilon1": 0.0}, "Adafactor.epsilon1 = 0.0"),
        ({"factored": None}, "Adafactor.factored = None"),
        ({"weight_decay_rate": -0.1}, "Adafactor.weight_decay_rate = -0.1"),
        ({"mu_dtype": "float16"}, "Adafactor.mu_dtype = 'float16'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Adafactor(**{"learning_rate": 0.1, **settings})
