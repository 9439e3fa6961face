"""The spec of a whole model, how it is saved, and the compute choices kept apart from it."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from t5lite.errors import InputError
from t5lite.layers import NormSpec, RelativeBiasSpec, RMSNormSpec, Spec
from t5lite.layers.spec import positive
from t5lite.models.block import BlockSpec

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class StackSpec(Spec):
    """A stack of layers.

    Args:
      num_layers: in all.
      blocks: the pattern that repeats, e.g. two blocks alternate; `BlockSpec`s or your own.
      causal: whether a token sees only those before it.
      relative_bias: the position bias; None for none.
      final_norm: after the last layer.
      dropout_rate: of embeddings, attention weights, MLP hiddens, sublayer outputs and the final
        norm's, in [0, 1); each element by itself, where T5X drops whole positions' features alike.
    """

    num_layers: int
    blocks: tuple[BlockSpec, ...]
    causal: bool
    relative_bias: RelativeBiasSpec | None = None
    final_norm: NormSpec = RMSNormSpec()
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.blocks) >= 1, "blocks", "at least one block")
        heads = {block.attention.num_heads for block in self.blocks}
        self.require(
            self.relative_bias is None or self.relative_bias.per_layer or len(heads) == 1,
            "blocks",
            "of equally many heads where they share one relative bias table",
        )


@dataclasses.dataclass(frozen=True)
class ModelSpec(Spec):
    """An architecture, whole: what `model.json` holds and what a checkpoint is compared with.

    Args:
      family: where the architecture comes from; read only when converting checkpoints.
      vocab: rows of the token embedding; at least the vocabulary's size, often padded up.
      embed: width of the residual stream.
      encoder: the encoder's stack.
      decoder: the decoder's stack, whose blocks have `cross_attention`.
      tied_logits: logits from the token embedding, scaled by `embed**-0.5` (T5 v1.0), rather than
        from a table of their own (v1.1).
    """

    family: str
    vocab: int = positive()
    embed: int = positive()
    encoder: StackSpec = None  # type: ignore[assignment]
    decoder: StackSpec = None  # type: ignore[assignment]
    tied_logits: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(not self.encoder.causal, "encoder", "bidirectional (causal = False)")
        self.require(self.decoder.causal, "decoder", "causal")
        for stack, crosses in ((self.encoder, False), (self.decoder, True)):
            for block in stack.blocks:
                if (block.cross_attention is not None) != crosses:
                    raise InputError(
                        "cross_attention belongs in every block of the decoder "
                        "and in none of the encoder"
                    )


@dataclasses.dataclass(frozen=True)
class ComputeSpec(Spec):
    """How a model is computed, which changes speed, memory and rounding but not the model.

    Args:
      dtype: of activations; parameters, norms, softmax and logits stay float32.
      remat: what the backward pass computes again: `none` nothing, `save_dots` all but matrix
        products, `minimal` all but those without a batch axis, `full` the whole layer.
      scan: one compiled layer in a loop, rather than layers unrolled; parameters are the same.
    """

    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in (("dtype", ("float32", "bfloat16")), ("remat", REMAT)):
            self.require(getattr(self, field) in known, field, f"one of {', '.join(known)}")

    @property
    def jax_dtype(self) -> Any:
        return jnp.dtype(self.dtype)


REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "save_dots": jax.checkpoint_policies.dots_saveable,
}


def save_spec(path: epath.PathLike, spec: ModelSpec) -> None:
    """Writes `model.json`: the spec and its format version."""
    content = {"format_version": FORMAT_VERSION, "model": spec.to_json()}
    path = epath.Path(path)
    # Whole or not at all: a run cannot be resumed without it.
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def load_spec(path: epath.PathLike) -> ModelSpec:
    """Reads a spec that `save_spec` wrote.

    Raises:
      InputError: if the file is missing, is no JSON, has a newer format, or names unknown specs.
    """
    path = epath.Path(path)
    try:
        content = json.loads(path.read_text())
        version, encoded = content["format_version"], content["model"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; is this a model folder?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a model.json: {error!r}") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {version}; this t5lite reads {FORMAT_VERSION}")
    return Spec.from_json(encoded)


def differences(old: ModelSpec, new: ModelSpec) -> list[str]:
    """Returns one line, `path: old -> new`, for each value in which two specs differ."""

    def flat(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, list):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            return {path: value}
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}.{key}").items()}

    a, b = flat(old.to_json(), "model"), flat(new.to_json(), "model")
    return [
        f"{path.removeprefix('model.')}: {a.get(path, 'absent')} -> {b.get(path, 'absent')}"
        for path in sorted(a.keys() | b.keys())
        if a.get(path, "absent") != b.get(path, "absent")
    ]
