"""Cross entropy against float64 written out by hand; chunks against the whole; T5X's factors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite import objectives
from t5lite.objectives import chunked_cross_entropy, normalized_weights

cross_entropy = jax.jit(objectives.cross_entropy, static_argnames="label_smoothing")
BATCH, LENGTH, VOCAB, EMBED = 3, 7, 11, 5


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def reference(logits, targets, label_smoothing):
    """Log-softmax and soft targets by hand, in float64: `(loss, nll, z_squared)`."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top
    log_probabilities = logits - log_z
    low = label_smoothing / (logits.shape[-1] - 1)
    soft = np.full(logits.shape, low)
    np.put_along_axis(soft, targets[..., None], 1 - label_smoothing, -1)
    entropy = -np.sum(np.where(soft > 0, soft * np.log(np.maximum(soft, 1e-300)), 0), -1)
    nll = -np.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
    return -(soft * log_probabilities).sum(-1) - entropy, nll, log_z[..., 0] ** 2


@functools.partial(jax.jit, static_argnums=(2, 3))
@jax.grad
def gradient_of(logits, targets, label_smoothing, z_loss):
    found = cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return jnp.sum(found.cross_entropy) + z_loss * jnp.sum(found.z_squared)


def draw(rng, scale=3.0):
    logits = (scale * rng.normal(size=(BATCH, LENGTH, VOCAB))).astype(np.float32)
    return logits, rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1000.0])
def test_equals_log_softmax_by_hand(rng, label_smoothing, scale):
    logits, targets = draw(rng, scale)
    found = cross_entropy(logits, targets, label_smoothing=label_smoothing)
    loss, nll, z_squared = reference(logits, targets, label_smoothing)
    np.testing.assert_allclose(found.cross_entropy, loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.negative_log_likelihood, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.z_squared, z_squared, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.correct, logits.argmax(-1) == targets)


def test_a_tie_is_not_correct():
    found = cross_entropy(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), jnp.int32))
    np.testing.assert_array_equal(found.correct, 0)


@pytest.mark.parametrize("label_smoothing", [0.05, 0.3])
def test_perfectly_smoothed_prediction_has_no_loss(label_smoothing):
    """T5X's constant: the soft targets' entropy is taken off; anything else costs more."""
    probabilities = np.full(VOCAB, label_smoothing / (VOCAB - 1))
    probabilities[3] = 1 - label_smoothing
    logits = jnp.asarray(np.log(probabilities) + 5.0, jnp.float32)[None, None]
    target = jnp.full((1, 1), 3, jnp.int32)
    perfect = cross_entropy(logits, target, label_smoothing=label_smoothing)
    np.testing.assert_allclose(perfect.cross_entropy, 0.0, atol=1e-6)
    gradient = gradient_of(logits, target, label_smoothing, 0.0)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    confident = logits + 10 * jax.nn.one_hot(target, VOCAB)
    worse = cross_entropy(confident, target, label_smoothing=label_smoothing)
    assert float(worse.cross_entropy[0, 0]) > 0.01


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradient_is_softmax_minus_soft_targets_plus_z(rng, label_smoothing):
    logits, targets = draw(rng)
    gradient = gradient_of(jnp.asarray(logits), targets, label_smoothing, 0.01)
    exact = logits.astype(np.float64)
    log_z = np.log(np.exp(exact).sum(-1, keepdims=True))
    soft = np.full(logits.shape, label_smoothing / (VOCAB - 1))
    np.put_along_axis(soft, targets[..., None], 1 - label_smoothing, -1)
    softmax = np.exp(exact - log_z)
    np.testing.assert_allclose(gradient, softmax - soft + 0.02 * log_z * softmax, atol=1e-6)


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_gradient_stays_finite_and_balanced_at_extreme_logits(rng, scale):
    logits, targets = draw(rng, scale)
    gradient = gradient_of(jnp.asarray(logits), targets, 0.0, 0.0)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(
        gradient.sum(-1), 0.0, atol=1e-6
    )  # moving all logits changes nothing


def test_adding_a_constant_to_logits_changes_z_only(rng):
    logits, targets = draw(rng)
    plain = cross_entropy(logits, targets, label_smoothing=0.1)
    moved = cross_entropy(logits + np.float32(8), targets, label_smoothing=0.1)
    np.testing.assert_allclose(moved.cross_entropy, plain.cross_entropy, atol=1e-5)
    assert not np.allclose(moved.z_squared, plain.z_squared)


def test_bfloat16_logits_are_summed_in_float32(rng):
    logits, targets = draw(rng)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    for found, expected in zip(
        cross_entropy(rounded, targets),
        cross_entropy(rounded.astype(jnp.float32), targets),
        strict=True,
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, expected)


def project(kernel, hidden):
    """A logits function: bfloat16 in, float32 out."""
    return jnp.einsum(
        "ble,ev->blv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
    )


def chunked_total(kernel, hidden, targets, weights, chunk_length):
    found = chunked_cross_entropy(
        functools.partial(project, kernel),
        hidden,
        targets,
        label_smoothing=0.1,
        chunk_length=chunk_length,
    )
    loss = jnp.sum(weights * found.cross_entropy) + 0.1 * jnp.sum(weights * found.z_squared)
    return loss, found


