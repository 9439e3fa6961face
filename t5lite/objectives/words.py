"""Boundaries of words among the pieces of a vocabulary."""

import functools
from typing import Any

import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import Vocabulary

_STARTS = ("▁", "Ġ")  # SentencePiece's mark and byte-level BPE's
_GOES_ON = "##"  # WordPiece's


@functools.lru_cache(maxsize=4)
def word_starts(vocabulary: Vocabulary) -> np.ndarray:
    """Returns `[size]` bool: whether a word begins at each id's piece.

    Raises: InputError if the pieces do not mark beginnings.
    """
    pieces = [vocabulary.piece(i) for i in range(vocabulary.size)]
    if any(piece.startswith(_GOES_ON) for piece in pieces):
        return np.array([not piece.startswith(_GOES_ON) for piece in pieces])
    begins = np.array([piece.startswith(_STARTS) for piece in pieces])
    if not begins.any():
        raise InputError(
            "whole_word = True: no piece of the vocabulary starts with ##, ▁ or Ġ, so word "
            "boundaries are unknown; set it to False",
            field="whole_word",
        )
    return begins


@functools.lru_cache(maxsize=4)
def letters_or_digits(vocabulary: Vocabulary) -> np.ndarray:
    """Returns `[size]` bool: whether each id's piece is of letters and digits alone."""
    pieces = [vocabulary.piece(i).removeprefix(_GOES_ON) for i in range(vocabulary.size)]
    return np.array([piece.lstrip("".join(_STARTS)).isalnum() for piece in pieces])


def word_bounds(tokens: np.ndarray, vocabulary: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and the end position of each whole word, two arrays `[words]`.

    Words are of letters and digits, and do not overlap. The last one, which the tokens may cut,
    is left out, and so is a word after punctuation without a space.
    """
    wordlike = letters_or_digits(vocabulary)[tokens]
    begins = word_starts(vocabulary)[tokens] & wordlike
    firsts = np.flatnonzero(begins)
    ends = np.append(np.flatnonzero(begins | ~wordlike), len(tokens))
    after = ends[np.searchsorted(ends, firsts, side="right")]
    whole = after < len(tokens)
    return firsts[whole], after[whole]
