"""Attention within windows, with capped logits and normed heads: by definition, in every kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.layers import (
    KERNELS,
    AttentionMask,
    AttentionSpec,
    KeyValues,
    LayerNormSpec,
    Request,
    RMSNormSpec,
    attention,
)
from t5lite.layers.kernels import chunked, cudnn, splash

LENGTH, WIDTH, EMBED = 19, 8, 12


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def request(*, causal, window, softcap, length=LENGTH, heads=2, width=WIDTH):
    query, key, value = (draw(seed, 1, length, heads, width) for seed in range(3))
    segments = jnp.asarray([[1] * (length // 3) + [2] * (length - length // 3)], jnp.int32)
    mask = AttentionMask.within(segments, causal=causal).within_window(window)
    scale = 2 * width**-0.5  # logits that a cap of 2 does change
    return Request(query, KeyValues(key, value), mask=mask, scale=scale, softcap=softcap)


def by_loops(request):
    """One query of one head at a time, in float64."""
    query, key, value = (
        np.float64(x[0]) for x in (request.query, request.kv.key, request.kv.value)
    )
    mask, segments = request.mask, np.asarray(request.mask.q_segments[0])
    out = np.zeros(query.shape)
    for position, head in np.ndindex(query.shape[:2]):
        seen = [
            second
            for second in range(len(key))
            if segments[position] == segments[second]
            and (not mask.causal or second <= position)
            and (mask.window is None or abs(second - position) <= mask.window)
        ]
        logits = key[seen, head] @ query[position, head] * request.scale
        if request.softcap is not None:
            logits = request.softcap * np.tanh(logits / request.softcap)
        weights = np.exp(logits)
        out[position, head] = weights / weights.sum() @ value[seen, head]
    return out[None]


CASES = [(True, 3, 2.0), (False, 3, 2.0), (True, 1, None), (False, None, 0.5)]


@pytest.mark.parametrize(("causal", "window", "softcap"), CASES)
def test_windows_and_caps_are_their_definition(causal, window, softcap):
    one = request(causal=causal, window=window, softcap=softcap)
    np.testing.assert_allclose(attention(one), by_loops(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("causal", "window", "softcap"), CASES[:2])
def test_some_queries_at_a_time_are_all_of_them_and_so_are_their_gradients(causal, window, softcap):
    one = request(causal=causal, window=window, softcap=softcap)

    def outcome(kernel):
        def total(query, kv):
            out = kernel(dataclasses.replace(one, query=query, kv=kv))
            return jnp.sum(jnp.sin(out)), out

        gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
        return gradient(one.query, one.kv)

    expected = outcome(KERNELS["dot"])
    actual = outcome(lambda request: chunked.attention(request, chunk=8))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.mark.parametrize(
    ("causal", "window", "softcap"), [(True, 20, None), (False, 140, 2.0), (True, None, 2.0)]
)
def test_the_tpu_kernel_run_step_by_step_equals_dot(causal, window, softcap):
    """Of three blocks of 128, of which a window of 20 leaves some out."""
    one = request(causal=causal, window=window, softcap=softcap, length=384, heads=1, width=128)
    actual = jax.jit(lambda request: splash.attention(request, interpret=True))(one)
    np.testing.assert_allclose(actual, KERNELS["dot"](one), rtol=2e-3, atol=2e-3)


def test_cudnn_leaves_capped_logits_to_others(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    one = request(causal=True, window=None, softcap=2.0, length=20)
    query, key, value = (x.astype(jnp.bfloat16) for x in (one.query, one.kv.key, one.kv.value))
    half = dataclasses.replace(one, query=query, kv=KeyValues(key, value))
    with pytest.raises(InputError, match="'cudnn': cuDNN caps no logits; use 'auto'"):
        attention(half, kernel="cudnn")
    assert "compute capability" in cudnn.refusal(dataclasses.replace(half, softcap=None))


# The module.

NORMS = {
    "rms": RMSNormSpec(0.1),
    "unit_offset": RMSNormSpec(0.1, unit_offset=True),
    "layer": LayerNormSpec(0.1, use_bias=False),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_queries_and_keys_are_normed_head_by_head(norm):
    spec = AttentionSpec(4, WIDTH, 2, logits_scale=1.5, logits_softcap=2.0, query_key_norm=norm)
    module = spec.make(EMBED, dtype=jnp.dtype("float32"), dropout_rate=0.0)
    x = draw(0, 2, 5, EMBED)

    def run(module, x):
        return module(x, module.key_values(x))

    names = jax.eval_shape(lambda: module.init(jax.random.key(0), x, method=run))["params"]
    assert names["query_norm"]["scale"].names == names["key_norm"]["scale"].names == ("kv",)
    heads = {"query": 4, "key": 2, "value": 2}
    params = {
        name: {"kernel": draw(seed, EMBED, count, WIDTH)}
        for seed, (name, count) in enumerate(heads.items(), 1)
    }
    params["output"] = {"kernel": draw(4, 4, WIDTH, EMBED)}
    params |= {name: {"scale": draw(seed, WIDTH)} for seed, name in ((5, "query_norm"),)}
    params |= {"key_norm": {"scale": draw(6, WIDTH)}}

    def normed(x, scale):
        x, scale = np.float64(x), np.float64(scale) + (norm is NORMS["unit_offset"])
        if norm is NORMS["layer"]:
            x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 0.1) * scale

    query, key, value = (np.einsum("ble,ehd->blhd", x, params[name]["kernel"]) for name in heads)
    query = normed(query, params["query_norm"]["scale"])
    key, value = (
        np.repeat(part, 2, axis=2) for part in (normed(key, params["key_norm"]["scale"]), value)
    )
    logits = 2.0 * np.tanh(1.5 * np.einsum("bqhd,bkhd->bhqk", query, key) / 2.0)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
    expected = np.einsum("bqhd,hde->bqe", mixed, params["output"]["kernel"])
    actual = jax.jit(lambda params, x: module.apply({"params": params}, x, method=run))(params, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("window", 0, "AttentionSpec.window = 0: must be at least 1"),
        ("window", 2.5, "AttentionSpec.window = 2.5: expected"),
        ("logits_softcap", 0.0, "logits_softcap = 0.0: must be above 0, or None"),
        ("logits_softcap", -30.0, "logits_softcap = -30.0: must be above 0, or None"),
        ("query_key_norm", "rms", "query_key_norm = 'rms': expected"),
    ],
)
def test_mistakes_are_named(field, value, message):
    with pytest.raises(InputError, match=message):
        AttentionSpec(4, 8, **{field: value})
