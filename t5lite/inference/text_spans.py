"""Spans of a text: its words, tags joined to spans, and answers."""

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from t5lite.data.files.columns import OUTSIDE
from t5lite.inference.predictions import Name, TagSpan

Span = tuple[int, int]
"""The first character of a part of a text, and the character after it."""

_PREFIX = re.compile(r"([BIELSU])-(.+)", re.DOTALL)
# Scripts that put no spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Tag(NamedTuple):
    """The most probable tag of a word or token, and its span."""

    start: int
    end: int
    name: Name
    probability: float


def split_words(text: str) -> list[Span]:
    """Returns the words of a text, split at spaces and at punctuation around them:
    `(U.S.-based "firm"),` has `(`, `U.S.-based`, `"`, `firm`, `"`, `)` and `,`."""
    return [word for match in re.finditer(r"\S+", text) for word in _split(text, *match.span())]


def _split(text: str, start: int, end: int) -> Iterator[Span]:
    first, last = start, end
    while first < last and _is_punctuation(text[first]):
        first += 1
    while last > first and _is_punctuation(text[last - 1]):
        last -= 1
    yield from _runs(text, start, first)
    if first < last:
        yield first, last
    yield from _runs(text, last, end)


def _runs(text: str, start: int, end: int) -> Iterator[Span]:
    """Yields the runs of equal characters: an ellipsis is one word."""
    for _, run in itertools.groupby(range(start, end), key=lambda at: text[at]):
        characters = [*run]
        yield characters[0], characters[-1] + 1


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def without_spaces(text: str, words: Sequence[Span]) -> list[Span]:
    """Returns words split at the characters of scripts without spaces, which are words."""
    spans: list[Span] = []
    for start, end in words:
        at = start
        for match in _UNSPACED.finditer(text, start, end):
            spans += [(at, match.start())] * (at < match.start())
            spans.append(match.span())
            at = match.end()
        spans += [(at, end)] * (at < end)
    return spans


def tokens_of_words(words: Sequence[Span], offsets: Sequence[Span]) -> list[int]:
    """Returns each word's first token, which may begin at the space before it; -1 for none."""
    ends = [0, *(end for _, end in words)]
    begins = [start - (start > end) for (start, _), end in zip(words, ends, strict=False)]
    starts = [start for start, _ in offsets]
    chosen = []
    for begin, (_, end) in zip(begins, words, strict=True):
        token = bisect.bisect_left(starts, begin)
        if token == len(starts) or starts[token] >= end:  # the word before has its characters too
            token = next((at for at in range(token)[::-1] if offsets[at][1] > begin), -1)
        chosen.append(token)
    return chosen


def tags_at(
    spans: Sequence[Span], tokens: Sequence[int], logits: np.ndarray, names: Sequence[str]
) -> list[Tag]:
    """Returns the tags of words or tokens.

    Args:
      tokens: the row of `logits` of each span, -1 for none, which has no tag.
      logits: `[tokens, num_labels]` float32.
      names: of the labels; further labels are numbers.
    """
    probabilities = softmax(logits)
    tags = []
    for (start, end), token in zip(spans, tokens, strict=True):
        if 0 <= token < len(probabilities):
            label = int(probabilities[token].argmax())
            name = names[label] if label < len(names) else label
            tags.append(Tag(start, end, name, float(probabilities[token, label])))
    return tags


def joined(text: str, tags: Sequence[Tag], names: Sequence[str]) -> tuple[TagSpan, ...]:
    """Returns spans of neighbours with the same tag.

    `B-`, `S-` and `U-` begin a span, and so does any tag that does not continue the span before: an
    `I-PER` after `O` or after `B-LOC`. Without a label `O`, as in part-of-speech tagging, every
    word is a span; without names of labels, label 0 is outside of spans.
    """
    prefixed = any(name[:2] in ("B-", "I-") for name in names)
    outside: Name | None = OUTSIDE if OUTSIDE in names else None if names else 0
    spans: list[list[Tag]] = []
    before: tuple[str, Name] | None = None  # prefix and tag of the span that may continue
    for tag in tags:
        if tag.name == outside:
            before = None
            continue
        match = _PREFIX.fullmatch(str(tag.name)) if prefixed else None
        prefix, name = (match[1], match[2]) if match else ("", tag.name)
        continues = before is not None and before[1] == name and before[0] not in (*"ELSU",)
        if outside is None or not continues or prefix in (*"BSU",):
            spans.append([])
        spans[-1].append(tag._replace(name=name))
        before = prefix, name
    joined = (_span(text, span) for span in spans)
    return tuple(span for span in joined if span.text)  # not of white space alone


def _span(text: str, tags: Sequence[Tag]) -> TagSpan:
    start, end = trimmed(text, tags[0].start, tags[-1].end)
    mean = sum(tag.probability for tag in tags) / len(tags)
    return TagSpan(tags[0].name, start, end, text[start:end], mean)


def trimmed(text: str, start: int, end: int) -> Span:
    """Returns a span without the white space at its ends, which tokens may include."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, max(start, end - (len(inside) - len(inside.rstrip())))


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


class AnswerTokens(NamedTuple):
    """The first and the last token of an answer, and its probability."""

    first: int
    last: int
    probability: float


def likeliest(
    logits: np.ndarray, tokens: Sequence[int], *, max_length: int, count: int, no_answer: bool
) -> tuple[list[AnswerTokens], float | None]:
    """Returns the most probable answers, no two of which share a token.

    Args:
      logits: `[length, 2]` float32, of first and last tokens.
      tokens: neighbours that an answer may consist of; token 0 stands for no answer.
      max_length: most tokens of an answer.
      count: most answers.
    Returns: answers in descending order, ties by position and length; and the probability of no
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
    answers: list[AnswerTokens] = []
    while len(answers) < count and pairs.size and pairs.max() > 0:
        first, last = np.unravel_index(pairs.argmax(), pairs.shape)
        probability = float(pairs[first, last])
        answers.append(AnswerTokens(int(inside[first]), int(inside[last]), probability))
        pairs[: last + 1, first:] = 0  # all that share a token with it
    return answers, none
