"""Text as a person reads it in a terminal, and as writers keep it."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def shorten(text: str, width: int, *, keep: str = "both") -> str:
    """Returns `text` on one line, at most `width` characters, an ellipsis for what is left out.

    Args:
      text: any; runs of white space become one space.
      width: at least 5.
      keep: "start", "end" or "both" ends of it, in whole words where there are any.
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    if keep == "start":
        return _head(text, width - 2) + " …"
    if keep == "end":
        return "… " + _head(text[::-1], width - 2)[::-1]
    tail = (width - 3) // 2
    return f"{_head(text, width - 3 - tail)} … {_head(text[::-1], tail)[::-1]}"


def _head(text: str, width: int) -> str:
    """Returns the first words that fit, or as much of the first word as does."""
    whole, _, _ = text[: width + 1].rpartition(" ")
    return whole.rstrip() or text[:width]


def readable(tokens: Iterable[int], vocabulary: Any | None, *, eos_id: int = 1) -> str:
    """Returns ids up to the EOS as text, or as numbers where there is no vocabulary."""
    ids = np.asarray(list(tokens), np.int32)
    if vocabulary is not None:
        return vocabulary.decode(ids)
    ends = np.flatnonzero(ids == eos_id)
    ids = ids[: ends[0]] if len(ends) else ids
    return " ".join(str(token) for token in ids if token != 0)


def show(run: Any, step: int, *, name: str, text: str) -> None:
    """Prints text above the progress bar and hands it to each writer that takes text."""
    run.say(text)
    run.writers.text(step, name, text)
