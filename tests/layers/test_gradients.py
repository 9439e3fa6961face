"""What 10⁴ rows share has a gradient of exactly 10⁴, in whatever dtype it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.layers import (
    LayerNormSpec,
    LearnedPositionsSpec,
    Projection,
    TokenEmbedding,
    Weights,
    broadcast,
)
from t5lite.layers.projection import product

ROWS, LENGTH, EMBED = 2000, 5, 4  # 10⁴ tokens
DTYPE = jnp.dtype("bfloat16")
TOKENS = np.zeros((ROWS, LENGTH), np.int32)


def embedded(axis):
    return TokenEmbedding(3, EMBED, DTYPE, axis=axis), TOKENS


def positions(packed):
    module = LearnedPositionsSpec(LENGTH).make(EMBED, DTYPE)
    return module, TOKENS if packed else TOKENS[:1]


def biased():
    return Projection(("embed", "mlp"), (EMBED,), Weights(), dtype=DTYPE, use_bias=True), ONES


ONES = np.ones((ROWS, LENGTH, EMBED), DTYPE)


@pytest.mark.parametrize(
    ("module", "inputs", "name"),
    [
        (*embedded("vocab"), "embedding"),
        (*embedded("token_types"), "embedding"),
        (*positions(packed=True), "embedding"),
        (*positions(packed=False), "embedding"),
        (*biased(), "bias"),
        (*biased(), "kernel"),
        (LayerNormSpec().make(DTYPE), ONES, "bias"),
    ],
)
def test_it_is_added_up_in_float32(module, inputs, name):
    params = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), inputs[:1]))

    def total(params):
        y = module.apply(params, inputs)
        assert y.dtype == DTYPE
        return jnp.sum(broadcast(y, ONES.shape, DTYPE).astype(jnp.float32))

    gradient = jax.grad(total)(params)["params"][name]
    gradient = getattr(gradient, "value", gradient)
    # All that are looked up are row 0.
    first = gradient if name != "embedding" else gradient[0]
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(first, 10_000)


@pytest.mark.parametrize("features_first", [False, True])
def test_a_product_has_the_gradient_that_jax_derives(features_first):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 4, 5), np.float32)
    kernel = rng.standard_normal((6, 7, 4, 5) if features_first else (4, 5, 6, 7), np.float32)
    weights = rng.standard_normal((3, 2, 6, 7), np.float32)
    equation = "abij,cdij->abcd" if features_first else "abij,ijcd->abcd"

    def ours(x, kernel):
        options = {"num_contracted": 2, "dtype": jnp.float32, "features_first": features_first}
        return jnp.sum(weights * product(x, kernel, **options))

    def theirs(x, kernel):
        return jnp.sum(weights * jnp.einsum(equation, x, kernel))

    actual, expected = (jax.value_and_grad(f, (0, 1))(x, kernel) for f in (ours, theirs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected
    )
