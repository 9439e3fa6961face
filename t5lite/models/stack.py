"""A stack of layers, scanned: one compiled layer, parameters stacked along `layers`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t5lite.errors import InputError
from t5lite.layers import Projection, Slots, Weights, broadcast
from t5lite.models.block import BlockSpec, Context
from t5lite.models.remat import POLICIES
from t5lite.models.spec import ComputeSpec, StackSpec

# The state of every layer between decoding steps: {"first": [per block], "layers": [per block of
# the pattern, stacked], "remainder": [per block]}, without parts that have no layers. Where layers
# are not stacked, "layers_0", "layers_1", … in place of "layers".
StackCache = dict[str, list[Any]]


def batch_axis(part: str) -> int:
    """Returns the axis of the batch in the arrays of a part of a `StackCache`."""
    return 1 if part == "layers" else 0


class Period(nn.Module):
    """The repeating pattern of blocks, one step of the scan."""

    spec: StackSpec
    blocks: tuple[BlockSpec, ...]
    embed: int
    compute: ComputeSpec
    weights: Weights

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
                weights=self.weights,
            )
            for block in self.blocks
        ]

    def cross_slots(self, carry: None, encoded: jax.Array) -> tuple[None, list[Slots]]:
        return carry, [block.cross_slots(encoded) for block in self.block]

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cached: list[Any] | None,
        cross: list[Any] | None,
        drop_rates: list[jax.Array] | None,
    ) -> tuple[jax.Array, list[Any]]:
        updated = []
        for index, block in enumerate(self.block):
            own = (tree[index] if tree else None for tree in (cached, cross, drop_rates))
            x, new = block(x, context, *own)
            updated.append(new)
        return x, updated


class Stack(nn.Module):
    """Positions and norm of embeddings, all layers, and the final norm. If not `stacked`, each
    layer has its own parameters: `layers_0` is the first slice of `layers`."""

    spec: StackSpec
    embed: int
    embedding_size: int | None
    compute: ComputeSpec
    stacked: bool = True
    weights: Weights = Weights()

    def setup(self) -> None:
        spec, compute = self.spec, self.compute
        embedding_size = self.embedding_size or self.embed
        bias = spec.position_bias
        if bias is not None and not bias.per_layer:
            self.position_bias = bias.make(
                spec.num_biased_heads, bidirectional=not spec.causal, weights=self.weights
            )
        if spec.position_embedding is not None:
            self.position_embedding = spec.position_embedding.make(
                embedding_size, compute.jax_dtype, self.weights
            )
        if spec.embedding_norm is not None:
            self.embedding_norm = spec.embedding_norm.make(compute.jax_dtype)

        if self.embedding_size is not None:
            self.embedding_projection = Projection(
                ("embedding", "embed"),
                (self.embed,),
                weights=self.weights,
                dtype=compute.jax_dtype,
                use_bias=True,
            )
        num_periods, rest = spec.num_periods, spec.blocks[: spec.num_rest]

        def period(blocks: Any, *, scan: bool = False) -> Any:
            """Returns the module of a pattern of blocks, rematerialised and perhaps scanned."""
            module: Any = Period
            if (policy := POLICIES[compute.remat]) is not None:
                # In a loop nothing can be merged with the forward pass: no barrier is needed.
                prevent_cse = not (scan and compute.scan)
                module = nn.remat(
                    Period, policy=policy, prevent_cse=prevent_cse, methods=["__call__"]
                )
            module = self._scanned(module) if scan else module
            return module(spec, blocks, self.embed, compute, self.weights)

        parts: dict[str, Any] = {}  # in order
        if spec.first_blocks:
            self.first = parts["first"] = period(spec.first_blocks)
        if num_periods and self.stacked:
            self.layers = parts["layers"] = period(spec.blocks, scan=True)
        elif num_periods and spec.shared_layers:
            self.layers = period(spec.blocks)
            parts |= {f"layers_{index}": self.layers for index in range(num_periods)}
        elif num_periods:
            self.layers = [period(spec.blocks) for _ in range(num_periods)]
            parts |= {f"layers_{index}": layer for index, layer in enumerate(self.layers)}
        if rest:
            self.remainder = parts["remainder"] = period(rest)
        self.parts = parts
        if spec.final_norm is not None:
            self.final_norm = spec.final_norm.make(compute.jax_dtype)
        self.dropout = nn.Dropout(spec.dropout_rate)

    def _scanned(self, period: type) -> Any:
        """Returns a module that runs as many periods as the stack has, one after the other."""
        shared, length = self.spec.shared_layers, self.spec.num_periods
        axes = {"losses": 0, "intermediates": 0}
        scan: Any = functools.partial(
            dict,
            length=length,
            unroll=1 if self.compute.scan else length,
            variable_axes=axes if shared else {"params": 0} | axes,
            variable_broadcast="params" if shared else False,
            split_rngs={"params": not shared, "dropout": True},
            metadata_params={} if shared else {nn.PARTITION_NAME: "layers"},
        )
        methods = {
            "__call__": scan(in_axes=(nn.broadcast, 0, 0, 0)),
            "cross_slots": scan(in_axes=(nn.broadcast,)),
        }
        return nn.scan(period, methods=methods)

    def cross_slots(self, encoded: jax.Array) -> StackCache:
        """Projects the encoder's output for every layer."""
        return {name: part.cross_slots(None, encoded)[1] for name, part in self.parts.items()}

    def empty_cache(self, batch: int, max_length: int, draft_length: int) -> StackCache:
        """Returns room for `max_length` tokens a row in every layer; an InputError if a draft is to
        be rewound, and a block's state cannot be."""
        spec, dtype = self.spec, self.compute.jax_dtype
        for block in spec.every_block if draft_length else ():
            if not block.rewindable:
                raise InputError(
                    f"draft_length = {draft_length}: {type(block).__name__} keeps a state that "
                    "cannot take tokens back; decode without a draft",
                    field="draft_length",
                )
        if spec.position_bias is not None:  # it is added by slot: one for every token
            draft_length = max_length
        blocks = {"first": spec.first_blocks, "remainder": spec.blocks[: spec.num_rest]}

        def stacked(leaf: jax.Array) -> jax.Array:
            return jnp.broadcast_to(leaf, (spec.num_periods, *leaf.shape))

        empty: StackCache = {}
        for name in self.parts:
            own = [
                block.empty_cache(batch, max_length, dtype, draft_length=draft_length)
                for block in blocks.get(name, spec.blocks)
            ]
            empty[name] = jax.tree.map(stacked, own) if name == "layers" else own
        return empty

    def limit(self, draft_length: int) -> int | None:
        """Returns `draft_length` where some layer sees a window, otherwise None; see `Cache`."""
        windows = any(block.windowed for block in self.spec.every_block)
        return draft_length if windows and self.spec.position_bias is None else None

    def __call__(
        self,
        x: Float[Array, "batch length embedding"],
        context: Context,
        *,
        cached: StackCache | None = None,
        cross: StackCache | None = None,
    ) -> tuple[Float[Array, "batch length {self.embed}"], StackCache | None]:
        """Runs all layers; returns hidden states after the last norm, and the extended `cached`.

        Args:
          x: embedded tokens, of width `embed` or `embedding_size`.
          context: masks and whatever else the layers share; its bias is filled in here.
          cached: keys and values of the tokens before `x`; see `Block`.
        """
        bias = self.spec.position_bias
        if bias is not None and not bias.per_layer:
            whole = cached is None or context.prompt_lengths is not None
            kv_length = x.shape[1] if whole else _num_slots(cached)
            positions = None if whole else context.positions
            context = context.replace(bias=self.position_bias(positions, x.shape[1], kv_length))
        deterministic = not self.has_rng("dropout")
        x = self.dropout(self._embedded(x, context.positions), deterministic=deterministic)
        if self.embedding_size is not None:
            x = self.embedding_projection(x)
        drop_rates = None if deterministic else self._drop_rates()
        updated: StackCache = {}
        for name, part in self.parts.items():
            own = [None if tree is None else tree[name] for tree in (cached, cross, drop_rates)]
            x, updated[name] = part(x, context, *own)
        if self.spec.final_norm is not None:
            x = self.dropout(self.final_norm(x), deterministic=deterministic)
        return x, None if cached is None else updated

    def _embedded(self, x: jax.Array, positions: jax.Array) -> jax.Array:
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


def _num_slots(cached: StackCache | None) -> int:
    """Returns how many keys a row has in a cache: the same in every layer of attention."""
    leaves = jax.tree.leaves(cached, is_leaf=lambda leaf: isinstance(leaf, Slots))
    return next(leaf.size for leaf in leaves if isinstance(leaf, Slots))
