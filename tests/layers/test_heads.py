"""Heads: shapes, pooling, and what padding must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.layers import (
    ClassificationHeadSpec,
    EmbeddingHeadSpec,
    RegressionHeadSpec,
    SpansHeadSpec,
    TokenLabelsHeadSpec,
    pool,
)

HIDDEN = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
VALID = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)

HEADS = {
    ClassificationHeadSpec(num_classes=4): (3, 4),
    ClassificationHeadSpec(num_classes=4, pooling="first", pooler=True): (3, 4),
    RegressionHeadSpec(num_targets=2, pooling="last"): (3, 2),
    TokenLabelsHeadSpec(num_labels=6): (3, 5, 6),
    SpansHeadSpec(): (3, 5, 2),
    EmbeddingHeadSpec(): (3, 8),
    EmbeddingHeadSpec(size=6, pooling="first", normalized=False): (3, 6),
}


def run(spec, hidden, valid, dtype="float32", params=None):
    module = spec.make(8, 50, jnp.dtype(dtype))
    if params is None:
        return jax.jit(module.init_with_output)(jax.random.key(0), hidden, valid)
    return jax.jit(module.apply)(params, hidden, valid)


@pytest.mark.parametrize(("spec", "shape"), HEADS.items(), ids=[s.kind for s in HEADS])
def test_outputs_are_float32_finite_and_of_the_promised_shape(spec, shape):
    out, _ = run(spec, HIDDEN.astype(jnp.bfloat16), VALID, "bfloat16")
    assert out.shape == shape
    assert out.dtype == jnp.float32
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_pooling_takes_existing_tokens_alone(pooling):
    expected = {
        "first": [HIDDEN[0, 1], HIDDEN[1, 0]],
        "mean": [HIDDEN[0, [1, 2, 4]].mean(axis=0), HIDDEN[1].mean(axis=0)],
        "last": [HIDDEN[0, 4], HIDDEN[1, 4]],
    }[pooling]
    np.testing.assert_allclose(pool(HIDDEN, VALID, pooling)[:2], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_padding_changes_nothing(pooling):
    spec = ClassificationHeadSpec(num_classes=3, pooling=pooling)
    expected, params = run(spec, HIDDEN, VALID)
    longer = np.concatenate([HIDDEN, 100 * HIDDEN[:, :2]], axis=1)
    valid = np.pad(VALID, ((0, 0), (0, 2)))
    out = run(spec, longer, valid, params=params)
    np.testing.assert_allclose(out[:2], expected[:2], rtol=1e-5, atol=1e-5)


def test_normalised_embeddings_have_length_one_and_padding_a_finite_gradient():
    spec = EmbeddingHeadSpec()
    out, params = run(spec, HIDDEN, VALID)
    np.testing.assert_allclose(np.linalg.norm(out[:2], axis=-1), 1, rtol=1e-5)
    module = spec.make(8, 50, jnp.dtype("float32"))
    gradient = jax.grad(lambda x: module.apply(params, x, VALID)[:, 0].sum())(HIDDEN)
    assert np.all(np.isfinite(gradient))


def test_dropout_applies_with_a_key_alone():
    spec = ClassificationHeadSpec(num_classes=3, dropout_rate=0.5)
    expected, params = run(spec, HIDDEN, VALID)
    module = spec.make(8, 50, jnp.dtype("float32"))
    dropped = module.apply(params, HIDDEN, VALID, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(dropped, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassificationHeadSpec(num_classes=1), "num_classes = 1: must be at least 2"),
        (lambda: ClassificationHeadSpec(pooling="max"), "one of first, mean, last"),
        (lambda: EmbeddingHeadSpec(size=0), "at least 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
