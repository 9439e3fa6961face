"""Words of a text, and tags of words or tokens joined to spans."""

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from t5lite.data.files.columns import OUTSIDE
from t5lite.inference.predictions import Name, TagSpan

Place = tuple[int, int]
"""The first character of a part of a text, and the character after it."""

_PREFIX = re.compile(r"([BIELSU])-(.+)", re.DOTALL)
# Scripts that put no spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Tag(NamedTuple):
    """The likeliest tag of a word or of a token, with its probability, and where it stands."""

    start: int
    end: int
    name: Name
    probability: float


def split_words(text: str) -> list[Place]:
    """Returns the words of a text: between spaces, punctuation at their ends being words as well.

    In `(U.S.-based "firm"),` they are `(`, `U.S.-based`, `"`, `firm`, `"`, `)` and `,`.
    """
    return [place for match in re.finditer(r"\S+", text) for place in _split(text, *match.span())]


def _split(text: str, start: int, end: int) -> Iterator[Place]:
    first, last = start, end
    while first < last and _is_punctuation(text[first]):
        first += 1
    while last > first and _is_punctuation(text[last - 1]):
        last -= 1
    yield from _runs(text, start, first)
    if first < last:
        yield first, last
    yield from _runs(text, last, end)


def _runs(text: str, start: int, end: int) -> Iterator[Place]:
    """Yields the runs of equal characters: an ellipsis is one word."""
    for _, run in itertools.groupby(range(start, end), key=lambda at: text[at]):
        places = [*run]
        yield places[0], places[-1] + 1


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def without_spaces(text: str, words: Sequence[Place]) -> list[Place]:
    """Returns words cut at the characters of scripts without spaces, of which each is a word."""
    places: list[Place] = []
    for start, end in words:
        at = start
        for each in _UNSPACED.finditer(text, start, end):
            places += [(at, each.start())] * (at < each.start())
            places.append(each.span())
            at = each.end()
        places += [(at, end)] * (at < end)
    return places


def tokens_of_words(words: Sequence[Place], offsets: Sequence[Place]) -> list[int]:
    """Returns the token that stands for each word, -1 for none: its first, as in training.

    Args:
      words: in order.
      offsets: of the text's tokens; that of a word's first one may begin at the space before it.
    """
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
    places: Sequence[Place], tokens: Sequence[int], logits: np.ndarray, names: Sequence[str]
) -> list[Tag]:
    """Returns the tags of places in a text; those without a token have none.

    Args:
      places: of words, or of tokens.
      tokens: which of the rows of `logits` says each one's tag, -1 for none.
      logits: `[tokens, num_labels]` float32.
      names: of the labels; of further ones the numbers are their names.
    """
    shares = softmax(logits)
    tags = []
    for (start, end), token in zip(places, tokens, strict=True):
        if 0 <= token < len(shares):
            label = int(shares[token].argmax())
            name = names[label] if label < len(names) else label
            tags.append(Tag(start, end, name, float(shares[token, label])))
    return tags


def joined(text: str, tags: Sequence[Tag], names: Sequence[str]) -> tuple[TagSpan, ...]:
    """Returns spans of neighbours with the same tag.

    `B-`, `S-` and `U-` begin a span, and so does any tag that does not go on the span before: an
    `I-PER` after `O` or after `B-LOC` begins one as well. Where no label is `O`, parts of speech
    say, every word is a span.

    Args:
      text: in which they stand.
      tags: in order.
      names: of all labels; without names label 0 means nothing in particular.
    """
    prefixed = any(name[:2] in ("B-", "I-") for name in names)
    outside: Name | None = OUTSIDE if OUTSIDE in names else None if names else 0
    spans: list[list[Tag]] = []
    before: tuple[str, Name] | None = None  # prefix and tag of the last one, if it is in a span
    for tag in tags:
        if tag.name == outside:
            before = None
            continue
        match = _PREFIX.fullmatch(str(tag.name)) if prefixed else None
        prefix, name = (match[1], match[2]) if match else ("", tag.name)
        goes_on = before is not None and before[1] == name and before[0] not in (*"ELSU",)
        if outside is None or not goes_on or prefix in (*"BSU",):
            spans.append([])
        spans[-1].append(tag._replace(name=name))
        before = prefix, name
    made = (_span(text, span) for span in spans)
    return tuple(span for span in made if span.text)  # not of white space alone


def _span(text: str, tags: Sequence[Tag]) -> TagSpan:
    start, end = trimmed(text, tags[0].start, tags[-1].end)
    mean = sum(tag.probability for tag in tags) / len(tags)
    return TagSpan(tags[0].name, start, end, text[start:end], mean)


def trimmed(text: str, start: int, end: int) -> Place:
    """Returns a place without the white space at its ends, which tokens may hold."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, max(start, end - (len(inside) - len(inside.rstrip())))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis, float64."""
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
