"""The last lines of a run: held-out metrics, folder, and commands to continue with."""

import shlex
from collections.abc import Mapping
from typing import Any

from etils import epath

from t5lite.models import Model
from t5lite.objectives import SpanCorruption
from t5lite.objectives.masked_lm import mask_of
from t5lite.text import metric_lines


def end_text(
    folder: epath.Path, metrics: Mapping[str, float], *, model: Model, objective: Any, data: Any
) -> str:
    """Returns the last lines of a run: held-out metrics, folder, and commands to continue with."""
    measured = ["held-out metrics", *metric_lines(metrics)] if metrics else []
    path = shlex.quote(str(folder))
    commands = [_use(path, model, objective, data.vocabulary())]
    if (folder / "config.gin").exists():
        commands.append(f"t5lite evaluate --gin_file={shlex.quote(str(folder / 'config.gin'))}")
    if (folder / "metrics.jsonl").exists():
        commands.append(f"t5lite report {path}")
    return "\n".join([*measured, f"the run is in {folder}; next:", *(f"  {c}" for c in commands)])


def _use(folder: str, model: Model, objective: Any, vocabulary: Any) -> str:
    head = objective.head or "lm"
    if head == "embedding":
        return f't5lite embed --model_dir={folder} "a text" "another text"'
    if head != "lm":
        return f't5lite predict --model_dir={folder} "a text"'
    if isinstance(objective, SpanCorruption):
        return f't5lite generate --model_dir={folder} --fill "a text with <extra_id_0> in it"'
    if model.topology == "encoder" and vocabulary is not None:
        gap = vocabulary.piece(mask_of(vocabulary))
        return f't5lite generate --model_dir={folder} "a text with {gap} in it"'
    return f't5lite generate --model_dir={folder} "a text"'
