"""Where metrics go: a file of JSON lines, TensorBoard, or anything with a `write`."""

import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath

from t5lite.errors import InputError


class Writer(Protocol):
    """Takes the metrics of a step.

    The training loop calls it on the first process alone, and makes it on all: so open nothing
    before the first `write`. Two methods are optional: `text(step, name, value)` takes samples and
    the like; `rewind(step)` is called when a run starts or resumes at a step, before anything is
    written, and forgets what was written after that step.

    One for Weights & Biases:

        import wandb

        class WeightsAndBiases:
            def __init__(self, folder):
                self.run = None

            def write(self, step, metrics):
                self.run = self.run or wandb.init(project="t5lite")
                self.run.log(dict(metrics), step=step)

            def close(self):
                if self.run:
                    self.run.finish()
    """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes metrics by name, such as `loss` or `validation/loss`."""

    def close(self) -> None:
        """Is called once, at the end of the run."""


class Writers:
    """Many writers as one, which are called on the first process alone.

    Args:
      writers: called in order.
      active: whether this process writes; the first one does.
    """

    def __init__(self, writers: Sequence[Writer], *, active: bool | None = None):
        self._active = jax.process_index() == 0 if active is None else active
        self._writers = tuple(writers) if self._active else ()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics to all."""
        for writer in self._writers:
            writer.write(step, metrics)

    def text(self, step: int, name: str, value: str) -> None:
        """Writes a text to those that take texts."""
        self._optional("text", step, name, value)

    def rewind(self, step: int) -> None:
        """Makes those that can forget everything after a step."""
        self._optional("rewind", step)

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()

    def _optional(self, method: str, *arguments: Any) -> None:
        for writer in self._writers:
            if hasattr(writer, method):
                getattr(writer, method)(*arguments)


class JsonLines:
    """Appends to `metrics.jsonl`: `{"step": 10, "time": 1700000000.0, "loss": 2.5}`, one a line.

    NaN and infinities become null, as JSON has neither. Every line is on disk when `write` returns.

    Args:
      folder: where the file goes, usually the model_dir.
      clock: seconds since 1970.
    """

    def __init__(self, folder: epath.PathLike, *, clock: Callable[[], float] = time.time):
        self.path = epath.Path(folder).expanduser() / "metrics.jsonl"
        self._clock = clock

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line."""
        head = {"step": int(step), "time": round(self._clock(), 3)}
        values = {name: float(value) for name, value in metrics.items() if name not in head}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(head | finite, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drops the lines after a step and one that a crash cut off, all or nothing."""
        if not self.path.exists():
            return
        text = self.path.read_text()
        kept = "".join(line for line in text.splitlines(keepends=True) if _step_of(line) <= step)
        if kept != text:
            draft = self.path.with_name(self.path.name + ".tmp")
            draft.write_text(kept)
            draft.replace(self.path)

    def close(self) -> None:
        """Does nothing: no file stays open."""


class TensorBoard:
    """Writes event files for TensorBoard, at most ten seconds late.

    Args:
      folder: where they go, usually the model_dir.

    Raises:
      InputError: if the folder is on an object store whose library is not installed.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = str(epath.Path(folder).expanduser())
        store = self._folder.partition("://")[0]
        library = {"gs": "google.cloud.storage", "s3": "boto3"}.get(store)
        if library is not None and not _installed(library):
            raise InputError(
                f"TensorBoard's files cannot be written to {self._folder} without {library}\n"
                f"pip install 't5lite[{store}]', or set t5lite.train.writers"
            )
        self._purge_step: int | None = None
        self._events: Any = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one scalar a metric; NaN and infinities are left out."""
        events = self._open()
        for name, value in metrics.items():
            if math.isfinite(value):
                events.add_scalar(name, float(value), global_step=int(step))

    def text(self, step: int, name: str, value: str) -> None:
        """Adds a text (TensorBoard reads Markdown)."""
        self._open().add_text(name, value, global_step=int(step))

    def rewind(self, step: int) -> None:
        """Makes TensorBoard hide what was written after a step."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Writes what is left and closes the file."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open(self) -> Any:
        if self._events is None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                self._folder,
                purge_step=self._purge_step,
                flush_secs=10,
                # Its own name ends in seconds: a file of the same second would be overwritten.
                filename_suffix=f".{time.time_ns()}",
            )
        return self._events


def _installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _step_of(line: str) -> float:
    """Returns the step of a line, or infinity if it is no whole line."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
