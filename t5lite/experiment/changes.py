"""Differences between the settings of a resumed run and those of its last start."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from t5lite.reporting.report import read_facts
from t5lite.text import shorten

_MOST = 8  # lines
_WIDTH = 60  # of a value
_FOLDERS = ("MODEL_DIR", "t5lite.train.model_dir")  # which may be moved


def changes(folder: epath.Path, *, config: str | None, facts: Mapping[str, Any]) -> list[str]:
    """Returns a line for each setting and version changed since a run was last started.

    Args:
      folder: of the run, with the `config.gin` and `run.json` of the last start.
      config: the operative gin text now; None: unknown.
      facts: the content of `run.json` now.
    """
    lines = []
    path = folder / "config.gin"
    if config is not None and path.exists():
        lines += changed_settings(path.read_text(), config)
    was = read_facts(folder)
    pairs = [(was.get("versions", {}), facts.get("versions", {}))]
    if config is None:  # a call from Python, which has no other record
        names = ("steps", "tokens", "epochs", "seed")
        pairs.insert(0, (was, {name: facts.get(name) for name in names}))
    lines += [
        f"{name}: {old[name]} → {value}"
        for old, new in pairs
        for name, value in new.items()
        if name in old and old[name] != value
    ]
    more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return [*lines[:_MOST], *more]


def changed_settings(was: str, now: str) -> list[str]:
    """Returns a line for each value that differs between two operative configurations.

    Callables of only one are named without values; parameters of only one are of another version.
    """
    old, new = settings(was), settings(now)
    lines = [
        f"{name}: {shorten(old[name], _WIDTH)} → {shorten(new[name], _WIDTH)}"
        for name in new
        if name in old and old[name] != new[name] and _resolved(old, name) != _resolved(new, name)
    ]
    used, using = _callables(old), _callables(new)
    lines += [f"{name} is used now" for name in using if name not in used]
    return lines + [f"{name} is no longer used" for name in used if name not in using]


def _resolved(values: Mapping[str, str], name: str) -> str:
    """Returns a value; for a macro, the macro's."""
    value = values[name]
    return values.get(value[1:], value) if value.startswith("%") else value


def _callables(values: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in values if "." in name))


def settings(text: str) -> dict[str, str]:
    """Returns the values of gin's operative text by name, each on one line."""
    values: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line[:1].isspace():  # a continuation
            values[name] += " " + line.strip()
        elif " = " in line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            values[name] = value.strip().removesuffix("\\").strip()
    return {name: value.strip() for name, value in values.items() if name not in _FOLDERS}
