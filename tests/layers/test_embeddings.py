"""Token embeddings, tied logits, and how projections begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.layers import FanInInitSpec, Projection, TokenEmbedding, Weights
from t5lite.models import Model, override

VOCAB, EMBED = 11, 4
TABLE = np.random.default_rng(0).standard_normal((VOCAB, EMBED)).astype(np.float32)
VARIABLES = {"params": {"embedding": TABLE}}
TOKENS = np.array([[0, 3, 10], [3, 3, 1]], np.int32)


def module(dtype="float32"):
    return TokenEmbedding(VOCAB, EMBED, jnp.dtype(dtype))


def test_a_token_is_its_row():
    np.testing.assert_array_equal(module().apply(VARIABLES, TOKENS), TABLE[TOKENS])


def test_a_row_learns_from_all_its_tokens():
    def loss(table):
        return module().apply({"params": {"embedding": table}}, TOKENS).sum()

    counts = np.bincount(TOKENS.ravel(), minlength=VOCAB).astype(np.float32)
    np.testing.assert_array_equal(jax.grad(loss)(TABLE), np.repeat(counts[:, None], EMBED, axis=1))


def test_tied_logits_are_dots_with_every_row():
    x = np.random.default_rng(1).standard_normal((2, 3, EMBED)).astype(np.float32)
    logits = module().apply(VARIABLES, x, method="attend")
    np.testing.assert_allclose(logits, x @ TABLE.T, rtol=1e-5, atol=1e-5)


def test_tied_logits_are_summed_and_kept_in_float32():
    # 256 + 1 + 1 + 0.5, which bfloat16 cannot hold.
    x = jnp.asarray([[[256, 1, 1, 0.5]]], jnp.bfloat16)
    ones = {"params": {"embedding": np.ones((VOCAB, EMBED), np.float32)}}
    logits = module("bfloat16").apply(ones, x, method="attend")
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, 258.5)
    assert module("bfloat16").apply(ones, TOKENS).dtype == jnp.bfloat16


def test_tied_logits_of_a_model_are_scaled_down():
    model = Model(override("t5_nano", {"vocab": 11, "embed": 16, "*.num_layers": 1}))
    rng = np.random.default_rng(2)
    table, hidden = (rng.standard_normal(s).astype(np.float32) for s in ((11, 16), (2, 3, 16)))
    params = {"token_embedding": {"embedding": table}}
    expected = hidden @ table.T / 4  # the root of its width
    np.testing.assert_allclose(model.logits(params, hidden), expected, rtol=1e-5, atol=1e-6)


def test_the_initial_table_has_unit_variance_and_axis_names():
    table = TokenEmbedding(512, 64, jnp.dtype("float32")).init(jax.random.key(0), TOKENS)
    table = table["params"]["embedding"]
    assert table.names == ("vocab", "embed")
    assert np.std(table.value) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    ("axes", "features", "num_contracted", "x_shape", "fan_in"),
    [
        (("embed", "mlp"), (128,), 1, (1, 64), 64),
        (("embed", "heads", "kv"), (4, 32), 1, (1, 64), 64),
        (("heads", "kv", "embed"), (64,), 2, (1, 4, 32), 128),
    ],
)
@pytest.mark.parametrize("distribution", ["normal", "truncated_normal"])
def test_initial_projections_have_the_fan_in_standard_deviation(
    axes, features, num_contracted, x_shape, fan_in, distribution
):
    layer = Projection(
        axes,
        features,
        num_contracted=num_contracted,
        dtype=jnp.dtype("float32"),
        weights=Weights(FanInInitSpec(0.25, distribution)),
    )
    params = layer.init(jax.random.key(0), jnp.zeros(x_shape))["params"]
    assert set(params) == {"kernel"}  # no bias
    kernel = params["kernel"]
    assert kernel.names == axes
    assert kernel.value.shape == (*x_shape[1:], *features)
    spread = 0.5 * fan_in**-0.5
    assert np.std(kernel.value) == pytest.approx(spread, rel=0.03)
    # Truncated at two standard deviations of the normal it is cut from, whose spread is wider.
    farthest = np.max(np.abs(kernel.value)) / spread
    assert (farthest < 2 / 0.8796) == (distribution == "truncated_normal")


@pytest.mark.parametrize("float32_output", [False, True])
def test_a_projection_can_keep_its_sums_in_float32(float32_output):
    layer = Projection(
        ("embed", "vocab"),
        (5,),
        Weights(),
        dtype=jnp.dtype("bfloat16"),
        float32_output=float32_output,
    )
    x = jnp.asarray([[256, 1, 1, 0.5]], jnp.bfloat16)
    y = layer.apply({"params": {"kernel": np.ones((4, 5), np.float32)}}, x)
    assert y.dtype == ("float32" if float32_output else "bfloat16")
    np.testing.assert_array_equal(y.astype(jnp.float32), 258.5 if float32_output else 258)
