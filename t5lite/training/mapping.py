"""Rules that map a model's parameter names to those of a checkpoint; see `load_params`."""

import difflib
import re
from collections.abc import Iterable, Sequence

from t5lite.errors import InputError

Rule = tuple[str | None, str | None]
_SHOWN = 6  # names in a message


def check_mapping(mapping: Sequence[Rule]) -> None:
    """Raises an InputError unless every rule is a pair that `load_params` can use."""
    for rule in mapping:
        pair = isinstance(rule, Sequence) and not isinstance(rule, str) and len(rule) == 2
        sides = [side for side in rule if side is not None] if pair else []
        if not sides or not all(isinstance(side, str) for side in sides):
            raise InputError(
                f"Checkpoints.restore_mapping: {rule!r} must be a pair of a pattern of the model's "
                "names and a name in the checkpoint, of which one may be None",
                field="Checkpoints.restore_mapping",
            )
        try:
            re.compile(sides[0])
        except re.error as error:
            raise InputError(
                f"Checkpoints.restore_mapping: {sides[0]!r} is not a regular expression: {error}",
                field="Checkpoints.restore_mapping",
            ) from error


def match(
    expected: Iterable[str], saved: Iterable[str], mapping: Sequence[Rule], *, label: str
) -> dict[str, str]:
    """Returns expected name → saved name of all restored parameters; see `load_params`.

    Raises:
      InputError: a name on either side is unaccounted for, or a rule matches no name; `label`
        names the checkpoint there.
    """
    expected, saved = list(expected), set(saved)
    targets = {name: source_of(name, mapping) for name in expected}
    sources = {name: source for name, source in targets.items() if source is not None}
    ignored = [pattern for side, pattern in mapping if side is None and pattern is not None]
    missing = [
        (name if source == name else f"{name} (as {source})") + nearest(source, saved)
        for name, source in sources.items()
        if source not in saved
    ]
    unused = [
        name + nearest(name, targets)
        for name in sorted(saved.difference(sources.values()))
        if not any(re.fullmatch(pattern, name) for pattern in ignored)
    ]
    idle = [rule for rule in mapping if not _matches(rule, expected, saved)]
    if missing or unused or idle:
        lines = [f"Checkpoints.restore_mapping: names do not fit the checkpoint {label}"]
        if idle:
            rules = ", ".join(map(str, idle))
            lines += [f"Checkpoints.restore_mapping, rules that match no name: {rules}"]
        lines += [f"missing in the checkpoint: {_listed(missing)}"] if missing else []
        lines += [f"missing in the model: {_listed(unused)}"] if unused else []
        lines += [
            "Checkpoints.restore_mapping takes pairs of patterns: "
            '("model", "checkpoint"), ("model", None) or (None, "checkpoint")'
        ]
        raise InputError("\n".join(lines), field="Checkpoints.restore_mapping")
    return sources


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _matches(rule: Rule, expected: Iterable[str], saved: Iterable[str]) -> bool:
    """Whether a rule matches any name: of the saved ones if its first side is None."""
    side, names = (rule[1], saved) if rule[0] is None else (rule[0], expected)
    return any(re.fullmatch(side or "", name) for name in names)


def source_of(name: str, mapping: Sequence[Rule]) -> str | None:
    """Returns the saved name that an expected one is read from; None if it is not restored."""
    for pattern, replacement in mapping:
        if pattern is not None and (match := re.fullmatch(pattern, name)):
            return None if replacement is None else match.expand(replacement)
    return name


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ` (nearest: …)`, or nothing if no name is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (nearest: {matches[0]})" if matches else ""
