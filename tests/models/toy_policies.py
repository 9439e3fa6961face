"""An adapter and a storage of a user's own: low-rank updates, and int8 with a scale per feature."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from t5lite.layers import AdapterSpec, Leaf, StorageSpec, product


@dataclasses.dataclass(frozen=True)
class ToyLowRankSpec(AdapterSpec):
    """y = Wx + B A x; B starts at 0. Source: Hu et al. 2021, arXiv:2106.09685, §4.1."""

    rank: int = 2

    def leaves(self, matrix):
        shape, axes, n = matrix
        a = (*shape[:n], self.rank), (*axes[:n], "rank")
        b = (self.rank, *shape[n:]), ("rank", *axes[n:])
        return {
            "low_rank_a": Leaf(*a, jax.nn.initializers.normal(0.1)),
            "low_rank_b": Leaf(*b, jax.nn.initializers.zeros),
        }

    def flops(self, matrix):
        shape, _, n = matrix
        return 2 * self.rank * (math.prod(shape[:n]) + math.prod(shape[n:]))

    def apply(self, leaves, x, inner, affine):
        a, b = leaves["low_rank_a"], leaves["low_rank_b"]
        inside = product(x, a, num_contracted=a.ndim - 1, dtype=x.dtype)
        y = inner(x)
        return y + product(inside, b, dtype=y.dtype)

    def lookup(self, leaves, ids, inner):
        y = inner(ids)
        return y + (leaves["low_rank_a"][ids] @ leaves["low_rank_b"]).astype(y.dtype)

    def attend(self, leaves, x, inner):
        inside = jnp.einsum("ble,re->blr", x.astype(jnp.float32), leaves["low_rank_b"])
        return inner(x) + jnp.einsum("blr,vr->blv", inside, leaves["low_rank_a"])


@dataclasses.dataclass(frozen=True)
class ToyInt8Spec(StorageSpec):
    """Rounded to int8, with a float32 scale for each feature."""

    def encode(self, matrix, contracted):
        scale = jnp.max(jnp.abs(matrix), axis=contracted, keepdims=True) / jnp.float32(127)
        values = jnp.round(matrix / jnp.broadcast_to(scale, matrix.shape)).astype(jnp.int8)
        return {"values": values, "scale": scale}

    def axes(self, axes, contracted):
        at = {len(axes) + axis for axis in contracted}
        return {
            "values": axes,
            "scale": tuple(None if i in at else axis for i, axis in enumerate(axes)),
        }

    def decode(self, leaves, dtype):
        values = leaves["values"].astype(jnp.float32)
        return (values * jnp.broadcast_to(leaves["scale"], values.shape)).astype(dtype)
