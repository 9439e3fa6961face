"""Feed-forward layers against numpy."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.layers import ACTIVATIONS, MlpSpec

EMBED, HIDDEN = 6, 10
X = np.random.default_rng(0).standard_normal((2, 3, EMBED)).astype(np.float32)


def kernel(seed, *shape):
    return {"kernel": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


PARAMS = {
    "up": kernel(1, EMBED, HIDDEN),
    "gate": kernel(2, EMBED, HIDDEN),
    "down": kernel(3, HIDDEN, EMBED),
}
# As published, in float64: Hendrycks and Gimpel 2016, arXiv:1606.08415.
REFERENCES = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def make(activation="relu", *, gated=False, dtype="float32", dropout_rate=0.0):
    spec = MlpSpec(HIDDEN, activation, gated=gated)
    return spec.make(EMBED, dtype=jnp.dtype(dtype), dropout_rate=dropout_rate)


def params(gated):
    return {"params": {name: PARAMS[name] for name in PARAMS if gated or name != "gate"}}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_formula(activation, gated):
    x = np.float64(X)
    up, gate, down = (np.float64(PARAMS[name]["kernel"]) for name in ("up", "gate", "down"))
    fn = REFERENCES[activation]
    hidden = fn(x @ gate) * (x @ up) if gated else fn(x @ up)
    y = make(activation, gated=gated).apply(params(gated), X)
    np.testing.assert_allclose(y, hidden @ down, rtol=1e-4, atol=1e-4)


def test_parameters_have_names_and_are_float32_whatever_the_compute_dtype():
    module = make("silu", gated=True, dtype="bfloat16")
    y, variables = module.init_with_output(jax.random.key(0), X)
    assert y.dtype == jnp.bfloat16
    actual = {name: leaf["kernel"].names for name, leaf in variables["params"].items()}
    into, out = ("embed", "mlp"), ("mlp", "embed")
    assert actual == {"up": into, "gate": into, "down": out}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_dropout_takes_hidden_features_out_and_scales_the_others():
    # With as many outputs as hidden features and an identity, they can be seen.
    spec = MlpSpec(64)
    module = spec.make(64, dtype=jnp.dtype("float32"), dropout_rate=0.25)
    eye = {"kernel": np.eye(64, dtype=np.float32)}
    ones = np.ones((4, 8, 64), np.float32)
    variables = {"params": {"up": eye, "down": eye}}
    np.testing.assert_array_equal(module.apply(variables, ones), 1)
    y = np.asarray(module.apply(variables, ones, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.04)


def test_names_in_it_are_those_of_the_layout(monkeypatch):
    seen = []
    monkeypatch.setattr(nn, "with_logical_constraint", lambda x, names: seen.append(names) or x)
    make().apply(params(gated=False), X)
    assert ("batch", "length", "mlp") in seen
