"""Compares two specs value by value."""

from typing import Any, NamedTuple

from t5lite.models.spec import ModelSpec

_ABSENT = "absent"


class Difference(NamedTuple):
    """One value in which two specs differ.

    Attributes:
      path: to the value, such as `decoder.blocks.0.mlp.hidden`; a part's kind is its `.type`.
      old, new: the value as JSON; `"absent"` in a spec without that part.
    """

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.old} -> {self.new}"


def differences(old: ModelSpec, new: ModelSpec) -> list[Difference]:
    """Returns the values in which two specs differ, by path; initializers do not count."""
    new = new.replace(init=old.init)
    ours, theirs = _flat(old.to_json(), ""), _flat(new.to_json(), "")
    pairs = ((path, ours.get(path, _ABSENT), theirs.get(path, _ABSENT)) for path in ours | theirs)
    return sorted((Difference(*pair) for pair in pairs if pair[1] != pair[2]), key=lambda d: d.path)


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    prefix = f"{path}." if path else ""
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}").items()}
