"""The seam of adapters carries published ones, with the numbers that PEFT computes for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.layers import AdapterSpec, Leaf, Projection, Weights, product

KERNEL = jnp.asarray([[1, 3, 0], [2, 4, -1]], jnp.float32)  # [in, out]
BIAS, X = jnp.asarray([0.1, 0.2, 0.3]), jnp.asarray([[[2.0, 1.0]]])
A, B = jnp.asarray([[1.0], [-1.0]]), jnp.asarray([[0.5, 1.0, -2.0]])
ONES = jax.nn.initializers.ones


@dataclasses.dataclass(frozen=True)
class _LoraSpec(AdapterSpec):
    alpha: float = 2.0
    rate: float = 0.0

    def leaves(self, matrix):
        (size, features), (inputs, outputs), _ = matrix
        return {
            "a": Leaf((size, 1), (inputs, "rank"), ONES),
            "b": Leaf((1, features), ("rank", outputs), ONES),
        }

    def apply(self, leaves, x, inner, affine):
        dropped = x
        if affine.dropout_key is not None:
            mask = jax.random.bernoulli(affine.dropout_key(), 1 - self.rate, x.shape)
            dropped = jnp.where(mask, x, jnp.float32(0))
        inside = product(dropped, leaves["a"], dtype=x.dtype)
        return inner(x) + jnp.float32(self.alpha) * product(inside, leaves["b"], dtype=x.dtype)


@dataclasses.dataclass(frozen=True)
class _DoraSpec(_LoraSpec):
    def leaves(self, matrix):
        magnitude = Leaf(matrix.shape[1:], matrix.axes[1:], ONES)
        return super().leaves(matrix) | {"magnitude": magnitude}

    def apply(self, leaves, x, inner, affine):
        updated = affine.kernel + jnp.float32(self.alpha) * leaves["a"] @ leaves["b"]
        norm = jnp.linalg.norm(jax.lax.stop_gradient(updated), axis=0)
        scaled = updated * (leaves["magnitude"] / norm)[None]
        return product(x, scaled, dtype=x.dtype) + affine.bias[None, None]


@dataclasses.dataclass(frozen=True)
class _Ia3Spec(AdapterSpec):
    feedforward: bool = False

    def leaves(self, matrix):
        side = slice(0, 1) if self.feedforward else slice(1, None)
        return {"l": Leaf(matrix.shape[side], matrix.axes[side], ONES)}

    def apply(self, leaves, x, inner, affine):
        scale = leaves["l"][None, None]
        return inner(x * scale) if self.feedforward else inner(x) * scale


def project(adapter, leaves, **options):
    layer = Projection(("embed", "mlp"), (3,), Weights(adapters=(adapter,)), X.dtype, use_bias=True)
    params = {"kernel": KERNEL, "bias": BIAS} | leaves
    drawn = jax.eval_shape(layer.init, jax.random.key(0), X)["params"]
    assert drawn.keys() == params.keys()
    return layer.apply({"params": params}, X, **options)[0, 0]


@pytest.mark.parametrize(
    ("adapter", "leaves", "expected"),
    [
        (_LoraSpec("kernel"), {"a": A, "b": B}, (5.1, 12.2, -4.7)),
        (
            _DoraSpec("kernel"),
            {"a": A, "b": B, "magnitude": jnp.asarray([2.0, 5.0, 1.0])},
            (4.572136, 11.341720, -0.7),
        ),
        (_Ia3Spec("kernel"), {"l": jnp.asarray([2.0, 0.5, -1.0])}, (8.2, 5.1, 0.7)),
        (_Ia3Spec("kernel", True), {"l": jnp.asarray([2.0, 0.5])}, (5.1, 14.2, -0.2)),
    ],
)
def test_it_is_the_published_formula(adapter, leaves, expected):
    np.testing.assert_allclose(project(adapter, leaves), expected, rtol=1e-5)


def test_two_adapters_of_one_matrix_are_applied_one_after_the_other():
    lora, scale = _LoraSpec("kernel"), _Ia3Spec("kernel")
    layer = Projection(("embed", "mlp"), (3,), Weights(adapters=(lora, scale)), X.dtype)
    l = jnp.asarray([2.0, 0.5, -1.0])  # noqa: E741 - the paper's name
    params = {"kernel": KERNEL, "a": A, "b": B, "l": l}
    y = layer.apply({"params": params}, X)[0, 0]
    np.testing.assert_allclose(y, np.asarray([5.0, 12.0, -5.0]) * np.asarray(l), rtol=1e-6)


def test_dropout_of_an_adapter_has_a_key_in_training_alone():
    adapter, leaves = _LoraSpec("kernel", rate=0.5), {"a": A, "b": B}
    outputs = {
        tuple(np.asarray(project(adapter, leaves, rngs={"dropout": jax.random.key(seed)})).tolist())
        for seed in range(6)
    }
    assert len(outputs) > 1
    np.testing.assert_allclose(project(adapter, leaves), (5.1, 12.2, -4.7), rtol=1e-6)
