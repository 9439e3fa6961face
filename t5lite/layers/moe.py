"""Mixtures of experts: a router sends each token to a few of many feed-forward layers.

Tokens are gathered into a fixed number of slots per expert and row, without one-hot matrices.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from t5lite.layers.mlp import Mlp, MlpSpec
from t5lite.layers.projection import Projection
from t5lite.layers.spec import Spec, positive
from t5lite.layers.weights import Weights


@dataclasses.dataclass(frozen=True)
class MoeSpec(Spec):
    """Experts and their router; the defaults train as ST-MoE does, but for `top_k` = 2 there.

    An expert takes `capacity` tokens of a row, or capacity_factor * top_k * length / num_experts of
    them, rounded up. Further tokens are dropped: the layer's output is 0, and only the residual
    connection carries them. First choices come before second ones, then tokens in their order, so
    that with `top_k` = 1 no token depends on later ones. **With more it does**: a later token's
    first choice can take the slot of an earlier one's second, so that a decoder that drops tokens
    sees ahead. Decoding with a cache counts the tokens of one call: single tokens are never
    dropped. Texts packed into a row share its experts' slots.

    With neither, every expert has room for a whole row: nothing is dropped, at the time and memory
    of `num_experts` dense layers instead of `top_k`. Meant for decoding and for small models.

    Padding takes slots like any token and counts in the auxiliary losses (as in transformers). At
    the end of a row it comes last, and so drops no token's first choice.

    Args:
      expert: the architecture of every expert.
      top_k: experts of a token.
      capacity_factor: slots of an expert, as a multiple of an even share; None: see `capacity`.
      capacity: slots of an expert for each row; None: see `capacity_factor`.
      normalize_weights: whether a token's probabilities are divided by their sum (GShard, ST-MoE,
        Mixtral) before they weigh the experts' outputs; not for `top_k` = 1, where nothing would
        train the router.
      balance_coefficient: of the load-balancing loss; 0.01 in Switch, §2.2, and in ST-MoE.
      router_z_coefficient: of the router's z-loss; 0.001 in ST-MoE, §3.3, absent from Switch.
      router_jitter_rate: in training, the router's input is multiplied by noise in [1 - rate, 1 +
        rate]; 0.01 in Switch as transformers has it.
    Source: Fedus et al. 2021, Switch, arXiv:2101.03961, §2.1, §2.2 and appendix C (jitter); Zoph et
    al. 2022, ST-MoE, arXiv:2202.08906, §3.3; Lepikhin et al. 2020, GShard, arXiv:2006.16668, §2.2
    and algorithm 1 (first choices before second ones; without its random choice of the second).
    """

    expert: MlpSpec
    num_experts: int
    top_k: int = positive(1)
    capacity_factor: float | None = None
    capacity: int | None = positive(None)
    normalize_weights: bool = False
    balance_coefficient: float = 0.01
    router_z_coefficient: float = 0.001
    router_jitter_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.top_k <= self.num_experts, "top_k", "at most num_experts")
        factor = self.capacity_factor
        self.require(factor is None or 0 < factor < math.inf, "capacity_factor", "above 0")
        both = factor is not None and self.capacity is not None
        self.require(not both, "capacity", "None with a capacity_factor")
        expected = (
            "False with top_k = 1: all weights would be 1, and nothing would train the router"
        )
        self.require(not self.normalize_weights or self.top_k > 1, "normalize_weights", expected)
        for field in ("balance_coefficient", "router_z_coefficient"):
            self.require(0 <= getattr(self, field) < math.inf, field, "at least 0")

    def flops(self, embed: int, length: int) -> int:
        """Returns multiply-adds × 2 of the matrix products over one row of `length` tokens."""
        router = 2 * length * embed * self.num_experts
        return router + self.expert.flops(embed, self.num_experts * self.slots(length))

    def slots(self, length: int) -> int:
        """Returns an expert's capacity in tokens for a row of `length`."""
        if self.capacity_factor is not None:
            slots = math.ceil(self.capacity_factor * self.top_k * length / self.num_experts)
        else:
            slots = length if self.capacity is None else self.capacity
        return min(slots, length)  # no token is sent to the same expert twice

    def make(self, embed: int, **options: Any) -> "Moe":
        """Returns the module for inputs of width `embed`; options are the other fields of `Moe`."""
        return Moe(self, embed, **options)


