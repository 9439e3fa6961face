"""The likeliest answers in a text, from the logits of their first and last tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from t5lite.inference.tagging import softmax


class AnswerPlace(NamedTuple):
    """The first and the last token of an answer, and its probability."""

    first: int
    last: int
    probability: float


def likeliest(
    logits: np.ndarray, tokens: Sequence[int], *, max_length: int, count: int, no_answer: bool
) -> tuple[list[AnswerPlace], float | None]:
    """Returns the most probable answers, no two of which share a token.

    Args:
      logits: `[length, 2]` float32.
      tokens: neighbours that an answer may consist of; token 0 stands for no answer.
      max_length: most tokens of an answer.
      count: most answers.
      no_answer: whether a text may have no answer.

    Returns:
      The most probable first, of equals the earlier and the shorter; and the probability of no
      answer, None without `no_answer`.

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.2 and §4.3.
    """
    inside = np.array([token for token in tokens if token > 0], np.int64)
    candidates = np.concatenate([[0] * no_answer, inside]).astype(np.int64)
    if not candidates.size:
        return [], None
    starts, ends = softmax(logits[candidates].T)
    none = float(starts[0] * ends[0]) if no_answer else None
    starts, ends = starts[no_answer:], ends[no_answer:]
    pairs = np.triu(np.outer(starts, ends)) - np.triu(np.outer(starts, ends), max_length)
    answers: list[AnswerPlace] = []
    while len(answers) < count and pairs.size and pairs.max() > 0:
        first, last = np.unravel_index(pairs.argmax(), pairs.shape)
        share = float(pairs[first, last])
        answers.append(AnswerPlace(int(inside[first]), int(inside[last]), share))
        pairs[: last + 1, first:] = 0  # whatever shares a token with it
    return answers, none
