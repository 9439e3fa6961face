"""Attention against loops in numpy, and the keys and values it is given."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.layers import AttentionSpec, KeyValues, causal_mask, dot_product_attention

BATCH, Q_LENGTH, KV_LENGTH, WIDTH = 2, 3, 5, 4


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(query, key, value, *, bias=None, mask=None, scale=1.0):
    """One query of one head at a time, in float64; query head h reads key head h // group."""
    query, key, value = (np.float64(x) for x in (query, key, value))
    batch, q_length, heads, _ = query.shape
    kv_length, kv_heads = key.shape[1:3]
    full = (batch, heads, q_length, kv_length)
    bias = np.broadcast_to(0.0 if bias is None else bias, full)
    mask = np.broadcast_to(True if mask is None else mask, full)
    out = np.zeros(query.shape)
    for b, h, q in np.ndindex(batch, heads, q_length):
        k_head = h // (heads // kv_heads)
        logits = key[b, :, k_head] @ query[b, q, h] * scale + bias[b, h, q]
        logits = logits[mask[b, h, q]]
        weights = np.exp(logits - logits.max())
        out[b, q, h] = weights @ value[b, mask[b, h, q], k_head] / weights.sum()
    return out


def inputs(heads=4, kv_heads=4):
    query = draw(0, BATCH, Q_LENGTH, heads, WIDTH)
    return query, *(draw(seed, BATCH, KV_LENGTH, kv_heads, WIDTH) for seed in (1, 2))


def attend(query, key, value, **options):
    return dot_product_attention(query, KeyValues(key, value), **options)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_heads_share_keys_in_groups(kv_heads):
    arrays = inputs(kv_heads=kv_heads)
    np.testing.assert_allclose(attend(*arrays), reference(*arrays), rtol=1e-4, atol=1e-5)


MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.3},
        {"bias": draw(3, BATCH, 4, Q_LENGTH, KV_LENGTH)},
        {"bias": draw(3, 1, 4, 1, KV_LENGTH)},
        {"mask": MASK[None, None]},
        {"mask": np.stack([MASK, MASK[::-1]])[:, None]},
        {"mask": MASK[None, None], "bias": draw(3, 1, 4, Q_LENGTH, KV_LENGTH), "scale": 0.5},
    ],
)
def test_scale_bias_and_mask(options):
    # The scale is on query and key alone: T5's bias is added as it is.
    arrays = inputs(kv_heads=2)
    np.testing.assert_allclose(
        attend(*arrays, **options), reference(*arrays, **options), rtol=1e-4, atol=1e-5
    )


def test_a_query_that_sees_nothing_averages_and_its_gradient_is_finite():
    query, key, value = inputs()
    mask = np.ones((1, 1, Q_LENGTH, KV_LENGTH), bool)
    mask[..., 1, :] = False
    out = attend(query, key, value, mask=mask)
    expected = np.mean(value, axis=1)
    np.testing.assert_allclose(out[:, 1], expected, rtol=1e-5, atol=1e-6)
    gradients = jax.grad(
        lambda *arrays: jnp.sum(attend(*arrays, mask=mask) ** 2), argnums=(0, 1, 2)
    )(query, key, value)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert not np.any(gradients[0][:, 1])


def test_logits_of_bfloat16_are_summed_and_compared_in_float32():
    # Logits 256 and 257: bfloat16 would round the second to the first.
    query = jnp.full((1, 1, 1, 2), 16, jnp.bfloat16)
    key = jnp.asarray([[16, 0], [16, 1 / 16]], jnp.bfloat16)[None, :, None]
    value = jnp.asarray([[0, 0], [1, 1]], jnp.bfloat16)[None, :, None]
    out = attend(query, key, value)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), 1 / (1 + np.exp(-1)), rtol=5e-3)


def test_dropout_sees_probabilities():
    query, key, value = inputs()
    seen = []
    out = attend(query, key, value, dropout=lambda p: seen.append(p) or p * 0)
    assert not np.any(out)
    assert seen[0].shape == (BATCH, 4, Q_LENGTH, KV_LENGTH)
    np.testing.assert_allclose(np.sum(seen[0], axis=-1), 1, rtol=1e-5)


# Keys and values.


@pytest.mark.parametrize("n", [1, 3])
def test_keys_are_appended_behind_each_rows_own_length(n):
    old = KeyValues(*(draw(seed, 3, 6, 2, WIDTH) for seed in (0, 1)))
    new = KeyValues(*(draw(seed, 3, n, 2, WIDTH) for seed in (2, 3)))
    lengths = [0, 2, 6 - n]
    found = jax.jit(KeyValues.append)(old, new, jnp.asarray(lengths, jnp.int32))
    for name in ("key", "value"):
        expected = getattr(old, name).copy()
        for row, at in enumerate(lengths):
            expected[row, at : at + n] = getattr(new, name)[row]
        np.testing.assert_array_equal(getattr(found, name), expected)


