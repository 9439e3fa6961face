"""Answers: generated rows as text, with log-probabilities and a finish reason."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.data import Vocabulary
from t5lite.decoding import Generated
from t5lite.inference.context import text_after, up_to_stop
from t5lite.inference.gaps import fill_in
from t5lite.inference.request import Request


class Answer(NamedTuple):
    """A generated answer.

    Attributes:
      text: up to the EOS or the first stop.
      tokens: `[n]` ids, including the EOS, or the ones that complete the stop.
      log_probability: the sum of `token_log_probabilities`.
      score: the ranking of beam search; otherwise the log-probability.
      token_log_probabilities: `[n]` float32 in nats, under the model: before penalties, temperature
        and filters.
      policy_log_probabilities: `[n]` float32 in nats, under the distribution that tokens were drawn
        from, after all of these; 0 for greedy tokens. None for beam search and filled gaps.
      finish_reason: "eos", "stop" (a text), "choice" (a complete one of `choices`) or "length".
      top: for each token, the model's most probable tokens with their log-probabilities; () without
        `num_log_probabilities`.
    """

    text: str
    tokens: np.ndarray
    log_probability: float
    score: float
    token_log_probabilities: np.ndarray
    policy_log_probabilities: np.ndarray | None = None
    finish_reason: str = "length"
    top: Sequence[dict[int, float]] = ()


def answer_of(request: Request, generated: Any, row: int, vocabulary: Vocabulary | None) -> Answer:
    """Returns the answer in a row of `Generated` or `Beams` on the host; no vocabulary, no text."""
    tokens, gains = generated.tokens[row], generated.token_log_probabilities[row]
    length = _length(request, tokens[: generated.lengths[row]], vocabulary)
    if length < generated.lengths[row]:
        gains = gains[:length]
    total = float(gains.sum())  # NaN also if a search ended without tokens
    tokens, gains = tokens[:length], gains[:length]
    policy: Any = None
    top: list[dict[int, float]] = []
    score = total
    if isinstance(generated, Generated):
        policy = generated.policy_log_probabilities[row, :length]
        count, best = request.options.num_log_probabilities, generated.top
        if best is not None and count:
            arrays = (best.tokens, best.log_probabilities)
            pairs = zip(*(array[row, :length, :count].tolist() for array in arrays), strict=True)
            top = [dict(zip(ids, values, strict=True)) for ids, values in pairs]
    else:
        score = float(generated.scores[row])
    text, reason = text_of(request, tokens, vocabulary), reason_of(request, tokens, vocabulary)
    return Answer(text, tokens, total, score, gains, policy, reason, top)


def text_of(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> str:
    """Returns the text of generated ids, without the EOS, up to the first stop."""
    if vocabulary is None:
        return ""
    if request.fill:
        return vocabulary.decode(fill_in(request.ids, tokens, vocabulary))
    return up_to_stop(_whole_text(request, tokens, vocabulary), request.options.stop)


def reason_of(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> str:
    """Returns the finish reason of generated ids; see `Answer`."""
    if request.choices:
        return "choice" if [*map(int, tokens)] in [[*ids] for ids in request.choices] else "length"
    if tokens.size and int(tokens[-1]) in request.rules.eos_ids:
        return "eos"
    return "stop" if _has_stop(request, tokens, vocabulary) else "length"


def _whole_text(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> str:
    if vocabulary is None:
        return ""
    if tokens.size and int(tokens[-1]) in request.rules.eos_ids:
        tokens = tokens[:-1]
    return text_after(request.ids if request.continues else [], tokens, vocabulary)


def _has_stop(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> bool:
    stops = request.options.stop
    text = _whole_text(request, tokens, vocabulary) if stops else ""
    return any(stop in text for stop in stops)


def _length(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> int:
    """Returns the number of tokens up to the one that completes the first stop, where the loop ends
    but for text that decoding cleans up and tokens longer than `decoding.stops.WIDTH` bytes."""
    count = len(tokens)
    if not _has_stop(request, tokens[: count - 1], vocabulary):
        return count
    low, high = 0, count - 1  # without a stop, with one
    while high - low > 1:
        middle = (low + high) // 2
        stops = _has_stop(request, tokens[:middle], vocabulary)
        low, high = (low, middle) if stops else (middle, high)
    return high


def broken(answers: Sequence[Answer]) -> bool:
    """Whether some numbers are NaN or infinite."""
    return any(math.isnan(answer.log_probability) for answer in answers)
