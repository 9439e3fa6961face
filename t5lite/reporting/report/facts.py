"""`run.json`: facts of a run, recorded at its start."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from t5lite.reporting.files import replace_text

_NAME = "run.json"


def read_facts(folder: epath.PathLike) -> dict[str, Any]:
    """Returns the facts of the run in a folder; empty if it holds no run of t5lite."""
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
    parameters: Iterable[tuple[str, Sequence[int], Sequence[str | None]]],
    started: float,
    files: Sequence[str] = (),
    **facts: Any,
) -> None:
    """Writes `run.json`, whole or not at all; call it on the first process alone.

    Args:
      folder: the model_dir.
      parameters: path with slashes, shape, and logical axis names of each array.
      started: seconds since 1970.
      files: names in the folder that the run may overwrite.
      **facts: JSON-able: `headline` (model, size, devices), `data` (a few lines), `examples` of the
        training data as texts, `seed`, `versions` (library → version), and the run's end in
        `steps`, `tokens` or `epochs`.
    """
    rows = [
        [path, [int(size) for size in shape], int(np.prod(shape, dtype=np.int64)), [*axes]]
        for path, shape, axes in parameters
    ]
    facts |= {"parameters": rows, "files": [*files], "started": round(started, 3)}
    target = epath.Path(folder).expanduser() / _NAME
    replace_text(target, json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n")
