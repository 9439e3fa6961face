"""The spec of a model, its file `model.json`, and the compute options apart from it."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
from etils import epath

from t5lite.errors import InputError
from t5lite.layers import (
    KERNELS,
    AdapterSpec,
    FanInInitSpec,
    HeadSpec,
    InitSpec,
    LMHeadSpec,
    NormSpec,
    PositionBiasSpec,
    PositionEmbeddingSpec,
    RMSNormSpec,
    Spec,
    StorageSpec,
)
from t5lite.layers.spec import positive
from t5lite.models.block import BlockSpec
from t5lite.models.remat import POLICIES

FORMAT_VERSION = 6
_READ = (3, 4, 5, FORMAT_VERSION)


@dataclasses.dataclass(frozen=True)
class StackSpec(Spec):
    """A stack of layers.

    Args:
      num_layers: in all.
      blocks: the repeating pattern of `BlockSpec`s.
      causal: whether a token sees only those before it.
      first_blocks: layers before the pattern, once each (ModernBERT's first layer).
      shared_layers: whether all repeats of the pattern use the same parameters (Lan et al. 2019,
        ALBERT, arXiv:1909.11942, §3.1).
      embed: width of the residual stream; None for the model's.
      position_bias: added to attention logits, by distance; None for none.
      position_embedding: added to token embeddings; None for none. (Rotary: see attention.)
      embedding_scale: factor on token embeddings.
      embedding_norm: of the sum of embeddings, positions and token types; None for none.
      final_norm: after the last layer; None for none.
      dropout_rate: of embeddings, attention weights, MLP hiddens, sublayer outputs and the final
        norm's, in [0, 1); element by element, where T5X drops a feature at all positions.
      stochastic_depth_rate: probability that an example skips the last layer's sublayers in
        training, in [0, 1); layer l of L has l/L of it (Huang et al. 2016, arXiv:1603.09382).
    """

    num_layers: int
    blocks: tuple[Any, ...]  # `BlockSpec`s; Any, as the fields depend on the kind
    causal: bool
    first_blocks: tuple[Any, ...] = ()
    shared_layers: bool = False
    embed: int | None = positive(None)
    position_bias: PositionBiasSpec | None = None
    position_embedding: PositionEmbeddingSpec | None = None
    embedding_scale: float = 1.0
    embedding_norm: NormSpec | None = None
    final_norm: NormSpec | None = RMSNormSpec()
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.blocks) >= 1, "blocks", "at least one block")
        for field in ("blocks", "first_blocks"):
            valid = all(isinstance(block, BlockSpec) for block in getattr(self, field))
            self.require(valid, field, "a tuple of BlockSpecs")
        enough = self.num_layers >= len(self.first_blocks)
        self.require(enough, "num_layers", "at least its first_blocks")
        whole = not self.shared_layers or self.num_rest == 0
        self.require(whole, "num_layers", "whole repeats of the pattern with shared_layers")
        shared = self.position_bias is not None and not self.position_bias.per_layer
        equal = not shared or len({*self._biased_heads}) == 1
        self.require(equal, "blocks", "of equally many heads where they share one position bias")

    @property
    def num_periods(self) -> int:
        """Repeats of the pattern."""
        return (self.num_layers - len(self.first_blocks)) // len(self.blocks)

    @property
    def num_rest(self) -> int:
        """Layers after the last whole repeat of the pattern."""
        return (self.num_layers - len(self.first_blocks)) % len(self.blocks)

    @property
    def every_block(self) -> tuple[Any, ...]:
        """The block of each layer, in order."""
        pattern = self.blocks * self.num_periods + self.blocks[: self.num_rest]
        return self.first_blocks + pattern

    @property
    def _biased_heads(self) -> list[int]:
        heads = [block.num_biased_heads for block in self.every_block]
        return [number for number in heads if number is not None]

    @property
    def num_biased_heads(self) -> int:
        """Heads that a position bias shared by all layers is for."""
        return self._biased_heads[0]

    @property
    def num_updates(self) -> int:
        """Number of additions to the residual stream by all layers."""
        return max(1, sum(block.num_updates for block in self.every_block))

    def location(self, layer: int) -> tuple[str, int | None]:
        """Returns the path of a layer's parameters below the stack's, `layers/block_0`, and their
        index along the leading axis `layers`, None without that axis."""
        if layer < len(self.first_blocks):
            return f"first/block_{layer}", None
        period, block = divmod(layer - len(self.first_blocks), len(self.blocks))
        if period == self.num_periods:
            return f"remainder/block_{block}", None
        return f"layers/block_{block}", None if self.shared_layers else period

    @property
    def max_length(self) -> int | None:
        """The longest row that has positions; None for no limit."""
        return getattr(self.position_embedding, "max_length", None)


@dataclasses.dataclass(frozen=True)
class ModelSpec(Spec):
    """A whole architecture: the content of `model.json`, with which checkpoints are compared.

    Args:
      family: origin of the architecture; read only when converting checkpoints.
      vocab: rows of the token embedding; at least the vocabulary's size, often padded up.
      embed: width of the residual stream.
      embedding_size: width of the token embedding, which is then projected (ALBERT,
        arXiv:1909.11942, §3.1; ELECTRA), for encoders alone; None for `embed`.
      encoder, decoder: the stacks; None for none. After an encoder the decoder's blocks have
        `cross_attention`.
      heads: outputs of the last hidden states, at most one of a kind.
      shared_embedding: whether encoder and decoder look up the same table, rather than one each
        (T5Gemma).
      start_id: the token that a decoder reads first; None for a decoder alone without one (GPT-2),
        which cannot predict the first token of a text.
      num_token_types: embeddings of the parts of an input (BERT); None for none.
      init: draws the parameters.
      adapters: parameters beside weight matrices, which change their products.
    """

    family: str
    vocab: int = positive()
    embed: int = positive()
    embedding_size: int | None = positive(None)
    encoder: StackSpec | None = None
    decoder: StackSpec | None = None
    heads: tuple[HeadSpec, ...] = (LMHeadSpec(),)
    shared_embedding: bool = True
    start_id: int | None = 0
    num_token_types: int | None = None
    init: InitSpec = FanInInitSpec()
    adapters: tuple[AdapterSpec, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder is None and self.decoder is None:
            raise InputError("ModelSpec has neither encoder nor decoder: give it a StackSpec")
        for name, stack in self.stacks.items():
            causal = name == "decoder"
            direction = "causal" if causal else "bidirectional (causal = False)"
            self.require(stack.causal == causal, name, direction)
            crosses = causal and self.encoder is not None
            if any(block.reads_encoder != crosses for block in stack.every_block):
                raise InputError(
                    "cross_attention belongs in every block of a decoder after an encoder, "
                    f"and in no other: see ModelSpec.{name}"
                )
        self._check_widths()
        start = self.start_id
        valid = self.encoder is None or start is not None
        self.require(valid, "start_id", "a token id: None is for a decoder alone")
        expected = f"in 0 .. {self.vocab - 1}; for a smaller vocabulary, change it before vocab"
        self.require(start is None or 0 <= start < self.vocab, "start_id", expected)
        kinds = [head.kind for head in self.heads]
        if doubles := [kind for kind in kinds if kinds.count(kind) > 1]:
            raise InputError(
                f"ModelSpec.heads has two heads of kind {doubles[0]!r}, which objectives cannot "
                "tell apart: keep one"
            )

    def _check_widths(self) -> None:
        encoder, decoder = self.encoder, self.decoder
        both = encoder is not None and decoder is not None
        self.require(both or self.shared_embedding, "shared_embedding", "True for one stack alone")
        factorised = self.embedding_size is not None
        self.require(not factorised or decoder is None, "embedding_size", "None with a decoder")
        tied = any(isinstance(head, LMHeadSpec) and head.tied for head in self.heads)
        self.require(not (factorised and tied), "embedding_size", "None with tied logits")
        *_, last = self.stacks.values()
        last.require(last.embed is None, "embed", "None in the last stack, of ModelSpec.embed")
        if encoder is not None and decoder is not None:
            equal = encoder.embed in (None, self.embed)
            encoder.require(
                equal or not self.shared_embedding, "embed", "None with a shared embedding"
            )
            typed = self.num_token_types is not None
            self.require(equal or not typed, "num_token_types", "None where widths differ")

    @property
    def num_expert_layers(self) -> int:
        """Number of layers that are mixtures of experts."""
        blocks = [block for stack in self.stacks.values() for block in stack.every_block]
        return sum(block.has_experts for block in blocks)

    @property
    def stacks(self) -> dict[str, StackSpec]:
        """The stacks by side, `encoder` and `decoder`."""
        sides = {"encoder": self.encoder, "decoder": self.decoder}
        return {side: stack for side, stack in sides.items() if stack is not None}

    @property
    def topology(self) -> str:
        """`encoder`, `decoder` or `encoder_decoder`."""
        return "_".join(self.stacks)


@dataclasses.dataclass(frozen=True)
class ComputeSpec(Spec):
    """How a model is computed: speed, memory and rounding, not the model.

    Args:
      dtype: of activations; parameters, norms, softmax and logits stay float32.
      remat: the activations that each layer saves for the backward pass, which recomputes the rest;
        one of `remat.POLICIES`, from `none` (all saved) to `full` (nothing saved).
      scan: one compiled layer in a loop, rather than layers unrolled; parameters are the same.
      attention: the kernel, one of `layers.KERNELS`, or "auto"; results are equal but for rounding.
      storage: how weight matrices lie in memory; see `layers.Weights`.
    """

    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    attention: str = "auto"
    storage: tuple[StorageSpec, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"dtype": DTYPES, "remat": POLICIES, "attention": ("auto", *KERNELS)}
        for field, values in choices.items():
            self.require(getattr(self, field) in values, field, f"one of {', '.join(values)}")

    @property
    def jax_dtype(self) -> Any:
        return jnp.dtype(self.dtype)


DTYPES = ("float32", "bfloat16", "float16")


def save_spec(path: epath.PathLike, spec: ModelSpec) -> None:
    """Writes `model.json`: the spec and its format version."""
    content = {"format_version": FORMAT_VERSION, "model": spec.to_json()}
    path = epath.Path(path)
    # Atomically: a run cannot be resumed without it.
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def load_spec(path: epath.PathLike) -> ModelSpec:
    """Reads a spec that `save_spec` wrote.

    Raises: InputError if the file is missing, not JSON, of a newer format, or names unknown specs.
    """
    path = epath.Path(path)
    try:
        content = json.loads(path.read_text())
        version, encoded = content["format_version"], content["model"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; is this a model folder?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a model.json: {error!r}") from error
    if version not in _READ:
        raise InputError(
            f"{path}: format_version {version}; this t5lite reads {', '.join(map(str, _READ))}: "
            "use the t5lite that wrote it, or train again"
        )
    if version < 4:
        # Before format 4, everything but the token embedding was drawn by fan-in.
        stddev = encoded.pop("embedding_stddev", 1.0)
        encoded["init"] = FanInInitSpec(embedding_stddev=stddev).to_json()
    if version < 5:
        encoded = _with_new_names(encoded)
    return Spec.from_json(encoded)


def _with_new_names(value: Any) -> Any:
    """Returns JSON of format 4 with the names of format 5."""
    if isinstance(value, list):
        return [_with_new_names(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _with_new_names(item) for key, item in value.items()}
    if value.get("type") == "BlockSpec":
        value["type"] = "TransformerBlockSpec"
    return value
