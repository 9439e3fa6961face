"""Answers: the rows that a model generated, as text with log-probabilities and a reason to end."""

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
    """What a model generated.

    Args:
      text: up to the EOS or the first stop.
      tokens: `[n]` ids, the EOS or what completed the stop included.
      log_probability: their sum in nats, under the model: before penalties, temperature and
        filters.
      score: of beam search, by which answers are ranked; otherwise the log-probability.
      token_log_probabilities: `[n]` float32 in nats, under the model.
      policy_log_probabilities: `[n]` float32 in nats, under the distribution that tokens were drawn
        from, after all of those; 0 for greedy tokens. None of beam search and of filled gaps.
      finish_reason: "eos", "stop" (a stop text), "choice" (a whole one of `choices`) or "length".
      top: for each token, the model's most probable tokens there with their log-probabilities;
        () unless the options ask for them.
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
    """Returns a row's answer.

    Args:
      request: of the row.
      generated: `Generated` or `Beams`, host arrays.
      row: of them.
      vocabulary: of the ids; None: without a text.
    """
    tokens, gains = generated.tokens[row], generated.token_log_probabilities[row]
    length = _length(request, tokens[: generated.lengths[row]], vocabulary)
    if length < generated.lengths[row]:
        gains = gains[:length]
    total = float(gains.sum())  # NaN also where a search ended without tokens
    tokens, gains = tokens[:length], gains[:length]
    policy: Any = None
    top: list[dict[int, float]] = []
    if isinstance(generated, Generated):
        policy, best = generated.policy_log_probabilities[row, : len(tokens)], generated.top
        count = request.options.num_log_probabilities
        if best is not None and count:
            rows = zip(best.tokens[row], best.log_probabilities[row], strict=True)
            pairs = ((ids[:count], values[:count]) for ids, values in rows)
            top = [
                dict(zip(map(int, ids), map(float, values), strict=True)) for ids, values in pairs
            ]
    score = total if isinstance(generated, Generated) else float(generated.scores[row])
    text, reason = text_of(request, tokens, vocabulary), reason_of(request, tokens, vocabulary)
    return Answer(text, tokens, total, score, gains, policy, reason, top[: len(tokens)])


def text_of(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> str:
    """Returns the text of generated ids, without the EOS and what follows the first stop."""
    if vocabulary is None:
        return ""
    if request.fill:
        return vocabulary.decode(fill_in(request.ids, tokens, vocabulary))
    return up_to_stop(_whole_text(request, tokens, vocabulary), request.options.stop)


def reason_of(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> str:
    """Returns why generated ids end where they do; see `Answer`."""
    if request.choices:
        return "choice" if [*map(int, tokens)] in [[*ids] for ids in request.choices] else "length"
    if tokens.size and int(tokens[-1]) in request.rules.eos_ids:
        return "eos"
    text = _whole_text(request, tokens, vocabulary) if request.options.stop else ""
    return "stop" if any(stop in text for stop in request.options.stop) else "length"


def _whole_text(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> str:
    if vocabulary is None:
        return ""
    if tokens.size and int(tokens[-1]) in request.rules.eos_ids:
        tokens = tokens[:-1]
    return text_after(request.ids if request.continues else [], tokens, vocabulary)


def _length(request: Request, tokens: np.ndarray, vocabulary: Vocabulary | None) -> int:
    """Returns how many tokens there are up to the one that completes the first stop.

    The compiled loop ends a row there, but for what it cannot see: text that decoding cleans up,
    and tokens longer than `decoding.stops.WIDTH` bytes.
    """

    def stops(count: int) -> bool:
        text = _whole_text(request, tokens[:count], vocabulary)
        return any(stop in text for stop in request.options.stop)

    count = len(tokens)
    if not request.options.stop or not stops(count - 1):
        return count
    low, high = 0, count - 1  # without a stop, with one
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if stops(middle) else (middle, high)
    return high


def broken(answers: Sequence[Answer]) -> bool:
    """Whether some numbers were NaN or infinite."""
    return any(math.isnan(answer.log_probability) for answer in answers)