def test_a_cache_keeps_its_dtype():
    empty = jnp.zeros((1, 2, 1, 1), jnp.bfloat16)
    ones = jnp.ones((1, 1, 1, 1), jnp.float32)
    found = KeyValues(empty, empty).append(KeyValues(ones, ones), jnp.zeros(1, jnp.int32))
    assert (found.key.dtype, found.value.dtype) == (jnp.bfloat16, jnp.bfloat16)


# The module.

EMBED = 32


class SelfAttention(nn.Module):
    spec: AttentionSpec
    dropout_rate: float = 0.0

    def setup(self):
        self.attention = self.spec.make(
            EMBED, dtype=jnp.dtype("float32"), dropout_rate=self.dropout_rate
        )

    def __call__(self, x, mask=None):
        return self.attention(x, self.attention.key_values(x), bias=None, mask=mask)

    def through_a_cache(self, x, cache, lengths):
        cache = cache.append(self.attention.key_values(x), lengths)
        slots = jnp.arange(cache.key.shape[1], dtype=jnp.int32)[None]
        mask = causal_mask(lengths[:, None], slots)
        return self.attention(x, cache, bias=None, mask=mask), cache


@pytest.mark.parametrize("spec", [AttentionSpec(4, 8), AttentionSpec(4, 8, 2, logits_scale=1.0)])
def test_the_module_projects_attends_and_projects_back(spec):
    x = draw(0, BATCH, 5, EMBED)
    params = {
        name: {"kernel": draw(seed, EMBED, heads, 8) / 6}
        for seed, (name, heads) in enumerate(
            [("query", 4), ("key", spec.kv_heads), ("value", spec.kv_heads)], 1
        )
    } | {"output": {"kernel": draw(4, 4, 8, EMBED)}}
    query, key, value = (
        np.einsum("ble,ehd->blhd", x, params[name]["kernel"]) for name in ("query", "key", "value")
    )
    scale = 1.0 if spec.logits_scale else 8**-0.5
    attended = reference(query, key, value, scale=scale)
    expected = np.einsum("blhd,hde->ble", attended, params["output"]["kernel"])
    y = SelfAttention(spec).apply({"params": {"attention": params}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_through_a_cache_token_by_token_it_is_the_causal_one():
    spec = AttentionSpec(4, 8, num_kv_heads=2)
    module, x = SelfAttention(spec), jnp.asarray(draw(0, BATCH, 5, EMBED))
    order = jnp.arange(5, dtype=jnp.int32)[None]
    whole, params = jax.jit(module.init_with_output)(
        jax.random.key(0), x, causal_mask(order, order)
    )
    junk = jnp.asarray(draw(1, BATCH, 7, 2, 8)) * 100  # slots that hold nothing are never seen
    cache = KeyValues(junk, junk)
    step = jax.jit(lambda *arguments: module.apply(params, *arguments, method="through_a_cache"))
    for at in range(5):
        y, cache = step(x[:, at : at + 1], cache, jnp.full(BATCH, at, jnp.int32))
        np.testing.assert_allclose(y[:, 0], whole[:, at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logits_scale", [None, 1.0])
def test_logits_begin_with_unit_variance_whatever_the_scale(logits_scale):
    spec = AttentionSpec(16, 8, logits_scale=logits_scale)
    x = jnp.asarray(draw(0, 1, 200, EMBED))
    params = jax.jit(SelfAttention(spec).init)(jax.random.key(0), x)["params"]["attention"]
    query, key = (
        jnp.einsum("ble,ehd->blhd", x, params[n]["kernel"].value) for n in ("query", "key")
    )
    logits = spec.scale * jnp.einsum("bqhd,bkhd->bhqk", query, key)
    assert np.std(logits) == pytest.approx(1.0, rel=0.05)
    names = {name: leaf["kernel"].names for name, leaf in params.items()}
    into = ("embed", "heads", "kv")
    assert names == {"query": into, "key": into, "value": into, "output": ("heads", "kv", "embed")}


def test_dropout_needs_a_key():
    module = SelfAttention(AttentionSpec(4, 8), dropout_rate=0.5)
    x = draw(0, BATCH, 5, EMBED)
    y, params = jax.jit(module.init_with_output)(jax.random.key(0), x)
    dropped = [
        module.apply(params, x, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.allclose(dropped[0], y, atol=1e-3)
    assert not np.allclose(dropped[0], dropped[2], atol=1e-3)
