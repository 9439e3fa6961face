"""`run.json`: facts of a run, recorded at its start."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from t5lite.reporting.files import replace_text

_NAME = "run.json"


def read_facts(folder: epath.PathLike) -> dict[str, Any]:
    """Returns the facts of the run in a folder; empty if no run of t5lite was begun there."""
    path = epath.Path(folder).expanduser() / _NAME
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    complete = isinstance(facts, dict) and {"headline", "parameters", "versions"} <= facts.keys()
    return facts if complete else {}


def describe_run(
    folder: epath.PathLike,
    *,
    headline: str,
    data: str,
    parameters: Iterable[tuple[str, Sequence[int], Sequence[str | None]]],
    examples: Sequence[str],
    seed: int,
    versions: Mapping[str, str],
    started: float,
    files: Sequence[str] = (),
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
) -> None:
    """Writes `run.json`, whole or not at all; call it on the first process alone.

    Args:
      folder: the model_dir.
      headline: one line: model, size, devices.
      data: a description of the training data, a few lines.
      parameters: path with slashes, shape, and the axes' logical names of each array.
      examples: of the training data, as text.
      seed: of initialisation, data order and dropout.
      versions: library → version.
      started: seconds since 1970.
      files: names in the folder that are the run's own, which it may overwrite.
      steps: where the run ends, if it is that which ends it; so too `tokens` and `epochs`.
    """
    rows = [
        [path, [int(size) for size in shape], int(np.prod(shape, dtype=np.int64)), [*axes]]
        for path, shape, axes in parameters
    ]
    facts = {
        "headline": headline,
        "data": data,
        "parameters": rows,
        "examples": [*examples],
        "seed": seed,
        "versions": dict(versions),
        "files": [*files],
        "started": round(started, 3),
        "steps": steps,
        "tokens": tokens,
        "epochs": epochs,
    }
    target = epath.Path(folder).expanduser() / _NAME
    replace_text(target, json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n")
