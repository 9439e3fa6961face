"""Profiler traces of chosen steps, for TensorBoard's profile plugin or Perfetto."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from t5lite.errors import InputError


@dataclasses.dataclass(frozen=True)
class Profile:
    """Which steps to trace, and the folder of the trace.

    Args:
      steps: (first, count), from 1; step 1 compiles; a run that resumes after it traces nothing.
      folder: gets `plugins/profile/<time>/`; None is the model_dir, which TensorBoard reads.
    Raises: InputError if `steps` is not a pair of positive integers.
    """

    steps: tuple[int, int] = (10, 5)
    folder: str | None = None

    def __post_init__(self):
        if len(self.steps) != 2 or any(type(n) is not int or n < 1 for n in self.steps):
            raise InputError(
                f"Profile.steps = {self.steps!r}: must be (first, how many), both >= 1",
                field="Profile.steps",
            )

    def open(
        self, model_dir: epath.PathLike, *, say: Callable[[str], object] = print
    ) -> "Profiler":
        """Returns the profiler of a run; `say` prints a line."""
        return Profiler(*self.steps, epath.Path(self.folder or model_dir), say)


class Profiler:
    """Traces the steps `first` to `first + count - 1`, none by default; made by `Profile.open`."""

    def __init__(
        self,
        first: int = 0,
        count: int = 0,
        folder: epath.Path = epath.Path("."),
        say: Callable[[str], object] = print,
    ):
        self._first, self._last = first, first + count - 1
        self._folder, self._say = folder.expanduser(), say
        self._tracing = False
        self._annotation: Any = None

    def before_step(self, step: int) -> None:
        if step == self._first:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        if self._tracing:
            self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._annotation.__enter__()

    def after_step(self, step: int, state: Any) -> None:
        """Waits for the `state` of a dispatched step before the trace ends."""
        if not self._tracing:
            return
        self._annotation.__exit__(None, None, None)
        if step >= self._last:
            jax.block_until_ready(state)
            self.close()
            self._say(f"profile of steps up to {step} written")

    def close(self) -> None:
        """Writes the trace if the run ends in the middle of it."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
