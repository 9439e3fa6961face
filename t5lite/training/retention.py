"""Which checkpoints stay: the newest ones, and the one with the best held-out metric."""

import math
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from t5lite.errors import nearest
from t5lite.training.restore import read_document


class Retention:
    """Orbax's `PreservationPolicy`, from fields of `Checkpoints`; `warn` takes a text."""

    def __init__(
        self,
        *,
        keep: int,
        best: str | None,
        best_mode: str,
        warn: Callable[[str], object] = print,
    ):
        self._keep, self._best = keep, best
        self._choose = min if best_mode == "min" else max
        self._warn = warn
        self._told = False
        self._scores: dict[int, float] = {}
        self.damaged: set[int] = set()

    def read(self, folders: Mapping[int, epath.Path]) -> None:
        for step, folder in folders.items():
            try:
                self.note(step, read_document(folder)["metrics"])
            except (OSError, ValueError, KeyError):
                continue  # damaged: `restore` says so if it comes to this one

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records a step's value of the `best` metric."""
        if self._best is None or not metrics:
            return
        if self._best in metrics:
            self._scores[step] = metrics[self._best]
        elif not self._told and not self._scores:
            self._told = True
            near = nearest(self._best, metrics)
            self._warn(f"Checkpoints.best = {self._best!r}: no such metric at step {step}{near}")

    def is_best(self, metrics: Mapping[str, float], steps: Sequence[int]) -> bool:
        """Whether metrics are better than those of all these steps."""
        value = metrics.get(self._best or "", math.nan)
        if not math.isfinite(value):
            return False
        best = self.best_step(steps)
        if best is None:
            return True
        old = self._scores[best]
        return value != old and self._choose(value, old) == value

    def best_step(self, steps: Sequence[int]) -> int | None:
        """Returns the best of these steps, or None if none of them has the metric."""
        candidates = [step for step in steps if step in self._scores and step not in self.damaged]
        return self._choose(candidates, key=self._scores.__getitem__, default=None)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Called by Orbax when one more save has begun; the rest goes when that is complete."""
        del context
        steps = [info.step for info in checkpoints]
        # In order of saving rather than by number: what was just saved always stays.
        intact = [step for step in steps if step not in self.damaged]
        stays = {*intact[-self._keep :], self.best_step(sorted(intact))}
        return [step in stays for step in steps]
