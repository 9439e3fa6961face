"""A stack of layers, scanned: one compiled layer, parameters stacked along `layers`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5lite.layers import AttentionSpec, Initializers, Slots, broadcast, projection
from t5lite.models.block import BlockSpec, Context
from t5lite.models.remat import POLICIES
from t5lite.models.spec import ComputeSpec, StackSpec

# Keys and values of every layer: {"first": [per block], "layers": [per block of the pattern,
# stacked], "remainder": [per block]}, of which a stack has those that it has layers in. Where
# layers are not stacked, "layers_0", "layers_1", … hold what "layers" does.
StackSlots = dict[str, list[Slots]]


class Period(nn.Module):
    """Some blocks in a row: the repeating pattern, which is what one turn of the scan runs."""

    spec: StackSpec
    blocks: tuple[BlockSpec, ...]
    embed: int
    compute: ComputeSpec
    init_: Initializers

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
                init=self.init_,
            )
            for block in self.blocks
        ]

    def cross_slots(self, carry: None, encoded: jax.Array) -> tuple[None, list[Slots]]:
        return carry, [block.cross_slots(encoded) for block in self.block]

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cached: list[Slots] | None,
        cross: list[Slots] | None,
        drop_rates: list[jax.Array] | None,
    ) -> tuple[jax.Array, list[Slots | None]]:
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
    """Positions and the norm before the layers, all layers, and the norm after them.

    Not `stacked`, each layer has parameters of its own: `layers_0` is the first slice of `layers`.
    """

    spec: StackSpec
    embed: int
    embedding_size: int | None
    compute: ComputeSpec
    stacked: bool = True
    init_: Initializers = Initializers()

    def setup(self) -> None:
        spec, compute = self.spec, self.compute
        embedding_size = self.embedding_size or self.embed
        bias = spec.position_bias
        if bias is not None and not bias.per_layer:
            num_heads = spec.blocks[0].attention.num_heads
            self.position_bias = bias.make(num_heads, bidirectional=not spec.causal)
        if spec.position_embedding is not None:
            self.position_embedding = spec.position_embedding.make(
                embedding_size, compute.jax_dtype, self.init_
            )
        if spec.embedding_norm is not None:
            self.embedding_norm = spec.embedding_norm.make(compute.jax_dtype)

        if self.embedding_size is not None:
            self.embedding_projection = projection(
                ("embedding", "embed"),
                (self.embed,),
                dtype=compute.jax_dtype,
                use_bias=True,
                init=self.init_.kernel("dense"),
            )
        num_periods, rest = spec.num_periods, spec.blocks[: spec.num_rest]

        def period(*, scanned: bool) -> type[Period]:
            if compute.remat == "none":
                return Period
            # Inside a loop nothing can be merged with the forward pass, so no barrier is needed.
            return nn.remat(
                Period,
                policy=POLICIES[compute.remat],
                prevent_cse=not scanned,
                methods=["__call__"],
            )

        parameters: dict[str, Any] = {
            "variable_axes": {"params": 0, "losses": 0, "intermediates": 0},
            "split_rngs": {"params": True, "dropout": True},
            "metadata_params": {nn.PARTITION_NAME: "layers"},
        }
        if spec.shared_layers:
            parameters = {
                "variable_axes": {"losses": 0, "intermediates": 0},
                "variable_broadcast": "params",
                "split_rngs": {"params": False, "dropout": True},
            }
        scan: Any = functools.partial(
            dict, length=num_periods, unroll=1 if compute.scan else num_periods, **parameters
        )
        parts: dict[str, Any] = {}  # in order
        if spec.first_blocks:
            self.first = period(scanned=False)(
                spec, spec.first_blocks, self.embed, compute, self.init_
            )
            parts["first"] = self.first
        if num_periods and self.stacked:
            scanned = nn.scan(
                period(scanned=compute.scan),
                methods={
                    "__call__": scan(in_axes=(nn.broadcast, 0, 0, 0)),
                    "cross_slots": scan(in_axes=(nn.broadcast,)),
                },
            )
            self.layers = scanned(spec, spec.blocks, self.embed, compute, self.init_)
            parts["layers"] = self.layers
        elif num_periods and spec.shared_layers:
            self.layers = period(scanned=False)(spec, spec.blocks, self.embed, compute, self.init_)
            parts |= {f"layers_{turn}": self.layers for turn in range(num_periods)}
        elif num_periods:
            one = period(scanned=False)
            layers = [
                one(spec, spec.blocks, self.embed, compute, self.init_) for _ in range(num_periods)
            ]
            self.layers = layers  # type: ignore[assignment]
            parts |= {f"layers_{turn}": layer for turn, layer in enumerate(self.layers)}
        if rest:
            self.remainder = period(scanned=False)(spec, rest, self.embed, compute, self.init_)
            parts["remainder"] = self.remainder
        self.parts = parts
        if spec.final_norm is not None:
            self.final_norm = spec.final_norm.make(compute.jax_dtype)
        self.dropout = nn.Dropout(spec.dropout_rate)

    def cross_slots(self, encoded: jax.Array) -> StackSlots:
        """Projects the encoder's output for every layer."""
        return {name: part.cross_slots(None, encoded)[1] for name, part in self.parts.items()}

    def empty_slots(self, batch: int, max_length: int, draft_length: int) -> StackSlots:
        """Returns room for `max_length` tokens a row in every layer.

        A layer that sees a window has no more than it can see, and than `draft_length` further
        tokens can take from it; with a position bias, which goes by slots, it has all.
        """
        spec = self.spec

        def room(attention: AttentionSpec, leading: tuple[int, ...]) -> Slots:
            size = max_length
            if attention.window is not None and spec.position_bias is None:
                size = min(max_length, attention.window + 1 + draft_length)
            shape = (*leading, batch, attention.kv_heads, size, attention.head_dim)
            zeros = jnp.zeros(shape, self.compute.jax_dtype)
            return Slots(zeros, zeros)

        def rooms(name: str) -> list[Slots]:
            blocks = {"first": spec.first_blocks, "remainder": spec.blocks[: spec.num_rest]}
            leading = (spec.num_periods,) if name == "layers" else ()
            return [room(block.attention, leading) for block in blocks.get(name, spec.blocks)]

        return {name: rooms(name) for name in self.parts}

    def limit(self, draft_length: int) -> int | None:
        """Returns `draft_length` where some layer sees a window, otherwise None; see `Cache`."""
        windows = any(block.attention.window is not None for block in self.spec.every_block)
        return draft_length if windows and self.spec.position_bias is None else None

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        *,
        cached: StackSlots | None = None,
        cross: StackSlots | None = None,
    ) -> tuple[jax.Array, StackSlots | None]:
        """Runs all layers.

        Args:
          x: `[batch, length, embed]` (or `embedding_size`) embedded tokens.
          context: masks and whatever else the layers share; its bias is filled in here.
          cached: keys and values of the tokens before `x`; see `Block`.
          cross: the encoder's keys and values.

        Returns:
          `[batch, length, embed]` normed, and `cached` with those of `x` appended.
        """
        bias = self.spec.position_bias
        if bias is not None and not bias.per_layer:
            whole = cached is None or context.kept is not None
            kv_length = x.shape[1] if whole else jax.tree.leaves(cached)[0].shape[-2]
            places = None if whole else context.positions
            context = context.replace(bias=self.position_bias(places, x.shape[1], kv_length))
        deterministic = not self.has_rng("dropout")
        x = self.dropout(self._embedded(x, context.positions), deterministic=deterministic)
        if self.embedding_size is not None:
            x = self.embedding_projection(x)
        drop_rates = None if deterministic else self._drop_rates()
        updated: StackSlots = {}
        for name, part in self.parts.items():
            own = [None if tree is None else tree[name] for tree in (cached, cross, drop_rates)]
            x, updated[name] = part(x, context, *own)
        if self.spec.final_norm is not None:
            x = self.dropout(self.final_norm(x), deterministic=deterministic)
        return x, None if cached is None else updated

    def _embedded(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns token embeddings with their positions, normed."""
        spec = self.spec
        if spec.embedding_scale != 1.0:
            x = x * jnp.asarray(spec.embedding_scale, x.dtype)
        if spec.position_embedding is not None:
            x = x + broadcast(self.position_embedding(positions), x.shape, x.dtype)
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
