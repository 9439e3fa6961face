"""Heads: shapes, pooling, and what padding must not change."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.layers import (
    ClassificationHeadSpec,
    EmbeddingHeadSpec,
    HeadSpec,
    LayerNormSpec,
    LMHeadSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    RegressionHeadSpec,
    ReplacedTokensHeadSpec,
    SpansHeadSpec,
    TokenEmbedding,
    TokenLabelsHeadSpec,
    pool,
    unit_length,
)

HIDDEN = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
VALID = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)

HEADS = {
    ClassificationHeadSpec(num_classes=4): (3, 4),
    ClassificationHeadSpec(num_classes=4, pooling="first", pooler=True): (3, 4),
    RegressionHeadSpec(num_targets=2, pooling="last"): (3, 2),
    TokenLabelsHeadSpec(num_labels=6): (3, 5, 6),
    SpansHeadSpec(): (3, 5, 2),
    PoolerHeadSpec(): (3, 8),
    ReplacedTokensHeadSpec(): (3, 5),
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


@pytest.mark.parametrize("spec", HEADS, ids=[s.kind for s in HEADS])
def test_parameters_may_be_bfloat16_while_computing_in_float32(spec):
    module, seeds = spec.make(8, 50, jnp.dtype("float32")), iter(range(9))
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), HIDDEN, VALID))
    half = jax.tree.map(lambda leaf: draw(next(seeds), *leaf.shape).astype(jnp.bfloat16), shapes)
    full = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    actual, expected = (module.apply(params, HIDDEN, VALID) for params in (half, full))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_unit_length_is_along_the_last_axis():
    actual = np.asarray(unit_length(jnp.asarray(HIDDEN * 30)))
    expected = HIDDEN / np.linalg.norm(HIDDEN, axis=-1, keepdims=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert not np.any(unit_length(jnp.zeros((2, 8))))


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_replaced_token_is_seen_in_its_own_vector():
    params = {
        "dense": {"kernel": draw(1, 8, 8), "bias": draw(2, 8)},
        "projection": {"kernel": draw(3, 8, 1), "bias": draw(4, 1)},
    }
    actual = run(ReplacedTokensHeadSpec("relu"), HIDDEN, VALID, params={"params": params})
    dense = np.maximum(HIDDEN @ params["dense"]["kernel"] + params["dense"]["bias"], 0)
    expected = dense @ params["projection"]["kernel"][:, 0] + params["projection"]["bias"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_pooler_reads_the_first_token():
    params = {"dense": {"kernel": draw(1, 8, 8), "bias": draw(2, 8)}}
    actual = run(PoolerHeadSpec(), HIDDEN, np.ones_like(VALID), params={"params": params})
    expected = np.tanh(HIDDEN[:, 0] @ params["dense"]["kernel"] + params["dense"]["bias"])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


class WithTable(nn.Module):
    """A head of kind "lm" beside a table of its own width."""

    spec: HeadSpec
    width: int

    def setup(self):
        self.table = TokenEmbedding(50, self.width, jnp.dtype("float32"))
        self.head = self.spec.make(8, 50, jnp.dtype("float32"))

    def __call__(self, hidden):
        return self.head(hidden, self.table)


@pytest.mark.parametrize("tied", [True, False])
def test_a_softcap_bounds_logits_and_is_last(tied):
    """Behind scale and bias; small logits pass."""
    free = LMHeadSpec(tied=tied, logits_scale=3.0, use_bias=True)
    module = WithTable(free, 8)
    reference, params = module.init_with_output(jax.random.key(0), HIDDEN)
    capped = WithTable(free.replace(softcap=5.0), 8).apply(params, HIDDEN)
    np.testing.assert_allclose(capped, 5 * np.tanh(reference / 5), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(reference)) > 10 > 5 >= np.max(np.abs(capped))
    loose = WithTable(free.replace(softcap=1e4), 8).apply(params, HIDDEN)
    np.testing.assert_allclose(loose, reference, rtol=1e-4)
    assert loose.dtype == capped.dtype == jnp.float32


@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_masked_lm_head_is_its_formula_in_the_tables_width(use_bias, width):
    spec = MaskedLMHeadSpec("relu", LayerNormSpec(1e-3, use_bias=False), use_bias=use_bias)
    dense = {"kernel": draw(1, 8, width)} | ({"bias": draw(2, width)} if use_bias else {})
    head = {"dense": dense, "norm": {"scale": draw(3, width)}, "bias": draw(4, 50)}
    params = {"table": {"embedding": draw(5, 50, width)}, "head": head}
    module = WithTable(spec, width)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), HIDDEN))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    x = np.maximum(HIDDEN @ dense["kernel"] + dense.get("bias", 0), 0)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-3) * head["norm"]["scale"]
    expected = x @ params["table"]["embedding"].T + head["bias"]
    actual = module.apply({"params": params}, HIDDEN)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LMHeadSpec(softcap=0.0), "LMHeadSpec.softcap = 0.0: must be above 0, or None"),
        (lambda: MaskedLMHeadSpec("gelu_tan"), "did you mean gelu_tanh"),
        (lambda: ReplacedTokensHeadSpec("gellu"), "did you mean gelu"),
        (lambda: PoolerHeadSpec("tan"), "did you mean tanh"),
        (lambda: ClassificationHeadSpec(num_classes=1), "num_classes = 1: must be at least 2"),
        (lambda: ClassificationHeadSpec(pooling="median"), "did you mean mean"),
        (lambda: EmbeddingHeadSpec(size=0), "at least 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
