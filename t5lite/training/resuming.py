"""Resuming with changed settings: which arrays of the checkpoint a run takes over."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from t5lite.errors import InputError
from t5lite.training.restore import check_same, differences

_EXTRA = "extra/"


class Plan(NamedTuple):
    """The arrays to read, and the other changes of a state.

    Args:
      read: name → leaf, of the arrays that are read.
      fresh: parts of `TrainState.extra` that the checkpoint lacks, which start anew.
      dropped: parts of it that the run has no use for.
      num_cast: arrays of the optimizer's state whose floating-point type has changed.
      optimizers: the names of the one before and the one now, where they differ.
    """

    read: dict[str, Any]
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    num_cast: int = 0
    optimizers: tuple[str, str] | None = None

    def says(self, step: int) -> list[str]:
        """Returns a line for each change."""
        lines = []
        if self.optimizers:
            was, now = self.optimizers
            lines.append(f"the run was trained with {was}, now {now}, which takes its state over")
        if self.num_cast:
            lines.append(f"{self.num_cast} arrays of the optimizer's state change their dtype")
        # Older checkpoints without a scale of updates are of runs that had none lowered.
        if names := ", ".join(name for name in self.fresh if name != "update_scale"):
            lines.append(f"not in the checkpoint of step {step}, starts anew: {names}")
        if self.dropped:
            lines.append(f"no longer used, dropped at step {step}: {', '.join(self.dropped)}")
        return lines


def resumption(
    folder: epath.Path,
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    was: str | None,
    now: str | None,
    extra_may_change: bool = True,
) -> Plan:
    """Compares a checkpoint with the state that a run wants.

    Parameters must be the same. So must the optimizer's state, but for its floating-point types.

    Args:
      folder: the step folder.
      saved: name → leaf with shape and dtype, as in the checkpoint.
      wanted: the same, as the run has it.
      was: the name of the optimizer that wrote the checkpoint; None where it is not known.
      now: that of the run.
      extra_may_change: whether parts of `extra` may come and go.

    Raises:
      InputError: if they cannot be resumed from.
    """
    old, new = _parts(saved), _parts(wanted)
    changed = {
        part
        for part in {**old, **new}
        if extra_may_change and differences(old.get(part, {}), new.get(part, {}))
    }
    left_out = tuple(f"{_EXTRA}{part}" for part in changed)
    saved = {name: leaf for name, leaf in saved.items() if not _below(name, left_out)}
    read = {name: leaf for name, leaf in wanted.items() if not _below(name, left_out)}
    check_same(folder, _but_moments(saved), _but_moments(read))
    lines = differences(saved, read, cast=True)
    if lines:
        raise InputError(f"{_why(folder, lines, was, now)}\n{start_anew(folder)}")
    return Plan(
        read=read,
        fresh=tuple(sorted(changed & new.keys())),
        dropped=tuple(sorted(changed - new.keys())),
        num_cast=len(differences(saved, read)),
        optimizers=(was, now) if was and now and was != now else None,
    )


def start_anew(folder: epath.Path) -> str:
    """Returns how to go on with no more than the parameters of a checkpoint."""
    return (
        "to start anew from its parameters: another model_dir, and "
        f"t5lite.training.Checkpoints.restore_from = '{folder}'"
    )


def _why(folder: epath.Path, lines: list[str], was: str | None, now: str | None) -> str:
    if was and now and was != now:
        return f"{folder}: the run was trained with {was}, now {now}, whose state is another"
    changed = f"a setting of {now}" if was and now else "the optimizer, or a setting of it,"
    more = [f"  and {len(lines) - 1} more"] if lines[1:] else []
    return "\n".join([f"{folder}: {changed} has changed, and with it its state:", lines[0], *more])


def _but_moments(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.items() if not _below(name, ("opt_state",))}


def _parts(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns part of `extra` → its leaves."""
    parts: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        if name.startswith(_EXTRA):
            parts.setdefault(name.split("/")[1], {})[name] = leaf
    return parts


def _below(name: str, folders: tuple[str, ...]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)
