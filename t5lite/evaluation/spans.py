"""Masked spans as text: what was hidden, what the model wrote there, and how it is laid out."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.evaluation.text import shorten


class Span(NamedTuple):
    """One masked span of a sentence.

    Args:
      truth: the text that was masked.
      filled: what the model wrote; None where it never wrote the span's sentinel.
      candidates: (piece, probability) for the span's first token, likeliest first.
    """

    truth: str
    filled: str | None
    candidates: Sequence[tuple[str, float]]


class Sentence(NamedTuple):
    """A sentence with masked spans.

    Args:
      kept: the text around the spans: one part before each, and one after the last.
      spans: in order; one fewer than the parts.
    """

    kept: Sequence[str]
    spans: Sequence[Span]


class Losses(NamedTuple):
    """Cross-entropies in nats a masked token, sentinels and EOS left out.

    Args:
      model: the model's.
      unigram: of the unigram distribution of the training text.
      shuffled: the model's, each example with the inputs of another.
      num_tokens: how many tokens they are the means of.
      num_examples: how many examples these come from.
    """

    model: float
    unigram: float
    shuffled: float
    num_tokens: int
    num_examples: int


def text_of(ids: np.ndarray, vocabulary: Any) -> str:
    """Returns ids from within a text, keeping the space before a first piece that starts a word."""
    if len(ids) == 0:
        return ""
    space = " " if vocabulary.piece(int(ids[0])).startswith("▁") else ""
    return space + vocabulary.decode(ids).lstrip(" " if space else "")


def format_losses(step: int, losses: Losses, *, name: str) -> str:
    """Returns the table of losses.

    Args:
      step: of the state that was measured.
      losses: its losses.
      name: heads the table.
    """
    margin, harm = losses.unigram - losses.model, losses.shuffled - losses.model
    below = f"the model is {abs(margin):.3f} {'below' if margin >= 0 else 'ABOVE'}"
    used = f"{harm:.3f} worse than with its own" if harm > 0 else "NO worse: inputs are not used"
    return "\n".join(
        [
            f"{name} at step {step:,}: {losses.num_tokens:,} masked tokens of "
            f"{losses.num_examples:,} held-out examples",
            "  nats a token, sentinels and EOS left out",
            f"    model                         {losses.model:7.3f}",
            f"    unigrams of training text     {losses.unigram:7.3f}   {below}",
            f"    model, another's inputs       {losses.shuffled:7.3f}   {used}",
        ]
    )


def format_sentences(sentences: Sequence[Sentence], *, max_spans: int = 4, width: int = 100) -> str:
    """Returns sentences with numbered gaps, and a table of the gaps below each.

    Args:
      sentences: those to show.
      max_spans: the first so many spans of each are shown, with the text around them.
      width: of the terminal, at least 80.
    """
    lines = ["  held-out text, its [gaps] filled in greedily"]
    column = (width + 4) // 4
    head = f"       {'model':<{column}}{'truth':<{column}}candidates, if earlier gaps were true"
    for number, sentence in enumerate(sentences, start=1):
        shown = sentence.spans[:max_spans]
        text = _gapped(sentence, len(shown), width=width)
        wrapped = textwrap.wrap(
            text, width, initial_indent=f"{number:>3}  ", subsequent_indent="     "
        )
        lines += ["", *wrapped, head]
        for gap, span in enumerate(shown, start=1):
            filled = "(not reached)" if span.filled is None else span.filled.strip() or "(nothing)"
            cells = [shorten(text, column - 2, keep="start") for text in (filled, span.truth)]
            row = f"{f'[{gap}]':>6} {cells[0]:<{column}}{cells[1]:<{column}}"
            lines.append((row + _candidates(span.candidates, width - len(row))).rstrip())
    return "\n".join(lines)


def _gapped(sentence: Sentence, num_shown: int, *, width: int) -> str:
    """Returns the text around the first gaps, longer stretches cut."""
    kept, spans = sentence
    text = _cut(kept[0], width // 2, keep="end")
    for gap, span in enumerate(spans[:num_shown], start=1):
        word = " " if span.truth.startswith(" ") else ""
        keep = "start" if gap == num_shown else "both"
        text += f"{word}[{gap}]{_cut(kept[gap], width // 2, keep=keep)}"
    if num_shown < len(spans) and not text.rstrip().endswith("…"):
        text += " …"
    return " ".join(text.split())


def _cut(text: str, width: int, *, keep: str) -> str:
    """Shortens, but keeps the spaces at the ends, which set words apart from gaps."""
    left = " " if text[:1].isspace() else ""
    right = " " if text[-1:].isspace() else ""
    return left + shorten(text, width, keep=keep) + right


def _candidates(candidates: Sequence[tuple[str, float]], width: int) -> str:
    """Returns as many candidates as fit."""
    text = ""
    for piece, probability in candidates:
        more = f"{'  ' if text else ''}{piece} {probability:.0%}"
        if len(text) + len(more) > width:
            break
        text += more
    return text
