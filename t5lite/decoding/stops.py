"""Stop texts, found in the text of the tokens, wherever tokens begin and end."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from t5lite.decoding.output import Output, align_right, insert_rows

WIDTH = 16  # bytes kept of a token
_NOTHING, _BREAK = (
    0xFE,
    0xFF,
)  # bytes that no UTF-8 text holds: no byte, and bytes that are left out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stops:
    """Texts that end a row, compared with the last bytes of its tokens.

    All shapes are known before any stop is, so that a request with stops compiles nothing.

    Args:
      token_bytes: `[2, vocab, WIDTH]` uint8, what each token adds to a text, aligned to the right:
        `[0]` after others, `[1]` as the first of a text; see `token_table`.
      texts: `[1 or rows, n, length]` int32, the stops in UTF-8, aligned to the right with -1 in
        front; all -1 for none.
      fresh: `[1 or rows]` bool, rows whose first token begins a text of its own.
    """

    token_bytes: jax.Array
    texts: jax.Array
    fresh: jax.Array

    def found(self, output: Output) -> Bool[Array, " rows"]:
        """Returns `[rows]` bool: rows whose last token completes a stop; prompts do not count.

        Missed are stops in the middle of a token of more than `WIDTH` bytes, and those in which
        tokens without text push the first byte out of the last `length` tokens.
        """
        rows, capacity = output.tokens.shape
        length = self.texts.shape[-1]
        count = min(length, capacity)  # a token has a byte at least
        places = jnp.arange(count, dtype=jnp.int32)[None] + (output.lengths - count)[:, None]
        tokens = jnp.take_along_axis(output.tokens, jnp.maximum(places, 0), axis=1)
        first = (places == 0) & self.fresh[:, None]
        text = self.token_bytes[first.astype(jnp.int32), tokens]  # [rows, count, WIDTH]
        text = jnp.where((places >= 0)[:, :, None], text, jnp.uint8(_NOTHING))
        text = align_right(text.reshape(rows, -1).astype(jnp.int32), _NOTHING)
        text = jnp.pad(text, ((0, 0), (length, 0)), constant_values=_NOTHING)
        # A stop ends within the last token: in one of the last WIDTH places.
        last = text[:, -(length + WIDTH - 1) :]
        starts = np.arange(WIDTH)[:, None] + np.arange(length)[None]
        windows = last[:, starts][:, :, None]  # [rows, WIDTH, 1, length]
        texts = self.texts[:, None]  # [rows, 1, n, length]
        same = jnp.all((windows == texts) | (texts < 0), axis=-1) & jnp.any(texts >= 0, axis=-1)
        return jnp.any(same, axis=(1, 2))

    def insert(self, rows: jax.Array, new: "Stops") -> "Stops":
        """Replaces whole rows; see `State.insert`."""
        more = max(0, self.texts.shape[-1] - new.texts.shape[-1])
        texts = jnp.pad(new.texts, ((0, 0), (0, 0), (more, 0)), constant_values=-1)
        some = jnp.any(jnp.asarray(new.texts) >= 0)  # batches without stops have an empty table
        return Stops(
            token_bytes=jnp.where(some, new.token_bytes, self.token_bytes),
            texts=insert_rows("stops", self.texts, rows, texts, fill=-1),
            fresh=insert_rows("fresh", self.fresh, rows, new.fresh),
        )


def token_table(
    tokens: Sequence[bytes], *, first: Sequence[bytes] | None = None, vocab: int | None = None
) -> np.ndarray:
    """Returns `Stops.token_bytes`.

    Args:
      tokens: what each id adds to a text, UTF-8 or part of it; b"" for nothing.
      first: what each id is as the first token of a text; None: the same.
      vocab: rows of the table; None for as many as there are tokens.
    """
    table = np.full((2, vocab or len(tokens), WIDTH), _NOTHING, np.uint8)
    for half, texts in zip(table, (tokens, tokens if first is None else first), strict=True):
        for row, text in zip(half, texts, strict=False):
            kept = text.replace(bytes([_NOTHING]), bytes([_BREAK]))
            if len(kept) > WIDTH:
                kept = bytes([_BREAK]) + kept[1 - WIDTH :]
            row[WIDTH - len(kept) :] = np.frombuffer(kept, np.uint8)
    return table


def stops_of(token_bytes: Any, *stops: bytes, fresh: bool = True) -> Stops:
    """Returns the stops of every row of a batch.

    Args:
      token_bytes: see `token_table`.
      *stops: in UTF-8, none empty.
      fresh: see `Stops`.
    """
    length = max(map(len, stops))
    texts = np.full((1, len(stops), length), -1, np.int32)
    for row, stop in zip(texts[0], stops, strict=True):
        row[length - len(stop) :] = np.frombuffer(stop, np.uint8)
    return Stops(jnp.asarray(token_bytes), jnp.asarray(texts), jnp.asarray([fresh]))


def can_occur(stop: bytes, tokens: Sequence[bytes]) -> bool:
    """Whether some sequence of tokens has a stop in its text; on the host."""
    reached = {0}  # bytes of the stop that the end of some sequence of tokens holds
    for token in tokens:
        if stop in token:
            return True
        reached |= {size for size in range(1, len(stop)) if token.endswith(stop[:size])}
    pieces = {token for token in tokens if token}
    for size in range(1, len(stop)):  # in rising order: each token only adds bytes
        if size in reached:
            for end in range(size + 1, len(stop)):
                if stop[size:end] in pieces:
                    reached.add(end)
            if any(token.startswith(stop[size:]) for token in pieces):
                return True
    return False
