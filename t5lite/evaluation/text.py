"""Texts of callbacks: decoded ids, printed above the bar and kept by writers."""

from collections.abc import Iterable
from typing import Any

import numpy as np


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