class Moe(nn.Module):
    """Maps `[batch, length, embed]` to the same shape; dropout is the experts'. Sows
    `load_balancing` and `router_z`, float32 scalars times their coefficients, into `losses` if it
    is mutable."""

    spec: MoeSpec
    embed: int
    dtype: jnp.dtype
    dropout_rate: float
    weights: Weights = Weights()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length {self.embed}"]
    ) -> Float[Array, "batch length {self.embed}"]:
        spec = self.spec
        batch, length, _ = x.shape
        logits = self._router_logits(x)
        probabilities = jax.nn.softmax(logits)
        chosen, weights = choose(probabilities, spec.top_k, normalize=spec.normalize_weights)
        self._sow("load_balancing", spec.balance_coefficient, load_balancing(probabilities, chosen))
        self._sow("router_z", spec.router_z_coefficient, router_z(logits))

        num_slots = spec.slots(length)
        slot_of_token = assign(chosen, num_slots)  # [batch, top_k * length]
        token_of_slot = invert(slot_of_token, spec.num_experts * num_slots)
        # Gathers stay on the row's device, [batch, experts * slots, embed]; what the experts read
        # and write is exchanged between devices.
        rows = ("batch", None, "embed")
        dispatched = move(jnp.tile(x, (1, spec.top_k, 1)), token_of_slot, slot_of_token)
        dispatched = nn.with_logical_constraint(dispatched, rows)
        shape = batch, spec.num_experts, num_slots, self.embed
        outputs = self._run_experts(dispatched.reshape(shape).swapaxes(0, 1)).swapaxes(0, 1)
        outputs = nn.with_logical_constraint(outputs.reshape(dispatched.shape), rows)
        combined = move(outputs, slot_of_token, token_of_slot)
        combined = combined.reshape(batch, spec.top_k, length, self.embed)
        y = jnp.sum(combined.astype(jnp.float32) * weights[..., None], axis=1)
        return y.astype(self.dtype)

    def _router_logits(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, length, experts]`, in float32 throughout (Switch, §2.4)."""
        spec = self.spec
        x = x.astype(jnp.float32)
        if spec.router_jitter_rate and self.has_rng("dropout"):
            low, high = 1 - spec.router_jitter_rate, 1 + spec.router_jitter_rate
            key = self.make_rng("dropout")
            x = x * jax.random.uniform(key, x.shape, minval=low, maxval=high)
        router = Projection(
            ("embed", "experts"),
            (spec.num_experts,),
            dtype=jnp.dtype("float32"),
            weights=self.weights,
            role="router",
            # Rounding factors to bfloat16 or TF32 would route tokens otherwise than on a CPU.
            precision=jax.lax.Precision.HIGHEST,
            name="router",
        )
        return nn.with_logical_constraint(router(x), ("batch", "length", None))

    def _run_experts(self, x: jax.Array) -> jax.Array:
        """Returns the experts' outputs for `[experts, batch, slots, embed]`, in the same shape."""
        names = ("experts", "batch", None, "embed")
        x = nn.with_logical_constraint(x, names)
        with _rules_beside_experts() as axis:
            experts: Any = nn.vmap(
                Mlp,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                metadata_params={nn.PARTITION_NAME: "experts"},
                axis_size=self.spec.num_experts,
                spmd_axis_name=axis,
            )
            fields = self.spec.expert, self.embed, self.dtype, self.dropout_rate, self.weights
            x = experts(*fields, name="experts")(x)
        return nn.with_logical_constraint(x, names)

    def _sow(self, name: str, coefficient: float, value: jax.Array) -> None:
        # One scalar rather than Flax's tuple, summed over several calls of a module.
        value, zero = jnp.float32(coefficient) * value, jnp.float32(0)
        self.sow("losses", name, value, reduce_fn=jnp.add, init_fn=lambda: zero)


def choose(
    probabilities: Float32[Array, "batch length experts"], top_k: int, *, normalize: bool
) -> tuple[Bool[Array, "batch {top_k} length experts"], Float32[Array, "batch {top_k} length"]]:
    """Returns each token's experts, best first, and their weights; `normalize`: with sum 1."""
    remaining, chosen = probabilities, []
    for _ in range(top_k):
        # Comparisons and reductions alone split along any axis, where a top-k would not.
        best = jnp.argmax(remaining, axis=-1)
        chosen.append(jax.nn.one_hot(best, remaining.shape[-1], dtype=bool))
        remaining = jnp.where(chosen[-1], jnp.float32(-1), remaining)
    masks = jnp.stack(chosen, axis=1)
    weights = jnp.sum(jnp.where(masks, probabilities[:, None], 0.0), axis=-1)
    if normalize:
        weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return masks, weights


def assign(
    chosen: Bool[Array, "batch top_k length experts"], num_slots: int
) -> Int32[Array, "batch top_k*length"]:
    """Returns the slot of each choice: first choices before second ones, then in token order.

    Slot s of expert e is e * num_slots + s; a dropped token has experts * num_slots.
    """
    batch, top_k, length, num_experts = chosen.shape
    chosen = chosen.reshape(batch, top_k * length, num_experts)
    before = jnp.cumsum(chosen.astype(jnp.int32), axis=1) - 1
    slot = jnp.sum(jnp.where(chosen, before, 0), axis=-1)
    expert = jnp.argmax(chosen, axis=-1).astype(jnp.int32)
    return jnp.where(slot < num_slots, expert * num_slots + slot, num_experts * num_slots)


def invert(
    slot_of_token: Int32[Array, "batch n"], num_slots: int
) -> Int32[Array, "batch {num_slots}"]:
    """Returns the token in each slot, n for an empty one; a row uses each slot at most once."""
    tokens = jnp.arange(slot_of_token.shape[1], dtype=jnp.int32)

    def invert_row(slots: jax.Array) -> jax.Array:
        empty = jnp.full((num_slots,), tokens.size, jnp.int32)
        return empty.at[slots].set(tokens, mode="drop")

    return jax.vmap(invert_row)(slot_of_token)


@jax.custom_vjp
def move(
    x: Float[Array, "batch n embed"],
    sources: Int32[Array, "batch m"],
    targets: Int32[Array, "batch n"],
) -> Float[Array, "batch m embed"]:
    """Gathers vectors within each row; zeros where the source is n.

    Its derivative is the inverse gather, by `targets` (m for none): faster than the scatter that
    JAX would derive, and deterministic.
    """
    del targets
    return jnp.take_along_axis(x, sources[..., None], axis=1, mode="fill", fill_value=0)


def _move_forward(
    x: jax.Array, sources: jax.Array, targets: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return move(x, sources, targets), (sources, targets)


def _move_backward(
    maps: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    sources, targets = maps
    return move(gradient, targets, sources), None, None


move.defvjp(_move_forward, _move_backward)


def load_balancing(
    probabilities: Float32[Array, "batch length experts"],
    chosen: Bool[Array, "batch top_k length experts"],
) -> Float32[Array, ""]:
    """Returns the load-balancing loss of all tokens: 1 if all experts are used equally.

    It is num_experts * Σ f_i P_i, where P_i is the mean probability of expert i and f_i its share
    of all `top_k` choices before any are dropped, as in Flaxformer; GShard and ST-MoE count the
    first ones. The mean of microbatches differs slightly from the whole batch's loss.

    Source: Fedus et al. 2021, arXiv:2101.03961, §2.2, equations 4 to 6.
    """
    used = jnp.mean(chosen.astype(jnp.float32), axis=(0, 1, 2))
    return probabilities.shape[-1] * jnp.sum(used * jnp.mean(probabilities, axis=(0, 1)))


def router_z(logits: Float32[Array, "batch length experts"]) -> Float32[Array, ""]:
    """Returns the mean over tokens of the squared log of the softmax's normaliser.

    Source: Zoph et al. 2022, arXiv:2202.08906, §3.3, equation 5.
    """
    return jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)))


@contextmanager
def _rules_beside_experts() -> Iterator[Any]:
    """Reserves the experts' mesh axes for them alone; yields those axes.

    Inside an expert `batch` is sharded over the batch's other axes, and its slots, `length`, over
    none. XLA sums gradients: a `vmap` over the experts' axes admits no `shard_map` over others.
    """
    rules = nn.get_logical_axis_rules()
    experts, batch = nn.logical_to_mesh_axes(("experts", "batch"), rules) or (None, None)
    remaining = [
        (name, None if name.startswith("gradient/") else axes)
        for name, axes in rules
        if name not in ("batch", "length")
    ]
    inner = [("batch", batch), ("length", None), *remaining] if rules else rules
    with nn.logical_axis_rules(inner):
        yield experts
