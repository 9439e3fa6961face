"""Sentinels in texts, `<extra_id_0>` and so on: encoded, and filled in."""

import re
from collections.abc import Sequence

import numpy as np

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.objectives import merge, spans

_SENTINEL = re.compile(r"<extra_id_(0|[1-9][0-9]*)>")


def encode(text: str, vocabulary: Vocabulary) -> list[int]:
    """Returns a text's ids without EOS; an InputError for `<extra_id_N>` without a sentinel."""
    num_sentinels = vocabulary.num_sentinels
    parts = _SENTINEL.split(text) if num_sentinels else [text]
    for index in parts[1::2]:
        if int(index) >= num_sentinels:
            raise InputError(
                f"<extra_id_{index}> in a text: the vocabulary has {num_sentinels} sentinels, "
                f"up to <extra_id_{num_sentinels - 1}>"
            )
    sentinels = [vocabulary.sentinel(int(index)) for index in parts[1::2]]
    if sentinels and vocabulary.encode(" <extra_id_0>") == [vocabulary.sentinel(0)]:
        # SentencePiece has them, as pieces that begin with a space.
        ids = vocabulary.encode(re.sub(rf"(?<!\s)({_SENTINEL.pattern})", r" \1", text))
    else:
        ids = vocabulary.encode(parts[0])
        for sentinel, part in zip(sentinels, parts[2::2], strict=True):
            ids += [sentinel, *vocabulary.encode(part)]
    return ids


def fill_in(inputs: Sequence[int], answer: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns `inputs` with sentinels replaced by their spans in `answer` `[n]`, if it has them."""
    filled = spans(answer, vocabulary)
    ids = [np.empty(0, np.int32)]
    for piece in merge(np.asarray(inputs), answer, vocabulary):
        if piece.span is None or piece.span in filled:
            ids.append(piece.tokens)
        else:
            ids.append(np.array([vocabulary.sentinel(piece.span)], np.int32))
    return np.concatenate(ids)
