"""A stack of layers, scanned: one compiled layer, parameters stacked along `layers`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5lite.layers import AttentionSpec, KeyValues
from t5lite.models.block import Context
from t5lite.models.spec import REMAT, ComputeSpec, StackSpec

# Keys and values of every layer: {"layers": [per block of the pattern, stacked], "remainder": …}.
StackKeyValues = dict[str, list[KeyValues]]


class Period(nn.Module):
    """The repeating pattern of blocks: what one turn of the scan runs."""

    spec: StackSpec
    embed: int
    compute: ComputeSpec
    num_blocks: int

    def setup(self) -> None:
        spec, bias = self.spec, self.spec.relative_bias
        self.block = [
            block.make(
                self.embed,
                dtype=self.compute.jax_dtype,
                dropout_rate=spec.dropout_rate,
                causal=spec.causal,
                relative_bias=bias if bias is not None and bias.per_layer else None,
            )
            for block in spec.blocks[: self.num_blocks]
        ]

    def cross_key_values(self, carry: None, encoded: jax.Array) -> tuple[None, list[KeyValues]]:
        return carry, [block.cross_key_values(encoded) for block in self.block]

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cached: list[KeyValues] | None,
        cross: list[KeyValues] | None,
    ) -> tuple[jax.Array, list[KeyValues | None]]:
        nothing = [None] * self.num_blocks
        updated = []
        for block, *own in zip(self.block, cached or nothing, cross or nothing, strict=True):
            x, new = block(x, context, *own)
            updated.append(new)
        return x, updated


class Stack(nn.Module):
    """The shared position bias, all layers, and the norm after them."""

    spec: StackSpec
    embed: int
    compute: ComputeSpec

    def setup(self) -> None:
        spec, compute = self.spec, self.compute
        bias = spec.relative_bias
        if bias is not None and not bias.per_layer:
            num_heads = spec.blocks[0].attention.num_heads
            self.relative_bias = bias.make(num_heads, bidirectional=not spec.causal)

        num_periods, rest = divmod(spec.num_layers, len(spec.blocks))

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

        scan: Any = functools.partial(
            dict,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=num_periods,
            unroll=1 if compute.scan else num_periods,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if num_periods:
            scanned = nn.scan(
                period(scanned=compute.scan),
                methods={
                    "__call__": scan(in_axes=(nn.broadcast, 0, 0)),
                    "cross_key_values": scan(in_axes=(nn.broadcast,)),
                },
            )
            self.layers = scanned(spec, self.embed, compute, len(spec.blocks))
        if rest:
            self.remainder = period(scanned=False)(spec, self.embed, compute, rest)
        self.parts = [name for name, n in (("layers", num_periods), ("remainder", rest)) if n]
        self.num_periods = num_periods
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

        blocks = self.spec.blocks
        rest = blocks[: self.spec.num_layers % len(blocks)]
        empty = {
            "layers": [room(block.attention, (self.num_periods,)) for block in blocks],
            "remainder": [room(block.attention, ()) for block in rest],
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
          x: `[batch, length, embed]` embedded tokens.
          context: masks and whatever else the layers share; its bias is filled in here.
          cached: keys and values of the tokens before `x`, in `kv_length` slots.
          cross: the encoder's keys and values.

        Returns:
          `[batch, length, embed]` normed, and `cached` with those of `x` appended.
        """
        bias = self.spec.relative_bias
        if bias is not None and not bias.per_layer:
            kv_length = context.mask.shape[-1]
            bias_array = self.relative_bias(context.positions, x.shape[1], kv_length)
            context = context.replace(bias=bias_array)
        deterministic = not self.has_rng("dropout")
        x = self.dropout(x, deterministic=deterministic)
        updated: StackKeyValues = {}
        for name in self.parts:
            own = [None if tree is None else tree[name] for tree in (cached, cross)]
            x, updated[name] = getattr(self, name)(x, context, *own)
        x = self.dropout(self.final_norm(x), deterministic=deterministic)
        return x, None if cached is None else updated
