"""Sentence embeddings, and the nearest of them to a query."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError
from t5lite.inference.batching import (
    Placed,
    check_count,
    check_max_length,
    positions,
    stack_batches,
)
from t5lite.inference.finite import Source, not_finite
from t5lite.inference.requirements import require
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.layers import pool, unit_length
from t5lite.models import Model
from t5lite.parallel import Layout, with_layout


class EmbedRequest(NamedTuple):
    """A text as ids.

    Args:
      ids: with special tokens.
      unpooled: how many of the first ones the pooling leaves out.
    """

    ids: Sequence[int]
    unpooled: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
    """Makes requests of texts; see `Loaded.embed`, which also answers them.

    Args:
      source: a single stack, with a vocabulary; no parameters are needed.
      max_length, truncate, prompt, prompt_name: see `Loaded.embed`.

    Raises:
      InputError: an encoder-decoder, no vocabulary, a `max_length` out of range, an unknown prompt,
        or files that need what t5lite does not compute.
    """

    source: Any
    max_length: int | None = None
    truncate: bool = False
    prompt: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_name is not None:
            raise InputError("prompt and prompt_name: a text has one prompt; leave one out")
        if self._defaults.refusal is not None:
            raise InputError(
                f"{self._defaults.refusal}: its vectors would differ from sentence-transformers'"
            )
        self._prompt  # noqa: B018 - so that an unknown name is refused now
        model = self.source.model
        if model.topology == "encoder_decoder":
            raise InputError(
                f"{self.source.folder} holds an encoder-decoder: embed is for single stacks"
            )
        vocabulary = require(self.source, to="embed texts")
        special = vocabulary.frame.size
        check_max_length(self.max_length, special=special, positions=positions(model))

    @property
    def _defaults(self) -> EmbeddingDefaults:
        return self.source.embedding or EmbeddingDefaults()

    @functools.cached_property
    def _prompt(self) -> str:
        """The text in front of every text."""
        return self._defaults.prompt(self.prompt_name) if self.prompt is None else self.prompt

    @functools.cached_property
    def _unpooled(self) -> int:
        vocabulary: Any = self.source.vocabulary
        if self._defaults.includes_prompt or not self._prompt:
            return 0
        ids = vocabulary.frame(vocabulary.encode(self._prompt))
        return len(ids) - (1 if vocabulary.frame.after else 0)

    @functools.cached_property
    def _most(self) -> int | None:
        """Most tokens of a text."""
        if self.max_length is not None:
            return self.max_length
        limits = (positions(self.source.model), self._defaults.max_length)
        return min((limit for limit in limits if limit is not None), default=None)

    def read(self, text: str) -> EmbedRequest:
        """Returns the request of a text.

        Raises:
          InputError: no text, no token in it, or too many.
        """
        if not isinstance(text, str):
            raise InputError(f"{text!r} is not a text")
        vocabulary: Any = self.source.vocabulary
        ids, frame, most = vocabulary.encode(self._prompt + text), vocabulary.frame, self._most
        if self.source.model.topology == "decoder":
            ids = frame.without(ids)  # a start that the text spells is read once
        if not ids and not frame.size:
            raise InputError("the text is empty: it has no token to embed")
        ids = frame.fit(ids, most, truncate=self.truncate)
        return EmbedRequest(frame(ids), self._unpooled)


def embed(
    placed: Placed, params: Any, requests: Sequence[EmbedRequest], *, batch_size: int = 32
) -> list[np.ndarray | InputError]:
    """Returns the vector `[size]` float32 of each request; an InputError in place of one with a NaN
    or an infinity.

    Args:
      placed: the model, its layout and mesh.
      params: of the model.
      requests: as `Embedder` makes them.
      batch_size: most requests at once.
    """
    vectors: list[Any] = [None] * len(requests)
    compiled = vectors_fn(placed.model, placed.layout, placed.mesh)
    for together, batch in stack_batches(placed, [each.ids for each in requests], batch_size):
        segments = batch[f"{placed.model.topology}_segment_ids"]
        unpooled = np.zeros((len(segments), 1), np.int32)
        unpooled[: len(together), 0] = [requests[row].unpooled for row in together]
        pooled = (segments * (np.arange(segments.shape[1]) >= unpooled)).astype(np.int32)
        computed = np.asarray(compiled(params, {**batch, "pooled": pooled}))
        for row, vector in zip(together, computed, strict=False):
            finite = np.isfinite(vector).all()
            vectors[row] = (
                vector
                if finite
                else not_finite(Source(params, placed.model), "the numbers of its vector")
            )
    return vectors


def text_vectors(model: Model, params: Any, batch: Any) -> jax.Array:
    """Computes `[batch, size]` float32 vectors; pure and traceable.

    Args:
      model: a single stack; without an embedding head, the mean of its last hidden states.
      params: of it.
      batch: what the stack reads, and `pooled` `[batch, length]` int32, 1 on the pooled tokens.
    """
    hidden, _ = model.hidden(params, batch)
    valid = batch["pooled"] > 0
    if "embedding" in model.heads:
        return model.output(params, "embedding", hidden, valid)
    return unit_length(pool(hidden, valid, "mean"))


@functools.lru_cache(maxsize=16)
def vectors_fn(model: Model, layout: Layout, mesh: Mesh) -> Callable:
    """Returns `text_vectors` of a model, compiled: `(params, batch)`; equal arguments share it."""
    whole = NamedSharding(mesh, PartitionSpec())
    return with_layout(functools.partial(text_vectors, model), layout, mesh, out_shardings=whole)


def nearest(
    vectors: np.ndarray, query: np.ndarray, count: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the vectors of the highest cosine similarity with a query.

    Args:
      vectors: `[n, size]` float32; those with a NaN or an infinity are never returned.
      query: `[size]` float32.
      count: how many to find, at least 1.

    Returns:
      Indices `[m]` int64 and cosine similarities `[m]` float32 in [-1, 1], the nearest first, of
      equals the earlier one; m is `count`, or less where there are fewer. Zero vectors have
      similarity 0.

    Raises:
      InputError: vectors of another size than the query.
    """
    check_count("count", count)
    if vectors.ndim != 2 or query.ndim != 1 or vectors.shape[1] != query.size:
        raise InputError(
            f"vectors of shape {list(vectors.shape)} and a query of shape {list(query.shape)}: "
            "they must be of one size, from one model"
        )
    with np.errstate(invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        similarities = vectors @ query / np.where(lengths == 0, 1, lengths)
    similarities = np.where(np.isfinite(similarities), similarities, -np.inf)
    count = min(count, int(np.sum(similarities > -np.inf)))
    # All that are as near as the last one, so that of equals the earlier is taken.
    least = np.partition(similarities, -count)[-count] if count else np.inf
    indices = np.flatnonzero(similarities >= least)
    indices = indices[np.argsort(-similarities[indices], kind="stable")][:count]
    return indices, np.clip(similarities[indices], -1, 1).astype(np.float32)
