"""A stack of layers, scanned: one compiled layer, parameters stacked along `layers`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5lite.layers import AttentionSpec, KeyValues, projection
from t5lite.models.block import BlockSpec, Context
from t5lite.models.spec import REMAT, ComputeSpec, StackSpec

# Keys and values of every layer: {"first": [per block], "layers": [per block of the pattern,
# stacked], "remainder": [per block]}, of which a stack has those that it has layers in.
StackKeyValues = dict[str, list[KeyValues]]


class Period(nn.Module):
    """Some blocks in a row: the repeating pattern, which is what one turn of the scan runs."""

    spec: StackSpec
    blocks: tuple[BlockSpec, ...]
    embed: int
    compute: ComputeSpec

    def setup(self) -> None:
        spec, bias = self.spec, self.spec.position_bias
        self.block = [
            block.make(
                self.embed,
                dtype=self.compute.jax_dtype,
                dropout_rate=spec.dropout_rate,
                causal=spec.causal,
                position_bias=bias if bias is not None and bias.per_layer else None,
                kernel=self.compute.attention,
            )
            for block in self.blocks
        ]

    def cross_key_values(self, carry: None, encoded: jax.Array) -> tuple[None, list[KeyValues]]:
        return carry, [block.cross_key_values(encoded) for block in self.block]

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cached: list[KeyValues] | None,
        cross: list[KeyValues] | None,
        drop_rates: list[jax.Array] | None,
    ) -> tuple[jax.Array, list[KeyValues | None]]:
        updated = []
        for index, block in enumerate(self.block):
            x, new = block(
                x,
                context,
                cached[index] if cached else None,
                cross[index] if cross else None,
                drop_rates[index] if drop_rates else None,
            )
            updated.append(new)
        return x, updated


class Stack(nn.Module):
    """Positions and the norm before the layers, all layers, and the norm after them."""

    spec: StackSpec
    embed: int
    embedding_size: int | None
    compute: ComputeSpec

    def setup(self) -> None:
        spec, compute = self.spec, self.compute
        embedding_size = self.embedding_size or self.embed
        bias = spec.position_bias
        if bias is not None and not bias.per_layer:
            num_heads = spec.blocks[0].attention.num_heads
            self.position_bias = bias.make(num_heads, bidirectional=not spec.causal)
        if spec.position_embedding is not None:
            self.position_embedding = spec.position_embedding.make(
                embedding_size, compute.jax_dtype
            )
        if spec.embedding_norm is not None:
            self.embedding_norm = spec.embedding_norm.make(compute.jax_dtype)

        if self.embedding_size is not None:
            self.embedding_projection = projection(
                ("embedding", "embed"), (self.embed,), dtype=compute.jax_dtype, use_bias=True
            )
        num_periods, rest = spec.num_periods, spec.blocks[: spec.num_rest]

        def period(*, scanned: bool) -> type[Period]:
            if compute.remat == "none":
                return Period
            # Inside a loop nothing can be merged with the forward pass, so no barrier is needed.
            return nn.remat(
                Period,
                policy=REMAT[compute.remat],
                prevent_cse=not scanned,
                methods=["__call__"],
            )

        parameters: dict[str, Any] = {
            "variable_axes": {"params": 0, "losses": 0},
            "split_rngs": {"params": True, "dropout": True},
            "metadata_params": {nn.PARTITION_NAME: "layers"},
        }
        if spec.shared_layers:
            parameters = {
                "variable_axes": {"losses": 0},
                "variable_broadcast": "params",
                "split_rngs": {"params": False, "dropout": True},
            }
        scan: Any = functools.partial(
            dict, length=num_periods, unroll=1 if compute.scan else num_periods, **parameters
        )
        if spec.first_blocks:
            self.first = period(scanned=False)(spec, spec.first_blocks, self.embed, compute)
        if num_periods:
            scanned = nn.scan(
                period(scanned=compute.scan),
                methods={
                    "__call__": scan(in_axes=(nn.broadcast, 0, 0, 0)),
                    "cross_key_values": scan(in_axes=(nn.broadcast,)),
                },
            )
            self.layers = scanned(spec, spec.blocks, self.embed, compute)
        if rest:
            self.remainder = period(scanned=False)(spec, rest, self.embed, compute)
        sizes = {"first": len(spec.first_blocks), "layers": num_periods, "remainder": len(rest)}
        self.parts = [name for name, size in sizes.items() if size]
        if spec.final_norm is not None:
            self.final_norm = spec.final_norm.make(compute.jax_dtype)
        self.dropout = nn.Dropout(spec.dropout_rate)

    def cross_key_values(self, encoded: jax.Array) -> StackKeyValues:
        """Projects the encoder's output for every layer."""
        return {name: getattr(self, name).cross_key_values(None, encoded)[1] for name in self.parts}

    def empty_key_values(self, batch: int, max_length: int) -> StackKeyValues:
        """Returns room for `max_length` tokens a row in every layer."""

        def room(attention: AttentionSpec, leading: tuple[int, ...]) -> KeyValues:
            shape = (*leading, batch, max_length, attention.kv_heads, attention.head_dim)
            zeros = jnp.zeros(shape, self.compute.jax_dtype)
            return KeyValues(zeros, zeros)

        spec = self.spec
        empty = {
            "first": [room(block.attention, ()) for block in spec.first_blocks],
            "layers": [room(block.attention, (spec.num_periods,)) for block in spec.blocks],
            "remainder": [room(block.attention, ()) for block in spec.blocks[: spec.num_rest]],
        }
        return {name: empty[name] for name in self.parts}

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        *,
        cached: StackKeyValues | None = None,
        cross: StackKeyValues | None = None,
    ) -> tuple[jax.Array, StackKeyValues | None]:
        """Runs all layers.

        Args:
          x: `[batch, length, embed]` (or `embedding_size`) embedded tokens.
          context: masks and whatever else the layers share; its bias is filled in here.
          cached: keys and values of the tokens before `x`, in `kv_length` slots.
          cross: the encoder's keys and values.

        Returns:
          `[batch, length, embed]` normed, and `cached` with those of `x` appended.
        """
        bias = self.spec.position_bias
        if bias is not None and not bias.per_layer:
            kv_length = x.shape[1] if cached is None else slots_of(cached)
            bias_array = self.position_bias(context.slots, x.shape[1], kv_length)
            context = context.replace(bias=bias_array)
        deterministic = not self.has_rng("dropout")
        x = self.dropout(self._embedded(x, context.positions), deterministic=deterministic)
        if self.embedding_size is not None:
            x = self.embedding_projection(x)
        drop_rates = self._drop_rates()
        updated: StackKeyValues = {}
        for name in self.parts:
            own = [None if tree is None else tree[name] for tree in (cached, cross, drop_rates)]
            x, updated[name] = getattr(self, name)(x, context, *own)
        if self.spec.final_norm is not None:
            x = self.dropout(self.final_norm(x), deterministic=deterministic)
        return x, None if cached is None else updated

    def _embedded(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns token embeddings with their positions, normed."""
        spec = self.spec
        if spec.embedding_scale != 1.0:
            x = x * jnp.asarray(spec.embedding_scale, x.dtype)
        if spec.position_embedding is not None:
            x = x + jnp.broadcast_to(self.position_embedding(positions), x.shape)
        return x if spec.embedding_norm is None else self.embedding_norm(x)

    def _drop_rates(self) -> dict[str, list[jax.Array]] | None:
        """Returns stochastic depth's rate of every layer, laid out as keys and values are."""
        spec = self.spec
        if not spec.stochastic_depth_rate:
            return None
        depth = np.arange(1, spec.num_layers + 1, dtype=np.float32) / spec.num_layers
        rates = jnp.asarray(np.float32(spec.stochastic_depth_rate) * depth)
        pattern, first = len(spec.blocks), len(spec.first_blocks)
        rest = first + spec.num_periods * pattern
        periods = rates[first:rest].reshape(spec.num_periods, pattern)
        return {
            "first": list(rates[:first]),
            "layers": [periods[:, block] for block in range(pattern)],
            "remainder": list(rates[rest:]),
        }


def slots_of(keys_and_values: StackKeyValues) -> int:
    """Returns how many tokens a row a stack's keys and values have room for."""
    return jax.tree.leaves(keys_and_values)[0].shape[-3]
