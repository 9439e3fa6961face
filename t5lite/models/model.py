"""A model as pure functions of its parameters, which is all that the rest of t5lite sees."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from t5lite.errors import InputError
from t5lite.layers import HeadSpec, Matrix, Weights, parameter_path
from t5lite.layers.weights import WeightPolicySpec
from t5lite.models.cache import Cache
from t5lite.models.spec import ComputeSpec, ModelSpec, StackSpec
from t5lite.models.transformer import TOPOLOGIES, Transformer, check_room

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """A spec and how to compute it; hashable, and free of state.

    Its methods take `params` as `init` returns them, a `batch` of arrays `[batch, length]` under
    SeqIO's names (see `objectives.base`), and `rngs`, `{"dropout": key}`, which are needed only
    where `train` and some dropout rate is above 0.

    Args:
      spec: the architecture.
      compute: dtype, rematerialisation, scan.
      stacked: whether a parameter is one array of all layers; False for decoding, see `unstack`.
    """

    spec: ModelSpec
    compute: ComputeSpec = ComputeSpec()
    stacked: bool = True

    @property
    def topology(self) -> str:
        """`encoder`, `decoder` or `encoder_decoder`."""
        return self.spec.topology

    @property
    def heads(self) -> dict[str, HeadSpec]:
        """The heads by kind."""
        return {head.kind: head for head in self.spec.heads}

    @property
    def start_id(self) -> int | None:
        """The token that a decoder reads first; None for the first of the text."""
        return self.spec.start_id

    @property
    def limits(self) -> dict[str, int]:
        """Exclusive upper bounds of the ids in a batch: of `tokens`, and of labels by name."""
        labels = {name: n for head in self.spec.heads for name, n in head.limits.items()}
        return {"tokens": self.spec.vocab} | labels

    def check(self, batch: Mapping[str, Any]) -> None:
        """Raises an InputError if a batch has more tokens than the model has positions."""
        for side, stack in self.spec.stacks.items():
            if (rows := batch.get(f"{side}_input_tokens")) is not None:
                check_room(stack, rows.shape[1])

    @functools.cached_property
    def _module(self) -> Transformer:
        return TOPOLOGIES[self.topology](self.spec, self.compute, self.stacked)

    @property
    def unstacked(self) -> "Model":
        """The same model, whose parameters are those of `unstack`: for decoding."""
        return dataclasses.replace(self, stacked=False)

    def unstack(self, params: Params) -> Params:
        """Returns the parameters with separate arrays for each layer.

        A decoding step would first copy each layer's weights out of the stack: on a CPU that takes
        2.5 times as long as the products.
        """
        unstacked = dict(params)
        for side, stack in self.spec.stacks.items():
            if stack.shared_layers or not stack.num_periods:
                continue
            own = dict(params[side])
            layers = own.pop("layers")
            for step in range(stack.num_periods):
                own[f"layers_{step}"] = jax.tree.map(lambda leaf, step=step: leaf[step], layers)
            unstacked[side] = own
        return unstacked

    def store(self, params: Params) -> Params:
        """Returns parameters, float arrays, encoded by `compute.storage`."""
        compute = self.compute
        plain = dataclasses.replace(self, compute=compute.replace(storage=()))
        weights = Weights(storage=compute.storage)

        def encoded(path: Any, box: Any, leaf: Any) -> Any:
            contracted = getattr(box, "contracted", ())
            spec = weights.storage_of(parameter_path(*(key.key for key in path)))
            return spec.encode(leaf, contracted) if spec and contracted else leaf

        return jax.tree_util.tree_map_with_path(encoded, _boxes(plain), params, is_leaf=_is_box)

    def init(self, rng: jax.Array) -> Params:
        """Draws parameters from the published initialisers: float32, or as they are stored."""
        return nn.unbox(self._module.init(rng, _tiny_batch()))["params"]

    def shapes(self) -> Params:
        """Returns the parameters' `ShapeDtypeStruct`s, computing nothing."""
        return jax.tree.map(lambda box: box.value, _boxes(self), is_leaf=_is_box)

    def axes(self) -> Params:
        """Returns the parameters' logical axis names, a `PartitionSpec` each."""
        return nn.get_partition_spec(_boxes(self))

    def matrices(self) -> dict[str, Matrix]:
        """Returns the shapes of all weight matrices by path, those of one layer and expert each."""
        plain = Model(self.spec.replace(adapters=()), self.compute.replace(storage=()))
        matrices = {}
        for path, box in jax.tree_util.tree_leaves_with_path(_boxes(plain), is_leaf=_is_box):
            contracted = getattr(box, "contracted", ())
            if contracted:
                at = next(i for i, axis in enumerate(box.names) if axis not in _SCANNED)
                matrix = Matrix(box.value.shape[at:], box.names[at:], len(contracted))
                matrices[parameter_path(*(key.key for key in path))] = matrix
        return matrices

    def hidden(
        self,
        params: Params,
        batch: Batch,
        *,
        rngs: Mapping[str, jax.Array] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch length embed"], dict[str, jax.Array]]:
        """Runs the model up to, but without, its logits.

        Returns: hidden states in the compute dtype, and auxiliary losses by name: float32 scalars,
        the mean of all layers with experts, if any (see `layers.MoeSpec`), as in T5X.
        """
        rngs = dict(rngs) if rngs and train else None
        if not self.spec.num_expert_layers:
            return self._apply("hidden", params, dict(batch), rngs=rngs), {}
        hidden, sown = self._apply("hidden", params, dict(batch), rngs=rngs, mutable=["losses"])
        totals: dict[str, jax.Array] = {}
        for path, value in jax.tree_util.tree_leaves_with_path(sown["losses"]):
            name = path[-1].key
            totals[name] = totals.get(name, jnp.float32(0)) + jnp.sum(value)
        num_layers = jnp.float32(self.spec.num_expert_layers)
        return hidden, {name: total / num_layers for name, total in totals.items()}

    def attention(self, params: Params, batch: Batch) -> dict[str, list[jax.Array]]:
        """Returns the attention weights of every layer and head, after softmax, before dropout.

        Returns: by kind (self-attention of the `encoder` and `decoder`, and `cross`), an array
        `[batch, heads, q_length, kv_length]` float32 for each layer, in order.
        Raises: InputError if a block of your own has no `Attention` of that name.
        """
        _, sown = self._apply("hidden", params, dict(batch), mutable=["intermediates"])
        kinds = {side: (side, "attention") for side in self.spec.stacks}
        if self.topology == "encoder_decoder":
            kinds["cross"] = ("decoder", "cross_attention")
        modules = sown.get("intermediates", {})
        return {
            kind: _layer_weights(self.spec.stacks[side], modules.get(side, {}), module)
            for kind, (side, module) in kinds.items()
        }

    def logits(
        self, params: Params, hidden: Float[Array, "batch length embed"]
    ) -> Float32[Array, "batch length {self.spec.vocab}"]:
        """Returns the logits over the vocabulary."""
        return self._apply("logits", params, hidden)

    def output(
        self,
        params: Params,
        kind: str,
        hidden: Float[Array, "batch length embed"],
        valid: Bool[Array, "batch length"],
        *,
        rngs: Mapping[str, jax.Array] | None = None,
        train: bool = False,
    ) -> Float32[Array, " batch *output"]:
        """Returns the output of the head of a kind other than "lm" (shapes: `layers.heads`);
        `valid` marks tokens that are not padding."""
        rngs = dict(rngs) if rngs and train else None
        return self._apply("output", params, kind, hidden, valid, rngs=rngs)

    def start(
        self, params: Params, batch: Batch, *, max_length: int, draft_length: int = 0
    ) -> Cache:
        """Prepares decoding: reads the inputs or prompts, once.

        Args:
          batch: not packed. Of an encoder-decoder `encoder_input_tokens` `[batch, encoder_length]`;
            of a decoder alone `decoder_input_tokens` `[batch, n]`, the start token and the prompt
            padded on the right, `decoder_lengths` `[batch]` int32, their number without padding,
            and `decoder_causal_attention` if prompts are seen in both directions. The cache then
            holds all but the last token of each prompt, the first one to pass to `extend`.
          max_length: slots of the cache for decoder tokens of a row, prompts included.
          draft_length: see `Cache`; the number of further slots in layers that see a window.
        Raises: InputError if the model is an encoder, or has fewer than `max_length` positions.
        """
        return self._apply("start", params, dict(batch), max_length, draft_length)

    def extend(
        self, params: Params, tokens: Int32[Array, "batch n"], cache: Cache
    ) -> tuple[Float32[Array, "batch n {self.spec.vocab}"], Cache]:
        """Decodes tokens after those in the cache; logits at i predict token i + 1."""
        return self._apply("extend", params, tokens, cache)

    def _apply(self, method: str, params: Params, *arguments: Any, **options: Any) -> Any:
        return self._module.apply({"params": params}, *arguments, method=method, **options)


def _layer_weights(stack: StackSpec, sown: Mapping[str, Any], module: str) -> list[jax.Array]:
    weights, first, pattern = [], len(stack.first_blocks), len(stack.blocks)
    for layer in range(stack.num_layers):
        part, block = stack.location(layer)[0].split("/")
        if module not in sown.get(part, {}).get(block, {}):
            raise InputError(f"layer {layer} has no attention called {module!r} to inspect")
        (stacked,) = sown[part][block][module]["weights"]
        # A scan has one array for all of its steps, whether or not they share parameters.
        weights.append(stacked[(layer - first) // pattern] if part == "layers" else stacked)
    return weights


@functools.lru_cache(maxsize=256)
def _boxes(model: Model) -> Params:
    """Returns shapes with axis names, cached: tracing a model takes a good part of a second."""
    _check_policies(model)
    return jax.eval_shape(model._module.init, jax.random.key(0), _tiny_batch())["params"]


def _check_policies(model: Model) -> None:
    """Raises an InputError if an adapter or a storage fits no weight matrix."""
    policies: dict[str, tuple[WeightPolicySpec, ...]] = {
        "ModelSpec.adapters": model.spec.adapters,
        "ComputeSpec.storage": model.compute.storage,
    }
    paths = [*model.matrices()] if any(policies.values()) else []
    for field, specs in policies.items():
        for spec in specs:
            if not any(map(spec.fits, paths)):
                raise InputError(
                    f"{field}: {type(spec).__name__}.include = {spec.include!r} matches no weight "
                    f"matrix; they look like {', '.join(paths[:3])}",
                    field=field,
                )


# The leading axes of parameters, along which layers or experts are stacked.
_SCANNED = ("layers", "experts")


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _tiny_batch() -> dict[str, jax.Array]:
    tokens, sides = jnp.zeros((1, 1), jnp.int32), ("encoder", "decoder")
    return {f"{side}_{name}": tokens for side in sides for name in ("input_tokens", "segment_ids")}
