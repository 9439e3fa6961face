"""Writers of metrics: the protocol, many as one, and files of JSON lines."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath

from t5lite.reporting.files import replace_text


class Writer(Protocol):
    """Takes the metrics of a step.

    It is constructed on all processes and called on the first alone: open nothing before the first
    `write`. Optional members: `files`, names of the files in the folder that it overwrites or
    appends to; `check()`, called before the run starts, raises an InputError for what would fail
    later; `rewind(step)`, called when a run starts or resumes at a step, deletes values written
    after it; `text(step, name, value)`, for samples and the like.

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
        """Called once, at the end of the run."""


class Writers:
    """Several writers as one, called in order where `active`: on the first process alone."""

    def __init__(self, writers: Sequence[Writer], *, active: bool | None = None):
        self._active = jax.process_index() == 0 if active is None else active
        self._writers = tuple(writers) if self._active else ()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def text(self, step: int, name: str, value: str) -> None:
        self._optional("text", step, name, value)

    def check(self) -> None:
        self._optional("check")

    def rewind(self, step: int) -> None:
        self._optional("rewind", step)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def _optional(self, method: str, *arguments: Any) -> None:
        for writer in self._writers:
            if hasattr(writer, method):
                getattr(writer, method)(*arguments)


class JsonLines:
    """Appends to `metrics.jsonl` and `texts.jsonl` in a folder, usually the model_dir.

    `{"step": 10, "time": 1700000000.0, "loss": 2.5}`, NaN and infinities as null; and
    `{"step": 10, "time": 1700000000.0, "name": "samples", "text": "…"}`: one JSON object a line, on
    disk when the call returns. Times are seconds since 1970.
    """

    files = ("metrics.jsonl", "texts.jsonl")

    def __init__(self, folder: epath.PathLike, *, clock: Callable[[], float] = time.time):
        self.path = epath.Path(folder).expanduser() / "metrics.jsonl"
        self._texts = self.path.with_name("texts.jsonl")
        self._clock = clock

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        head = self._head(step)
        values = {name: float(value) for name, value in metrics.items() if name not in head}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._append(self.path, head | finite)

    def text(self, step: int, name: str, value: str) -> None:
        self._append(self._texts, {**self._head(step), "name": name, "text": value})

    def rewind(self, step: int) -> None:
        """Drops the lines after a step, and one that a crash cut off; of a file all or none."""
        for path in (self.path, self._texts):
            if not path.exists():
                continue
            # Not splitlines, which also breaks at characters that belong to a text.
            lines = path.read_bytes().splitlines(keepends=True)
            remaining = [line for line in lines if _step_of(line) <= step]
            if remaining != lines:
                replace_text(path, b"".join(remaining).decode())

    def close(self) -> None:
        """Does nothing: no file stays open."""

    def _head(self, step: int) -> dict[str, Any]:
        return {"step": int(step), "time": round(self._clock(), 3)}

    def _append(self, path: epath.Path, line: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def _step_of(line: bytes) -> float:
    """Returns the step of a line, or infinity if the line is incomplete."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
