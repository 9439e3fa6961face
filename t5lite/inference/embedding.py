"""Texts to vectors, and the nearest of them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError
from t5lite.inference.batching import (
    bucket,
    by_size,
    check_count,
    each,
    num_rows,
    padded,
    settled,
)
from t5lite.inference.finite import not_finite
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.layers import pool, unit_length
from t5lite.models import Model
from t5lite.parallel import Layout, with_layout

if TYPE_CHECKING:
    from t5lite.inference.loaded import Loaded


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
    """Makes a vector of each text; see `Loaded.embed`, which is all of it in one call.

    Args:
      loaded: a single stack, with a vocabulary.
      max_length: most tokens of a text, special ones included; None for what there is room for.
      truncate: whether longer texts lose their end; otherwise they are refused.
      prompt: a text to put in front of others; None for that of `prompt_name`.
      prompt_name: the name of a prompt that the model has; None for its default one, if any.

    Raises:
      InputError: an encoder-decoder, no vocabulary, a `max_length` out of range, no such prompt, or
        a model whose files ask for what is not known here.
    """

    loaded: "Loaded"
    max_length: int | None = None
    truncate: bool = False
    prompt: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        folder, vocabulary = self.loaded.folder, self.loaded.vocabulary
        if self.prompt is not None and self.prompt_name is not None:
            raise InputError("prompt and prompt_name: a text has one prompt; leave one out")
        if self._defaults.refusal is not None:
            raise InputError(
                f"{self._defaults.refusal}: its vectors would be others than sentence-transformers'"
            )
        self._prompt  # noqa: B018 - so that an unknown name is refused now
        if self.loaded.model.topology == "encoder_decoder":
            raise InputError(f"{folder} holds an encoder-decoder: embed is for single stacks")
        if vocabulary is None:
            raise InputError(
                f"no vocabulary beside {folder}; give one: load(folder, vocabulary=...)"
            )
        if self.max_length is not None:
            check_count("max_length", self.max_length)
            around, room = vocabulary.frame.size, self._positions
            if self.max_length <= around or (room is not None and self.max_length > room):
                most = "" if room is None else f" and at most {room}, the model's positions"
                raise InputError(
                    f"max_length = {self.max_length}: must be at least {around + 1}{most}"
                )

    @property
    def _positions(self) -> int | None:
        stack = self.loaded.spec.encoder or self.loaded.spec.decoder
        assert stack is not None
        return stack.max_length

    @property
    def _defaults(self) -> EmbeddingDefaults:
        return self.loaded.embedding or EmbeddingDefaults()

    @functools.cached_property
    def _prompt(self) -> str:
        """The text in front of every text."""
        return self._defaults.prompt(self.prompt_name) if self.prompt is None else self.prompt

    @functools.cached_property
    def _unpooled(self) -> int:
        """How many of the first tokens count for nothing: a prompt's, where they are excluded."""
        vocabulary: Any = self.loaded.vocabulary
        if self._defaults.includes_prompt or not self._prompt:
            return 0
        ids = vocabulary.frame(vocabulary.encode(self._prompt))
        return len(ids) - (1 if vocabulary.frame.after else 0)

    @property
    def _room(self) -> int | None:
        """Most tokens of a text."""
        if self.max_length is not None:
            return self.max_length
        rooms = [each for each in (self._positions, self._defaults.max_length) if each is not None]
        return min(rooms, default=None)

    def read(self, text: str) -> list[int]:
        """Returns the ids of a text, with what the vocabulary puts around them.

        Raises:
          InputError: no text, none in it, or too long a one.
        """
        if not isinstance(text, str):
            raise InputError(f"{text!r} is not a text")
        vocabulary: Any = self.loaded.vocabulary
        ids, frame, room = vocabulary.encode(self._prompt + text), vocabulary.frame, self._room
        if self.loaded.model.topology == "decoder":
            ids = frame.without(ids)  # a start that the text spells is read once
        if room is not None and len(ids) + frame.size > room and not self.truncate:
            raise InputError(
                f"a text of {len(ids) + frame.size} tokens: there is room for {room}; "
                "shorten it, or set truncate=True"
            )
        if not ids and not frame.size:
            raise InputError("the text is empty: it has no token to embed")
        return frame(ids, room)

    def embed(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Returns the vectors of texts, `[len(texts), size]` float32."""
        if isinstance(texts, str) or not texts:
            raise InputError("texts must be a list of at least one text")
        rows = each("texts", self.read, texts)
        return np.stack(settled("texts", self.outcomes(rows, batch_size=batch_size)))

    def outcomes(
        self, rows: Sequence[Sequence[int]], *, batch_size: int = 32
    ) -> list[np.ndarray | InputError]:
        """Returns the vector, `[size]` float32, of each text that `read` returned; an InputError
        in place of one with a NaN or an infinity."""
        check_count("batch_size", batch_size)
        loaded, side = self.loaded, self.loaded.model.topology
        found: list[Any] = [None] * len(rows)
        for together in by_size([len(row) for row in rows], batch_size):
            batch = [rows[row] for row in together]
            length = bucket(max(map(len, batch)), self._positions)
            count = num_rows(len(batch), loaded.layout, loaded.mesh)
            tokens, segments = padded(batch, count, length)
            pooled = segments * (np.arange(length) >= self._unpooled)
            arrays = {f"{side}_input_tokens": tokens, f"{side}_segment_ids": segments}
            arrays["pooled"] = pooled.astype(np.int32)
            computed = np.asarray(loaded.vectors_fn(loaded.params, arrays))
            for row, vector in zip(together, computed, strict=False):
                finite = np.isfinite(vector).all()
                found[row] = vector if finite else not_finite(loaded, "the numbers of its vector")
        return found


def compile_vectors(model: Model, layout: Layout, mesh: Mesh) -> Callable:
    """Returns the compiled function `(params, batch) -> [batch, size]` float32.

    A batch also has `pooled` `[batch, length]` int32, 1 on the tokens that count.
    """
    head = model.heads.get("embedding")

    def vectors(params: Any, batch: Any) -> jax.Array:
        hidden, _ = model.hidden(params, batch)
        valid = batch["pooled"] > 0
        if head is not None:
            return model.output(params, "embedding", hidden, valid)
        return unit_length(pool(hidden, valid, "mean"))

    whole = NamedSharding(mesh, PartitionSpec())
    return with_layout(vectors, layout, mesh, out_shardings=whole)


def nearest(
    vectors: np.ndarray, query: np.ndarray, count: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the vectors that point where `query` does.

    Args:
      vectors: `[n, size]` float32; those with a value that is not finite are nobody's neighbours.
      query: `[size]` float32.
      count: how many to find, at least 1.

    Returns:
      Indices `[m]` int64 and cosine similarities `[m]` float32 in [-1, 1], the nearest first, of
      equals the earlier one; m is `count`, or less where there are fewer. What has no length is
      similar to nothing: 0.

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
    found = np.flatnonzero(similarities >= least)
    found = found[np.argsort(-similarities[found], kind="stable")][:count]
    return found, np.clip(similarities[found], -1, 1).astype(np.float32)
