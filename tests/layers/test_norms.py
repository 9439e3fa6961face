"""Norms against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.layers import LayerNormSpec, RMSNormSpec
from t5lite.layers.norms import RMSNorm, rms_norm

X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32) * 5 + 2
SCALE = np.linspace(-1, 2, 8, dtype=np.float32)


def reference(x, scale, epsilon):
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_it_is_the_formula_which_subtracts_no_mean(epsilon):
    y = rms_norm(jnp.asarray(X), jnp.asarray(SCALE), epsilon=epsilon)
    np.testing.assert_allclose(y, reference(X, SCALE, epsilon), rtol=2e-6)


def test_bfloat16_is_normed_in_float32():
    # Squares of these overflow float16 and lose all small terms in bfloat16.
    x = jnp.asarray(np.where(np.arange(1024) == 0, 300, 1.0), jnp.bfloat16)
    y = rms_norm(x, jnp.ones(1024), epsilon=1e-6)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, reference(x, 1.0, 1e-6), rtol=1e-5)


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient():
    y, gradient = jax.value_and_grad(lambda x: rms_norm(x, jnp.asarray(SCALE), epsilon=1e-6).sum())(
        jnp.zeros(8)
    )
    assert y == 0
    np.testing.assert_allclose(gradient, SCALE * 1e3, rtol=1e-5)  # 1 / sqrt(epsilon)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_initial_module_is_the_identity_on_unit_rows(dtype):
    module = RMSNorm(RMSNormSpec(), jnp.dtype(dtype))
    x = jnp.asarray(reference(X, 1.0, 0.0), dtype)
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert y.dtype == dtype
    np.testing.assert_allclose(*jax.tree.map(np.float32, (y, x)), rtol=1e-2)
    assert variables["params"]["scale"].names == ("embed",)
    assert variables["params"]["scale"].value.dtype == jnp.float32


@pytest.mark.parametrize("use_bias", [False, True])
def test_layer_norm_is_its_formula(use_bias):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 8)).astype(np.float32) * 5 + 3
    scale, bias = (rng.standard_normal(8).astype(np.float32) for _ in range(2))
    params = {"scale": scale} | ({"bias": bias} if use_bias else {})
    module = LayerNormSpec(1e-3, use_bias).make(jnp.dtype("float32"))
    out = module.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x))
    centred = x - x.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(out, expected + bias * use_bias, rtol=1e-4, atol=1e-5)
    names = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert {leaf.names for leaf in names.values()} == {("embed",)}
    assert set(names) == set(params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_unit_offset_is_added_to_the_parameter_in_float32(dtype):
    """1 + 2**-9 is 1 in bfloat16, in which a parameter may be."""
    scale = jnp.full(8, 2.0**-9, dtype)
    apply = RMSNormSpec(unit_offset=True).make(jnp.dtype("float32")).apply
    y = apply({"params": {"scale": scale}}, jnp.asarray(X))
    np.testing.assert_allclose(y, reference(X, 1 + 2.0**-9, 1e-6), rtol=1e-5)
    y = apply({"params": {"scale": jnp.asarray(SCALE)}}, jnp.asarray(X))
    np.testing.assert_allclose(y, reference(X, 1 + SCALE, 1e-6), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [RMSNormSpec(unit_offset=True), RMSNormSpec(), LayerNormSpec()])
def test_initial_scales_are_one_on_a_named_axis(spec):
    module = spec.make(jnp.dtype("float32"), axis="kv")
    y, variables = module.init_with_output(jax.random.key(0), jnp.asarray(X))
    centred = X - X.mean(axis=-1, keepdims=True) * isinstance(spec, LayerNormSpec)
    np.testing.assert_allclose(y, reference(centred, 1.0, spec.epsilon), rtol=1e-4, atol=1e-5)
    assert {leaf.names for leaf in variables["params"].values()} == {("kv",)}


def test_shapes_are_checked():
    with pytest.raises(TypeError, match="rms_norm"):
        rms_norm(jnp.ones((2, 3)), jnp.ones((4,)), epsilon=1e-6)
