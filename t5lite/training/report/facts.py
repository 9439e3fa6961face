"""What a run says of itself at its start, `run.json`: what no later file could tell."""

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from t5lite.training.writers import replace_text


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
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
) -> None:
    """Writes `run.json`, whole or not at all; call it on the first process alone.

    Args:
      folder: the model_dir.
      headline: one line: model, size, devices.
      data: what the run learns from, in a few lines.
      parameters: path with slashes, shape, and the axes' logical names of each array.
      examples: of the training data, as text.
      seed: of initialisation, data order and dropout.
      versions: library → version.
      started: seconds since 1970.
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
        "started": round(started, 3),
        "steps": steps,
        "tokens": tokens,
        "epochs": epochs,
    }
    target = epath.Path(folder).expanduser() / "run.json"
    replace_text(target, json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n")
