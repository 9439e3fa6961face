"""Attention against loops in numpy, and the keys and values it is given."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec

from t5lite.errors import InputError
from t5lite.layers import (
    KERNELS,
    AttentionMask,
    AttentionSpec,
    Dropout,
    KeyValues,
    Request,
    RMSNormSpec,
    RotarySpec,
    Slots,
    YarnScalingSpec,
    attention,
    rotate,
)
from t5lite.layers.kernels import chunked, rows, splash
from t5lite.parallel import Layout, make_mesh, shardings, with_layout

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


def attend(query, key, value, *, kernel="dot", **options):
    return attention(Request(query, KeyValues(key, value), **options), kernel=kernel)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_heads_share_keys_in_groups(kv_heads):
    arrays = inputs(kv_heads=kv_heads)
    np.testing.assert_allclose(attend(*arrays), reference(*arrays), rtol=1e-4, atol=1e-5)


SEGMENTS = AttentionMask(
    jnp.asarray([[1, 2, 2]], jnp.int32), jnp.asarray([[2, 1, 1, 0, 2]], jnp.int32)
)
ORDER = AttentionMask(
    q_order=jnp.asarray([[0, 4, 2], [1, 1, 3]], jnp.int32),
    kv_order=jnp.arange(5, dtype=jnp.int32)[None],
)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.3},
        {"bias": draw(3, BATCH, 4, Q_LENGTH, KV_LENGTH)},
        {"bias": draw(3, 1, 4, 1, KV_LENGTH)},
        {"mask": SEGMENTS},
        {"mask": ORDER},
        {"mask": ORDER, "bias": draw(3, 1, 4, Q_LENGTH, KV_LENGTH), "scale": 0.5},
    ],
    ids=["scale", "bias", "bias_by_key", "segments", "order", "all"],
)
def test_scale_bias_and_mask(options):
    # The scale is on query and key alone: T5's bias is added as it is.
    arrays = inputs(kv_heads=2)
    expected = options | ({"mask": options["mask"].array()} if "mask" in options else {})
    np.testing.assert_allclose(
        attend(*arrays, **options), reference(*arrays, **expected), rtol=1e-4, atol=1e-5
    )


def test_a_query_that_sees_nothing_averages_and_its_gradient_is_finite():
    query, key, value = inputs()
    # The second query's segment has no key.
    mask = AttentionMask(jnp.asarray([[1, 7, 1]], jnp.int32), jnp.ones((1, KV_LENGTH), jnp.int32))
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


def test_dropout_is_of_probabilities_and_keeps_their_mean():
    query, key, _ = inputs()
    ones = np.ones_like(key)  # so that outputs are the kept probabilities' sums
    keys = jax.random.split(jax.random.key(0), 500)
    out = jax.vmap(lambda k: attend(query, key, ones, dropout=Dropout(k, 0.4)))(keys)
    assert np.std(out) > 0.1
    np.testing.assert_allclose(np.mean(out, axis=0), 1, atol=0.12)


# Kernels: one function, several ways.


def long_request(*, bias, mask, kv_heads=2, length=19, seed=0):
    rng = np.random.default_rng(seed)
    query = jnp.asarray(rng.standard_normal((2, length, 4, 8)), jnp.float32)
    key, value = (
        jnp.asarray(rng.standard_normal((2, length, kv_heads, 8)), jnp.float32) for _ in range(2)
    )
    segments = np.sort(rng.integers(1, 3, (2, length)), axis=1).astype(np.int32)
    rules = {
        "none": None,
        "causal": AttentionMask.within(jnp.asarray(segments), causal=True),
        "both_ways": AttentionMask.within(jnp.asarray(segments), causal=False),
    }
    array = jnp.asarray(rng.standard_normal((1, 4, length, length)), jnp.float32) if bias else None
    return Request(query, KeyValues(key, value), array, rules[mask], scale=8**-0.5)


def outcome(kernel, request):
    """A kernel's output, and what it says of its float arguments' gradients."""

    def total(floats):
        query, kv, bias = floats
        out = kernel(dataclasses.replace(request, query=query, kv=kv, bias=bias))
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(total, has_aux=True))((request.query, request.kv, request.bias))


def assert_same(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.mark.parametrize(("bias", "mask"), [(True, "causal"), (False, "both_ways"), (True, "none")])
def test_some_queries_at_a_time_are_all_of_them_and_so_are_their_gradients(bias, mask):
    request = long_request(bias=bias, mask=mask)
    actual = outcome(lambda request: chunked.attention(request, chunk=8), request)
    assert_same(actual, outcome(KERNELS["dot"], request))


@pytest.mark.parametrize(
    ("bias", "mask", "softcap"),
    [(1, "causal", None), (None, "both_ways", 2.0), (4, "none", None), (1, "padding", None)],
)
def test_some_rows_at_a_time_are_all_of_them_and_so_are_their_gradients(bias, mask, softcap):
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    segments = jnp.asarray(np.sort(rng.integers(0, 3, (4, 6)))[:, ::-1].copy(), jnp.int32)
    request = Request(
        draw(4, 6, 4, 8),
        KeyValues(draw(4, 6, 2, 8), draw(4, 6, 2, 8)),
        None if bias is None else draw(bias, 4, 6, 6),
        {
            "none": None,
            "causal": AttentionMask.within(segments, causal=True),
            "both_ways": AttentionMask.within(segments, causal=False),
            "padding": AttentionMask(jnp.zeros_like(segments), segments),  # nothing to be seen
        }[mask],
        scale=8**-0.5,
        softcap=softcap,
    )
    expected = outcome(KERNELS["dot"], request)
    for most in (1, 2 * 4 * 4 * 6 * 6, 2**30):  # one row, two, all
        result = outcome(lambda r, most=most: rows.attention(r, max_bytes=(most, 1)), request)
        assert_same(result, expected)


def test_rows_in_bfloat16_take_their_sums_from_the_product():
    """The product has a column of ones, which makes up for what rounding does to the weights."""
    request = long_request(bias=True, mask="causal")
    exact = outcome(KERNELS["dot"], request)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (request.query, request.kv))
    narrow = dataclasses.replace(request, query=rounded[0], kv=rounded[1])
    for kernel in ("rows", "dot"):
        _, output = outcome(KERNELS[kernel], narrow)
        np.testing.assert_allclose(np.float32(output), exact[1], atol=0.03)
    text = str(jax.make_jaxpr(lambda r: rows.attention(r))(narrow))
    assert "reduce_sum" not in text


def test_rows_draw_the_same_however_many_are_computed_at_a_time():
    request = dataclasses.replace(
        long_request(bias=True, mask="causal"), dropout=Dropout(jax.random.key(1), 0.4)
    )
    one, all_ = (
        outcome(lambda r, most=most: rows.attention(r, max_bytes=(most, most)), request)
        for most in (1, 2**30)
    )
    assert_same(one, all_)
    assert (
        np.abs(one[1] - outcome(KERNELS["rows"], long_request(bias=True, mask="causal"))[1]).max()
        > 0.1
    )


def test_rows_on_several_devices_are_those_of_one_and_add_up_the_bias_once():
    layout = Layout({"data": 4, "tensor": 2})
    mesh = make_mesh(layout)
    rng = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(rng.standard_normal((8, 6, 4, 8)), jnp.float32) for _ in range(3)
    )
    bias = jnp.asarray(rng.standard_normal((1, 4, 6, 6)), jnp.float32)
    segments = jnp.ones((8, 6), jnp.int32)
    request = Request(
        query, KeyValues(key, value), bias, AttentionMask.within(segments, causal=True)
    )

    def gradient(floats):
        return outcome(lambda r: rows.attention(r, max_bytes=(1, 1)), dataclasses.replace(
            request, query=floats[0], kv=floats[1], bias=floats[2]
        ))  # fmt: skip

    floats = (query, request.kv, bias)
    placed = shardings(
        (PartitionSpec("batch", None, "heads"), PartitionSpec(None, "heads")),
        layout.activations,
        mesh,
    )
    spread = jax.device_put(floats, (placed[0], placed[0], placed[1]))
    run = with_layout(gradient, layout, mesh)
    assert_same(run(spread), outcome(KERNELS["dot"], request))
    text = run.lower(spread).compile().as_text()
    loops = [
        body for body in text.split("\n\n") if "while/body" in body and not body.startswith("ENTRY")
    ]
    assert loops
    assert not any("all-reduce(" in body or "all-gather(" in body for body in loops)


def test_chunks_never_hold_all_logits():
    request = long_request(bias=False, mask="causal", length=64)

    def sizes(kernel):
        def eqns(jaxpr):
            for eqn in jaxpr.eqns:
                yield from (v.aval.size for v in eqn.outvars)
                for sub in jaxprs_in_params(eqn.params):
                    yield from eqns(sub)

        return max(eqns(jax.make_jaxpr(jax.grad(lambda q: kernel(q).sum()))(request.query).jaxpr))

    def with_query(kernel, **options):
        return lambda q: kernel(dataclasses.replace(request, query=q), **options)

    assert sizes(with_query(KERNELS["dot"])) >= 2 * 4 * 64 * 64
    assert sizes(with_query(chunked.attention, chunk=8)) <= 2 * 4 * 8 * 64 * 2


@pytest.mark.parametrize("mask", ["causal", "both_ways"])
def test_the_tpu_kernel_run_step_by_step_equals_dot(mask):
    rng = np.random.default_rng(0)
    shape = (1, 128, 2, 128)
    query, key, value = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(3))
    segments = jnp.asarray(np.repeat([[1, 2]], 64, axis=1), jnp.int32)
    rule = AttentionMask.within(segments, causal=mask == "causal")
    request = Request(query, KeyValues(key, value), mask=rule, scale=128**-0.5)
    result = jax.jit(lambda request: splash.attention(request, interpret=True))(request)
    np.testing.assert_allclose(result, KERNELS["dot"](request), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("splash", "'splash': splash attention runs on TPUs, and this is cpu; use 'auto'"),
        ("cudnn", "'cudnn': cuDNN runs on NVIDIA GPUs, and this is cpu; use 'auto'"),
        ("chunkd", "did you mean chunked"),
    ],
)
def test_a_kernel_that_does_not_apply_says_why(kernel, message):
    with pytest.raises(InputError, match=message):
        attention(long_request(bias=False, mask="causal"), kernel=kernel)


HALF = {
    "query": jnp.zeros((2, 19, 4, 8), jnp.bfloat16),
    "kv": KeyValues(*[jnp.zeros((2, 19, 2, 8), jnp.bfloat16)] * 2),
}


@pytest.mark.parametrize(
    ("backend", "kernel", "change", "reason"),
    [
        ("tpu", "splash", {"bias": np.zeros((1, 4, 1, 1), np.float32)}, "no position bias"),
        ("tpu", "splash", {}, "rows are 19 long: a multiple of 128 is needed"),
        ("gpu", "cudnn", {}, "computes in bfloat16 or float16, not float32"),
        ("gpu", "cudnn", HALF, "19 queries and 19 keys: both must be even under a mask"),
        ("gpu", "cudnn", HALF | {"mask": None}, "compute capability 0.0: 8.0 is needed"),
    ],
)
def test_on_its_own_device_a_kernel_refuses_what_it_cannot_do(
    monkeypatch, backend, kernel, change, reason
):
    import dataclasses

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    request = dataclasses.replace(long_request(bias=False, mask="causal"), **change)
    with pytest.raises(InputError, match=reason):
        attention(request, kernel=kernel)
    np.testing.assert_array_equal(attention(request), KERNELS["dot"](request))


def test_splash_computes_whole_rows_and_other_kernels_read_caches():
    rng = np.random.default_rng(0)
    query, *kv = (jnp.asarray(rng.standard_normal((1, n, 2, 8)), jnp.float32) for n in (1, 6, 6))
    order = jnp.arange(6, dtype=jnp.int32)[None]
    mask = AttentionMask(q_order=jnp.array([[3]]), kv_order=order, causal=True)
    request = Request(query, KeyValues(*kv), mask=mask)
    result = attention(request, kernel="splash")
    np.testing.assert_array_equal(result, KERNELS["dot"](request))


# Rotary positions.


def test_rotary_dot_products_depend_on_the_distance_alone():
    query, key = (jnp.asarray(draw(seed, 1, 1, 1, 8)) for seed in (0, 1))

    def product(q_position, k_position):
        places = [jnp.full((1, 1), at, jnp.int32) for at in (q_position, k_position)]
        rotated = [rotate(x, at, RotarySpec()) for x, at in zip((query, key), places, strict=True)]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert product(5, 2) == pytest.approx(product(103, 100), abs=1e-4)
    assert abs(product(5, 2) - product(5, 3)) > 1e-2
    assert product(7, 7) == pytest.approx(float(jnp.sum(query * key)), abs=1e-5)


def test_rotary_rotates_pairs_by_their_frequencies():
    x = np.zeros((1, 2, 1, 4), np.float32)
    x[..., 0] = x[..., 1] = 1.0  # the first features of both pairs
    rotated = rotate(jnp.asarray(x), jnp.asarray([[0, 3]], jnp.int32), RotarySpec(theta=100.0))
    angles = 3 * np.array([1.0, 0.1])  # 100 ** (-0 / 2), 100 ** (-1 / 2)
    np.testing.assert_allclose(rotated[0, 0, 0], [1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rotated[0, 1, 0], [*np.cos(angles), *np.sin(angles)], atol=1e-6)


# Keys and values.


SIZE = 5  # slots


@pytest.mark.parametrize("length", [3, SIZE, 9])
def test_slots_hold_the_newest_tokens_of_each_row(length):
    """Filled with `length` tokens, of which rows keep different numbers, then appended to."""
    tokens = [draw(seed, 3, 16, 2, WIDTH) for seed in (0, 1)]
    valid = np.array([length, length - 2, 0], np.int32)
    slots = Slots(*(np.full((3, 2, SIZE, WIDTH), np.nan, np.float32) for _ in range(2)))
    slots = jax.jit(Slots.fill)(slots, KeyValues(*(item[:, :length] for item in tokens)), valid)
    ends = valid
    for n in (0, 1, 3):
        if n:
            places = ends[:, None] + np.arange(n, dtype=np.int32)
            new = [item[np.arange(3)[:, None], places] for item in tokens]
            slots, ends = jax.jit(Slots.append)(slots, KeyValues(*new), places), ends + n
        stored = np.asarray(slots.positions(jnp.asarray(ends - 1)))
        for row, end in enumerate(ends):
            expected = set(range(max(0, end - SIZE), end))
            assert {position for position in stored[row] if position >= 0} == expected
            for slot, position in enumerate(stored[row]):
                for result, item in zip((slots.key, slots.value), tokens, strict=True):
                    if position >= 0:
                        np.testing.assert_array_equal(result[row, :, slot], item[row, position])


def test_slots_keep_their_dtype():
    empty = jnp.zeros((1, 1, 2, 1), jnp.bfloat16)
    ones = jnp.ones((1, 1, 1, 1), jnp.float32)
    kv, position = KeyValues(ones, ones), jnp.zeros((1, 1), jnp.int32)
    for result in (
        Slots(empty, empty).append(kv, position),
        Slots(empty, empty).fill(kv, position[0]),
    ):
        assert (result.key.dtype, result.value.dtype) == (jnp.bfloat16, jnp.bfloat16)


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
        positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
        kv = self.attention.key_values(x, positions)
        return self.attention(x, kv, mask=mask, positions=positions)

    def through_a_cache(self, x, slots, places):
        slots = slots.append(self.attention.key_values(x, places), places)
        mask = AttentionMask.over_slots(places, slots)
        return self.attention(x, slots.read(), mask=mask, positions=places), slots


def test_biases_have_the_axis_names_of_the_projections_output():
    module = SelfAttention(AttentionSpec(4, 8, 2, use_bias=True))
    params = jax.eval_shape(module.init, jax.random.key(0), draw(0, BATCH, 5, EMBED))
    result = {
        name: (leaf["bias"].names, leaf["bias"].value.shape)
        for name, leaf in params["params"]["attention"].items()
    }
    assert result == {
        "query": (("heads", "kv"), (4, 8)),
        "key": (("heads", "kv"), (2, 8)),
        "value": (("heads", "kv"), (2, 8)),
        "output": (("embed",), (EMBED,)),
    }


@pytest.mark.parametrize(
    "spec",
    [AttentionSpec(4, 8), AttentionSpec(4, 8, 2, logits_scale=1.0)],
    ids=["plain", "grouped"],
)
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotary": RotarySpec()},
        {
            "rotary": RotarySpec(100.0, fraction=0.5, scaling=YarnScalingSpec(2.0, 8)),
            "window": 2,
            "logits_softcap": 1.0,
            "query_key_norm": RMSNormSpec(),
        },
    ],
    ids=["plain", "rotary", "all"],
)
def test_through_a_cache_token_by_token_it_is_the_causal_one(options):
    spec = AttentionSpec(4, 8, num_kv_heads=2, **options)
    module, x = SelfAttention(spec), jnp.asarray(draw(0, BATCH, 5, EMBED))
    rule = AttentionMask.within(jnp.ones((BATCH, 5), jnp.int32), causal=True)
    whole, params = jax.jit(module.init_with_output)(jax.random.key(0), x, rule)
    # Slots that hold nothing are never seen; in windows, few are enough.
    junk = jnp.asarray(draw(1, BATCH, 2, 7 if spec.window is None else spec.window + 1, 8)) * 100
    slots = Slots(junk, junk)
    step = jax.jit(lambda *arguments: module.apply(params, *arguments, method="through_a_cache"))
    for at in range(5):
        y, slots = step(x[:, at : at + 1], slots, jnp.full((BATCH, 1), at, jnp.int32))
        np.testing.assert_allclose(y[:, 0], whole[:, at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logits_scale", [None, 1.0])
def test_initial_logits_have_unit_variance_at_any_scale(logits_scale):
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
