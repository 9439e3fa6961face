"""The prompt format of a run's model: `prompts.json`."""

import dataclasses
import json
from typing import Any

from t5lite.data import Vocabulary
from t5lite.data.paths import as_path, read_json, write_changed
from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.objectives import PROMPTS, Prompts

FILE = "prompts.json"
_FORMAT = 1


def save_prompts(folder: Any, prompts: Prompts | None) -> None:
    """Writes the prompt format of a run's model, `prompts.json`, if any."""
    if prompts is not None:
        content = {"format": _FORMAT, **dataclasses.asdict(prompts)}
        write_changed(as_path(folder) / FILE, (json.dumps(content, indent=2) + "\n").encode())


def read_prompts(folder: Any, vocabulary: Vocabulary | None, *, topology: str) -> Prompts | None:
    """Returns the prompts of a run's model; None for an encoder or an unknown vocabulary.

    Folders of older runs have no `prompts.json` and are read as they were then: whole texts of a
    decoder end with EOS and are seen in both directions.

    Raises: InputError for a file that is damaged or of an unknown format.
    """
    path = as_path(folder) / FILE
    if topology == "encoder":
        return None
    if path.exists():
        prompts = read_json(path, _parsed, version=_FORMAT, key="format")
        if prompts.kind not in PROMPTS:
            raise InputError(
                f"{path} has kind {prompts.kind!r}; this version reads {', '.join(PROMPTS)}: "
                "upgrade t5lite"
            )
        return prompts
    if vocabulary is None:
        return None
    ended = Frame(after=(vocabulary.eos_id,))
    if topology == "decoder":
        return Prompts("continue", ended, ended, bidirectional=True)
    return Prompts("inputs", vocabulary.frame, ended)


def _parsed(content: dict[str, Any]) -> Prompts:
    inputs, targets = (
        Frame(*(tuple(map(int, content[name][side])) for side in ("before", "after")))
        for name in ("inputs", "targets")
    )
    return Prompts(content["kind"], inputs, targets, bool(content["bidirectional"]))
