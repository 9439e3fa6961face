"""Text embeddings, and the nearest of them to a query."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.errors import InputError
from t5lite.inference.batching import (
    Placed,
    check_count,
    check_max_length,
    compiled,
    positions,
    stack_outcomes,
)
from t5lite.inference.requirements import not_finite, require
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.layers import pool, unit_length
from t5lite.models import Model


class EmbedRequest(NamedTuple):
    """A text as ids, special tokens included; pooling leaves the first `unpooled` out."""

    ids: Sequence[int]
    unpooled: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
    """Turns texts into requests of a single stack with a vocabulary; see `Loaded.embed`."""

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
        _ = self._prompt  # raises the error of an unknown name now
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
        if self.max_length is not None:
            return self.max_length
        limits = (positions(self.source.model), self._defaults.max_length)
        return min((limit for limit in limits if limit is not None), default=None)

    def read(self, text: str) -> EmbedRequest:
        if not isinstance(text, str):
            raise InputError(f"{text!r} is not a text")
        vocabulary: Any = self.source.vocabulary
        ids, frame, most = vocabulary.encode(self._prompt + text), vocabulary.frame, self._most
        if self.source.model.topology == "decoder":
            ids = frame.without(ids)  # a start token in the text is read once
        if not ids and not frame.size:
            raise InputError("the text is empty: it has no token to embed")
        ids = frame.fit(ids, most, truncate=self.truncate)
        return EmbedRequest(frame(ids), self._unpooled)


def embed(
    placed: Placed, params: Any, requests: Sequence[EmbedRequest], *, batch_size: int = 32
) -> list[np.ndarray | InputError]:
    """Returns the vector `[size]` float32 of each request, or the InputError of NaN or infinity."""
    model = placed.model
    vectors = compiled(text_vectors, model, placed.layout, placed.mesh)

    def compute(rows: np.ndarray, batch: dict[str, np.ndarray]) -> jax.Array:
        segments = batch[f"{model.topology}_segment_ids"]
        unpooled = np.zeros((len(segments), 1), np.int32)
        unpooled[: len(rows), 0] = [requests[row].unpooled for row in rows]
        pooled = segments * (np.arange(segments.shape[1]) >= unpooled)
        return vectors(params, {**batch, "pooled": pooled.astype(np.int32)})

    def read(row: int, vector: np.ndarray) -> np.ndarray | InputError:
        if np.isfinite(vector).all():
            return vector
        return not_finite("the numbers of its vector", params=params, model=model)

    ids = [request.ids for request in requests]
    return stack_outcomes(placed, ids, batch_size, compute, read)


def text_vectors(model: Model, params: Any, batch: Any) -> jax.Array:
    """Computes `[batch, size]` float32 vectors: of the embedding head, or else the mean of the last
    hidden states. The batch has `pooled` `[batch, length]` int32, 1 on pooled tokens."""
    hidden, _ = model.hidden(params, batch)
    valid = batch["pooled"] > 0
    if "embedding" in model.heads:
        return model.output(params, "embedding", hidden, valid)
    return unit_length(pool(hidden, valid, "mean"))


def nearest(
    vectors: np.ndarray, query: np.ndarray, count: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the vectors of the highest cosine similarity with a query.

    Args:
      vectors: `[n, size]` float32; those with a NaN or an infinity are never returned.
      query: `[size]` float32.
      count: most vectors, at least 1.
    Returns: indices `[m]` int64 and cosine similarities `[m]` float32 in [-1, 1], the nearest
    first, ties by index; m is at most `count`. Zero vectors have similarity 0.
    Raises: InputError if sizes of query and vectors differ.
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
    # All ties with the last one, of which the stable sort takes the earlier.
    least = np.partition(similarities, -count)[-count] if count else np.inf
    indices = np.flatnonzero(similarities >= least)
    indices = indices[np.argsort(-similarities[indices], kind="stable")][:count]
    return indices, np.clip(similarities[indices], -1, 1).astype(np.float32)
