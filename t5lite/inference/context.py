"""Text in context: the tokens of a text after another one, and the text of tokens."""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.data import Bytes, Vocabulary
from t5lite.inference.gaps import encode

_CONTEXT = 64  # tokens of a prompt that decide how the text after it begins
_LAST_WORDS = re.compile(r"( n| ')* \S*$")  # of which "n ' t" may become one
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def continuation(text: str, more: str, vocabulary: Vocabulary) -> list[int] | None:
    """Returns the ids of `more` after `text`; None if the vocabulary cannot express it there.

    They are the rest of encode(text + more) after encode(text). Where a token lies across the
    border, the ids are those that decode to `more` after the ids of `text`.
    """
    before, whole = encode(text, vocabulary), encode(text + more, vocabulary)
    if len(whole) > len(before) and whole[: len(before)] == before:
        return whole[len(before) :]
    alone = encode(more, vocabulary)
    candidates = [alone, alone[1:]]  # SentencePiece puts a space before a text
    for border in ("\n", "0", "a", "."):
        both, first = encode(border + more, vocabulary), encode(border, vocabulary)
        if both[: len(first)] == first:
            candidates.append(both[len(first) :])
    for ids in candidates:
        if ids and text_after(before, ids, vocabulary) == more:
            return ids
    return None


def split_pair(text: str, target: str, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """Returns the ids of a text and of a target that continues it: encode(text + target), split.

    The split is after encode(text) where the whole begins with it. Where a token lies across the
    border it is as in lm-evaluation-harness: white space at the end of the text is the target's,
    and the split at len(encode(text)); or if nothing were left of the target there, at the first
    token that encode(text) does not have.
    """
    before, whole = encode(text, vocabulary), encode(text + target, vocabulary)
    at = len(before)
    if whole[:at] != before:
        bare = encode(text.rstrip(), vocabulary)
        at = len(bare) if len(bare) < len(whole) else _common(bare, whole)
    return whole[:at], whole[at:]


def text_after(
    prompt: Sequence[int], new: Sequence[int] | np.ndarray, vocabulary: Vocabulary
) -> str:
    """Returns the text that `new` ids add to a prompt: decode(prompt + new) without decode(prompt).

    Args:
      prompt: ids; [] where the new ones begin a text of their own.
      new: ids after it.
      vocabulary: of both.
    """
    new = [int(token) for token in new]
    context = [int(token) for token in prompt[-_CONTEXT:]]
    if vocabulary.eos_id in context:  # where decoding would end
        last = len(context) - context[::-1].index(vocabulary.eos_id)
        context = context[last:]
    if not context:
        return vocabulary.decode(new)
    known, whole = vocabulary.decode(context), vocabulary.decode([*context, *new])
    if not whole.startswith(known):  # half of a character is whole now, or cleaned up
        return whole[_common(known, whole) :]
    return whole[len(known) :]


def _common(one: Sequence, other: Sequence) -> int:
    """Returns how many items two sequences begin with in common."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same)


def certain(text: str, stops: Sequence[str], *, cleans_up: bool = False) -> str:
    """Returns the text that further tokens cannot change: without partial characters and stops.

    Args:
      text: so far.
      stops: that end it.
      cleans_up: whether decoding removes spaces in front of "n't" and the like, which may join the
        last words.
    """
    text = text.rstrip(_UNKNOWN)
    if cleans_up:
        text = text[: found.start()] if (found := _LAST_WORDS.search(text)) else ""
    partial = (
        size
        for stop in stops
        for size in range(min(len(stop), len(text)), 0, -1)
        if text.endswith(stop[:size])
    )
    return text[: len(text) - max(partial, default=0)]


def without_last_bytes(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns tokens without the single bytes, `<0x0A>`, at their end, whose text is not certain.

    Decoders with byte fallback read bytes in a row together: one that is out of place makes
    replacement characters of all of them.
    """
    size = len(tokens)
    while size and _byte_of(vocabulary.piece(int(tokens[size - 1]))) is not None:
        size -= 1
    return tokens[:size]


def up_to_stop(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first of the stops."""
    found = (at for stop in stops if (at := text.find(stop)) >= 0)
    return text[: min(found, default=len(text))]


@functools.lru_cache(maxsize=8)
def token_texts(vocabulary: Any, *, alone: bool = False) -> list[bytes]:
    """Returns what each id adds to a text, in UTF-8, of bytes of characters those bytes.

    Args:
      vocabulary: of the ids.
      alone: whether it is the first of a text.
    """
    context = [] if alone else encode("a", vocabulary.targets)
    known, decode = vocabulary.decode(context), vocabulary.decode
    texts = (decode([*context, token]) for token in range(vocabulary.size))
    return [
        _bytes_of(vocabulary, text.removeprefix(known), token) for token, text in enumerate(texts)
    ]


def _bytes_of(vocabulary: Vocabulary, text: str, token: int) -> bytes:
    if isinstance(vocabulary, Bytes) and 3 <= token < 259:
        return bytes([token - 3])
    if _UNKNOWN not in text:
        return text.encode()
    piece = vocabulary.piece(token)
    if (byte := _byte_of(piece)) is not None:
        return bytes([byte])
    try:
        return bytes(_BYTES[character] for character in piece)
    except KeyError:
        return text.encode()


def _byte_of(piece: str) -> int | None:
    """Returns the byte that a piece of byte fallback is; None for another piece."""
    return int(piece[3:5], 16) if len(piece) == 6 and piece.startswith("<0x") else None


def _byte_characters() -> dict[str, int]:
    """Returns the byte of each character of GPT-2's byte-level pieces."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


_BYTES = _byte_characters()
