"""Differences between the settings of a resumed run and those it was started with."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from t5lite.reporting.report import read_facts
from t5lite.text import shorten

_MOST = 8  # lines
_WIDTH = 60  # of a value
_OF_PLACE = ("MODEL_DIR", "t5lite.train.model_dir")  # a folder may be moved


def changes(folder: epath.Path, *, config: str | None, facts: Mapping[str, Any]) -> list[str]:
    """Returns a line for each setting and version that has changed since a run was last started.

    Args:
      folder: of the run; `config.gin` and `run.json` are what was.
      config: gin text, operative, of all that is; None: it is not known.
      facts: what `run.json` will say.
    """
    lines = []
    path = folder / "config.gin"
    if config is not None and path.exists():
        lines += changed_settings(path.read_text(), config)
    was, now = read_facts(folder), facts
    if config is None:  # a call from Python, of which little is written down
        names = ("steps", "tokens", "epochs", "seed")
        lines += [
            f"{name}: {was[name]} → {now[name]}"
            for name in names
            if name in was and was[name] != now.get(name)
        ]
    before, after = was.get("versions", {}), now.get("versions", {})
    lines += [
        f"{name}: {before[name]} → {version}"
        for name, version in after.items()
        if name in before and before[name] != version
    ]
    more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return [*lines[:_MOST], *more]


def changed_settings(was: str, now: str) -> list[str]:
    """Returns a line for each value that differs between two operative configurations.

    Of what only one of them uses, the name is enough. A parameter that only one of them has, of
    what both use, is one that came or went with a version.
    """
    old, new = settings(was), settings(now)
    lines = [
        f"{name}: {_short(old[name])} → {_short(new[name])}"
        for name in new
        if name in old and old[name] != new[name] and _meant(old, name) != _meant(new, name)
    ]
    used, using = _callables(old), _callables(new)
    lines += [f"{name} is used now" for name in using if name not in used]
    return lines + [f"{name} is no longer used" for name in used if name not in using]


def _meant(values: Mapping[str, str], name: str) -> str:
    """Returns a value, or the macro's that it names."""
    value = values[name]
    return values.get(value[1:], value) if value.startswith("%") else value


def _callables(values: Mapping[str, str]) -> list[str]:
    """Returns what has parameters, in order; macros have none."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in values if "." in name))


def settings(text: str) -> dict[str, str]:
    """Returns name → value, as written but on one line, of a configuration that gin wrote."""
    values: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line[:1].isspace():  # goes on
            values[name] += " " + line.strip()
        elif " = " in line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            values[name] = value.strip().removesuffix("\\").strip()
    return {name: value.strip() for name, value in values.items() if name not in _OF_PLACE}


def _short(value: str) -> str:
    return shorten(value, _WIDTH)