@pytest.mark.parametrize(
    ("dtype", "chunk_length"),
    [(jnp.float32, 1), (jnp.float32, 3), (jnp.float32, 100), (jnp.bfloat16, 3)],
)
def test_chunks_equal_the_whole(rng, dtype, chunk_length):
    """Also where the length cannot be divided, and for the gradients of both arguments."""
    kernel = jnp.asarray(rng.normal(size=(EMBED, VOCAB)), jnp.float32)
    hidden = jnp.asarray(rng.normal(size=(BATCH, LENGTH, EMBED)), dtype)
    _, targets = draw(rng)
    weights = jnp.asarray(rng.random((BATCH, LENGTH)), jnp.float32)
    run = jax.value_and_grad(chunked_total, argnums=(0, 1), has_aux=True)
    run = jax.jit(run, static_argnums=4)
    (loss, found), gradients = run(kernel, hidden, targets, weights, chunk_length)
    (whole_loss, whole), whole_gradients = run(kernel, hidden, targets, weights, None)
    # The whole sums a kernel's gradient in one bfloat16 product, the chunks in several.
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.05, "atol": 0.05}
    )
    np.testing.assert_allclose(loss, whole_loss, rtol=1e-5)
    for chunk, expected in zip(found, whole, strict=True):
        assert chunk.shape == (BATCH, LENGTH)
        np.testing.assert_allclose(chunk, expected, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, whole_gradients, strict=True):
        assert gradient.dtype == expected.dtype
        np.testing.assert_allclose(
            gradient.astype(jnp.float32), expected.astype(jnp.float32), **tolerance
        )


def largest(jaxpr):
    """The size in elements of the largest array in a program, inner programs included."""
    sizes = [math.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars]
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                sizes.append(largest(inner))
    return max(sizes, default=0)


def test_whole_logits_never_exist():
    """Neither in the program with its backward pass, nor in what the compiler sets aside for it."""
    batch, length, vocab, embed, chunk_length = 4, 64, 2048, 8, 16
    arguments = (
        jnp.ones((embed, vocab)),
        jnp.ones((batch, length, embed)),
        jnp.ones((batch, length), jnp.int32),
        jnp.ones((batch, length)),
    )

    def program(chunk_length):
        def loss(kernel, hidden, targets, weights):
            return chunked_total(kernel, hidden, targets, weights, chunk_length)[0]

        gradient = jax.grad(loss, argnums=(0, 1))
        memory = jax.jit(gradient).lower(*arguments).compile().memory_analysis()
        return largest(jax.make_jaxpr(gradient)(*arguments).jaxpr), memory.temp_size_in_bytes

    whole = batch * length * vocab
    chunked_size, chunked_bytes = program(chunk_length)
    whole_size, whole_bytes = program(None)
    assert whole_size == whole  # the search sees it where it exists
    assert chunked_size == whole * chunk_length // length
    assert whole_bytes >= 4 * whole
    assert chunked_bytes < 4 * whole


def test_sharded_equals_one_device(rng):
    """Rows over `data` and classes over `tensor`, in chunks that do not divide the length."""
    kernel = jnp.asarray(rng.normal(size=(EMBED, 12)), jnp.float32)
    hidden = jnp.asarray(rng.normal(size=(4, LENGTH, EMBED)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 12, (4, LENGTH)), jnp.int32)
    weights = jnp.ones((4, LENGTH))
    run = jax.jit(
        lambda *arguments: jax.value_and_grad(
            lambda *inner: chunked_total(*inner, 3)[0], argnums=(0, 1)
        )(*arguments)
    )
    expected = run(kernel, hidden, targets, weights)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), (jax.sharding.AxisType.Auto,) * 2)

    def place(array, *axes):
        spec = jax.sharding.PartitionSpec(*axes)
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))

    found = run(
        place(kernel, None, "tensor"),
        place(hidden, "data"),
        place(targets, "data"),
        place(weights, "data"),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


WEIGHTS = np.array([[1, 1, 1, 1, 0.5, 0], [1, 1, 0, 0, 0, 0]], np.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32)


@pytest.mark.parametrize(
    ("factor", "divisor"),
    [
        (None, 6.5),
        ("NUM_REAL_TARGET_TOKENS", 6.5),
        ("NUM_TOTAL_TARGET_TOKENS", 12.0),
        (233472, 233472.0),
        (0.25, 0.25),
    ],
)
def test_factors_that_leave_the_weights_alone(factor, divisor):
    weights, found = normalized_weights(jnp.asarray(WEIGHTS), factor, segment_ids=SEGMENTS)
    np.testing.assert_array_equal(weights, WEIGHTS)
    assert found.shape == ()
    assert found.dtype == jnp.float32
    assert float(found) == divisor


def test_average_per_sequence_of_packed_rows():
    weights, divisor = normalized_weights(
        jnp.asarray(WEIGHTS), "AVERAGE_PER_SEQUENCE", segment_ids=jnp.asarray(SEGMENTS)
    )
    expected = [[1 / 3, 1 / 3, 1 / 3, 1 / 1.5, 0.5 / 1.5, 0], [1 / 2, 1 / 2, 0, 0, 0, 0]]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(divisor, 3.0, rtol=1e-6)


def test_average_per_sequence_of_unpacked_rows_and_of_padding():
    padded = jnp.asarray(np.concatenate([WEIGHTS, np.zeros((1, 6), np.float32)]))
    weights, divisor = normalized_weights(padded, "AVERAGE_PER_SEQUENCE")
    np.testing.assert_allclose(weights.sum(axis=1), [1, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(divisor, 2.0, rtol=1e-6)
