"""Text in context: the tokens of a text after another one, and the text of tokens."""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.data import Bytes, Vocabulary
from t5lite.inference.gaps import encode

_CONTEXT = 64  # tokens of a prompt that affect the start of the text after it
_LAST_WORDS = re.compile(r"( n| ')* \S*$")  # "n ' t" may become one word
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def continuation(text: str, more: str, vocabulary: Vocabulary) -> list[int] | None:
    """Returns the ids of `more` after `text`: the rest of encode(text + more) after encode(text);
    or, if a token lies across the border, ids that decode to `more` there; None if there are none.
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

    The split is after encode(text) if the whole begins with it. If a token lies across the border,
    it is as in lm-evaluation-harness: white space at the end of the text is the target's, and the
    split at len(encode(text)); for an empty target, at the first token that encode(text) lacks.
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
    """Returns the text that `new` ids add: decode(prompt + new) without decode(prompt)."""
    new = [int(token) for token in new]
    context = [int(token) for token in prompt[-_CONTEXT:]]
    if vocabulary.eos_id in context:  # decoding would end there
        last = len(context) - context[::-1].index(vocabulary.eos_id)
        context = context[last:]
    if not context:
        return vocabulary.decode(new)
    before, whole = vocabulary.decode(context), vocabulary.decode([*context, *new])
    # The end of `before` may change: half of a character is complete, or spaces are cleaned up.
    return whole[_common(before, whole) :]


def _common(one: Sequence, two: Sequence) -> int:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))
    return sum(1 for _ in same)


def certain(text: str, stops: Sequence[str], *, cleans_up: bool = False) -> str:
    """Returns the part of a text that further tokens cannot change: no partial characters or stops,
    and if decoding `cleans_up` (spaces before "n't" and the like), no last words."""
    text = text.rstrip(_UNKNOWN)
    if cleans_up:
        text = text[: match.start()] if (match := _LAST_WORDS.search(text)) else ""
    begins = [stop[:size] for stop in stops for size in range(1, len(stop) + 1)]
    partial = max((len(begin) for begin in begins if text.endswith(begin)), default=0)
    return text[: len(text) - partial]


def without_last_bytes(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns tokens without the single bytes, `<0x0A>`, at their end: decoding turns a sequence of
    bytes with an invalid one into replacement characters."""
    size = len(tokens)
    while size and _byte_of(vocabulary.piece(int(tokens[size - 1]))) is not None:
        size -= 1
    return tokens[:size]


def up_to_stop(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first of the stops."""
    starts = (start for stop in stops if (start := text.find(stop)) >= 0)
    return text[: min(starts, default=len(text))]


@functools.lru_cache(maxsize=8)
def token_texts(vocabulary: Any, *, alone: bool = False) -> list[bytes]:
    """Returns the bytes that each id adds to a text in UTF-8; `alone`: as its first token."""
    context = [] if alone else encode("a", vocabulary.targets)
    before, decode = vocabulary.decode(context), vocabulary.decode
    texts = (decode([*context, token]) for token in range(vocabulary.size))
    return [
        _bytes_of(vocabulary, text.removeprefix(before), token) for token, text in enumerate(texts)
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
    return int(piece[3:5], 16) if len(piece) == 6 and piece.startswith("<0x") else None


def _byte_characters() -> dict[str, int]:
    """Returns the byte of each character of GPT-2's byte-level pieces."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    characters = {chr(256 + index): byte for index, byte in enumerate(rest)}
    return {chr(byte): byte for byte in plain} | characters


_BYTES = _byte_characters()
