"""Resuming with changed settings: which arrays of a checkpoint a run reads."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from t5lite.errors import InputError
from t5lite.training.restore import check_same, differences


def resumption(
    folder: epath.Path,
    saved: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    was: str | None,
    now: str | None,
    extra_may_change: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Compares a checkpoint with the state of a run, both as name → leaf with shape and dtype.

    Parameters must agree in shape and dtype, the optimizer's state in all but floating-point types;
    otherwise an InputError says how to go on.

    Args:
      folder: the step folder.
      was: name of the optimizer that wrote the checkpoint; None if unknown.
      now: that of the run.
      extra_may_change: whether parts of `TrainState.extra` may come and go.

    Returns:
      name → leaf of the arrays to read, and a line for each change.
    """
    old, new = _extra_parts(saved), _extra_parts(expected)
    changed = {
        part
        for part in old | new
        if extra_may_change and differences(old.get(part, {}), new.get(part, {}))
    }

    def unchanged(leaves: Mapping[str, Any]) -> dict[str, Any]:
        return {name: leaf for name, leaf in leaves.items() if _extra_part(name) not in changed}

    saved, read = unchanged(saved), unchanged(expected)
    check_same(folder, _without_moments(saved), _without_moments(read))
    if misfits := differences(saved, read, cast=True):
        raise InputError(f"{_cause(folder, misfits, was, now)}\n{advice_for_new_run(folder)}")
    lines = []
    if was and now and was != now:
        lines.append(f"the run was trained with {was}, now {now}, which takes its state over")
    if num_cast := len(differences(saved, read)):
        lines.append(f"{num_cast} arrays of the optimizer's state change their dtype")
    # Checkpoints without an update scale are of versions that never lowered it.
    if fresh := sorted(changed & new.keys() - {"update_scale"}):
        lines.append(
            f"not in the checkpoint of step {folder.name}, initialised: {', '.join(fresh)}"
        )
    if dropped := sorted(changed - new.keys()):
        lines.append(f"no longer used, dropped at step {folder.name}: {', '.join(dropped)}")
    return read, lines


def advice_for_new_run(folder: epath.Path) -> str:
    """Returns the advice to start another run from a checkpoint's parameters alone."""
    return (
        "to start a new run from its parameters, set another model_dir and "
        f"t5lite.training.Checkpoints.restore_from = '{folder}'"
    )


def _cause(folder: epath.Path, lines: list[str], was: str | None, now: str | None) -> str:
    if was and now and was != now:
        return f"{folder}: the run was trained with {was}, now {now}, whose state is another"
    changed = f"a setting of {now}" if was and now else "the optimizer, or a setting of it,"
    more = [f"  and {len(lines) - 1} more"] if lines[1:] else []
    return "\n".join([f"{folder}: {changed} has changed, and with it its state:", lines[0], *more])


def _without_moments(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {n: leaf for n, leaf in leaves.items() if n.partition("/")[0] != "opt_state"}


def _extra_part(name: str) -> str | None:
    """Returns `part` of a name `extra/part/…`; None for other names."""
    head, _, rest = name.partition("/")
    return rest.partition("/")[0] if head == "extra" else None


def _extra_parts(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        if (part := _extra_part(name)) is not None:
            parts.setdefault(part, {})[name] = leaf
    return parts
