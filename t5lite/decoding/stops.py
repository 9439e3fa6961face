"""Stop texts, matched against the text of the tokens, whatever their boundaries."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from t5lite.decoding.output import Output, Rows, align_right, filled, shared

WIDTH = 16  # bytes stored of a token
_PADDING, _GAP = 0xFE, 0xFF  # bytes of no UTF-8 text: no byte, and bytes that are left out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stops(Rows):
    """Texts that end a row, compared with the last bytes of its tokens; of no influence on shapes.

    Args:
      token_bytes: `[2, vocab, WIDTH]` uint8, the text of each token, aligned to the right: `[0]`
        after other tokens, `[1]` as the first of a text; see `token_table`.
      texts: `[1 or rows, n, length]` int32, the stops in UTF-8, aligned to the right with -1 in
        front; all -1 for none.
      fresh: `[1 or rows]` bool, rows whose first token begins a new text.
    """

    token_bytes: jax.Array = shared()
    texts: jax.Array = filled(-1)
    fresh: jax.Array = filled(0)

    def completed(self, output: Output) -> Bool[Array, " rows"]:
        """Returns `[rows]` bool: rows whose last token completes a stop, prompts excluded.

        Misses stops inside a token of more than `WIDTH` bytes, and stops whose first byte is before
        the last `length` tokens, some of which have no text.
        """
        rows, capacity = output.tokens.shape
        length = self.texts.shape[-1]
        count = min(length, capacity)  # a token has a byte at least
        positions = jnp.arange(count, dtype=jnp.int32)[None] + (output.lengths - count)[:, None]
        tokens = jnp.take_along_axis(output.tokens, jnp.maximum(positions, 0), axis=1)
        first = (positions == 0) & self.fresh[:, None]
        text = self.token_bytes[first.astype(jnp.int32), tokens]  # [rows, count, WIDTH]
        text = jnp.where((positions >= 0)[:, :, None], text, jnp.uint8(_PADDING))
        text = align_right(text.reshape(rows, -1).astype(jnp.int32), _PADDING)
        text = jnp.pad(text, ((0, 0), (length, 0)), constant_values=_PADDING)
        # A stop ends within the last token: at one of the last WIDTH positions.
        last = text[:, -(length + WIDTH - 1) :]
        starts = np.arange(WIDTH)[:, None] + np.arange(length)[None]
        windows = last[:, starts][:, :, None]  # [rows, WIDTH, 1, length]
        texts = self.texts[:, None]  # [rows, 1, n, length]
        same = jnp.all((windows == texts) | (texts < 0), axis=-1) & jnp.any(texts >= 0, axis=-1)
        return jnp.any(same, axis=(1, 2))

    def insert(self, rows: jax.Array, new: "Stops") -> "Stops":
        length = max(self.texts.shape[-1], new.texts.shape[-1])
        texts = jnp.pad(
            jnp.asarray(new.texts),
            ((0, 0), (0, 0), (length - new.texts.shape[-1], 0)),
            constant_values=-1,
        )
        some = jnp.any(texts >= 0)  # batches without stops have an empty table
        table = jnp.where(some, new.token_bytes, self.token_bytes)
        old = dataclasses.replace(self, token_bytes=table)
        return Rows.insert(old, rows, dataclasses.replace(new, texts=texts))


def token_table(
    tokens: Sequence[bytes], *, first: Sequence[bytes] | None = None, vocab: int | None = None
) -> np.ndarray:
    """Returns `Stops.token_bytes`.

    Args:
      tokens: the text of each id in UTF-8, or part of a character; b"" for none.
      first: of each id as the first of a text; None: the same.
      vocab: rows of the table; None for `len(tokens)`.
    """
    table = np.full((2, vocab or len(tokens), WIDTH), _PADDING, np.uint8)
    for half, texts in zip(table, (tokens, tokens if first is None else first), strict=True):
        for row, text in zip(half, texts, strict=False):
            stored = text.replace(bytes([_PADDING]), bytes([_GAP]))
            if len(stored) > WIDTH:
                stored = bytes([_GAP]) + stored[1 - WIDTH :]
            row[WIDTH - len(stored) :] = np.frombuffer(stored, np.uint8)
    return table


def stops_of(token_bytes: Any, *stops: bytes, fresh: bool = True) -> Stops:
    """Returns the stops of all rows of a batch, nonempty texts in UTF-8; see `Stops`."""
    length = max(map(len, stops))
    texts = np.full((1, len(stops), length), -1, np.int32)
    for row, stop in zip(texts[0], stops, strict=True):
        row[length - len(stop) :] = np.frombuffer(stop, np.uint8)
    return Stops(jnp.asarray(token_bytes), jnp.asarray(texts), jnp.asarray([fresh]))


def can_occur(stop: bytes, tokens: Sequence[bytes]) -> bool:
    """Whether the text of some sequence of tokens has a stop in it; on the host."""
    reached = {0}  # bytes of the stop that some sequence of tokens ends with
    for token in tokens:
        if stop in token:
            return True
        reached |= {size for size in range(1, len(stop)) if token.endswith(stop[:size])}
    pieces = {token for token in tokens if token}
    for size in range(1, len(stop)):  # ascending: each token adds bytes
        if size in reached:
            for end in range(size + 1, len(stop)):
                if stop[size:end] in pieces:
                    reached.add(end)
            if any(token.startswith(stop[size:]) for token in pieces):
                return True
    return False
