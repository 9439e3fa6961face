"""Filled gaps as text: the removed spans and the model's, for a terminal."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.text import shorten

_NO_SPACE = "\u00a0"  # keeps a gap on one line


class Span(NamedTuple):
    """One gap of a text: the removed text and the model's, None where it lacks the sentinel."""

    truth: str
    filled: str | None

    @property
    def right(self) -> bool:
        """Whether the model wrote exactly the removed text."""
        return self.filled == self.truth


class Sentence(NamedTuple):
    """A text with gaps; `texts` surround them: one before each, and one after the last."""

    texts: Sequence[str]
    spans: Sequence[Span]


class Filled(NamedTuple):
    """Counts of held-out gaps, and losses in nats a token of them.

    Args:
      exact_shuffled, shuffled: with the inputs of another text.
      unigram: of the unigram distribution of the training text.
    """

    num_gaps: int
    exact: int
    exact_shuffled: int
    loss: float
    unigram: float
    shuffled: float

    def metrics(self) -> dict[str, float]:
        return {
            "exact_match": self.exact / self.num_gaps,
            "exact_match_shuffled": self.exact_shuffled / self.num_gaps,
            "loss": self.loss,
            "unigram": self.unigram,
            "shuffled_inputs": self.shuffled,
            "margin": self.unigram - self.loss,
        }


def text_of(ids: np.ndarray, vocabulary: Any) -> str:
    """Returns ids from within a text, keeping the space before a first piece that starts a word."""
    if len(ids) == 0:
        return ""
    space = " " if vocabulary.piece(int(ids[0])).startswith("▁") else ""
    return space + vocabulary.decode(ids).lstrip(" " if space else "")


def format_filled(filled: Filled) -> str:
    metrics = filled.metrics()
    return (
        f"{filled.exact:,} of {filled.num_gaps:,} held-out gaps filled in exactly "
        f"({metrics['exact_match']:.1%}); with another text's input "
        f"{metrics['exact_match_shuffled']:.1%}\n"
        f"  nats a token: {filled.loss:.2f}; with another text's input {filled.shuffled:.2f}; "
        f"by frequency alone {filled.unigram:.2f}"
    )


def format_sentences(sentences: Sequence[Sentence], *, max_spans: int = 4, width: int = 100) -> str:
    """Returns texts with the model's words in their first gaps, each marked right or wrong."""
    lines = ["held-out text, its gaps filled in: [right ✓] or [wrong ✗ what stood there]"]
    for number, sentence in enumerate(sentences, start=1):
        text = _shown(sentence, min(max_spans, len(sentence.spans)), width=width)
        indent = f"{number:>3}  "
        wrapped = textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=" " * len(indent)
        )
        lines += ["", *(line.replace(_NO_SPACE, " ") for line in wrapped)]
    return "\n".join(lines)


def _shown(sentence: Sentence, num_shown: int, *, width: int) -> str:
    """Returns the text around the first gaps with the model's words in them, long stretches cut."""
    texts, spans = sentence
    text = _cut(texts[0], width // 2, keep="end")
    for gap, span in enumerate(spans[:num_shown], start=1):
        space = " " if span.truth.startswith(" ") else ""
        keep = "start" if gap == num_shown else "both"
        text += f"{space}{_marked(span, width // 4)}{_cut(texts[gap], width // 2, keep=keep)}"
    if num_shown < len(spans) and not text.rstrip().endswith("…"):
        text += " …"
    return text.strip()


def _marked(span: Span, width: int) -> str:
    """Returns the model's words in a gap, and whether they are right, on one line."""
    filled = "not filled" if span.filled is None else span.filled.strip() or "nothing"
    text = shorten(filled, width, keep="start")
    text += " ✓" if span.right else f" ✗ {shorten(span.truth, width, keep='start')}"
    return f"[{text}]".replace(" ", _NO_SPACE)


def _cut(text: str, width: int, *, keep: str) -> str:
    """Shortens, but keeps the spaces at the ends, which set words apart from gaps."""
    left = " " if text[:1].isspace() else ""
    right = " " if text[-1:].isspace() else ""
    return left + shorten(text, width, keep=keep) + right
