"""Where metrics go: a file of JSON lines, TensorBoard, or anything with a `write`."""

import contextlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath

from t5lite.errors import InputError


class Writer(Protocol):
    """Takes the metrics of a step.

    The training loop calls it on the first process alone, and makes it on all: so open nothing
    before the first `write`. Optional: `files`, the names of those files of the folder that it
    overwrites or appends to, which then must not be somebody else's; `check()`, called before the
    run is accepted, to raise an InputError for what would fail later; `rewind(step)`, called when
    a run starts or resumes at a step, before anything is written, to forget what was written after
    that step; and `text(step, name, value)`, which takes samples and the like.

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

    def check(self) -> None:
        """Raises an InputError for what one of them could not do later."""
        self._optional("check")

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
    """Appends to `metrics.jsonl` and `texts.jsonl`, one JSON object a line.

    `{"step": 10, "time": 1700000000.0, "loss": 2.5}`, NaN and infinities as null, for JSON has
    neither; and `{"step": 10, "time": 1700000000.0, "name": "samples", "text": "…"}`. Every line is
    on disk when the call returns.

    Args:
      folder: where the files go, usually the model_dir.
      clock: seconds since 1970.
    """

    files = ("metrics.jsonl", "texts.jsonl")

    def __init__(self, folder: epath.PathLike, *, clock: Callable[[], float] = time.time):
        self.path = epath.Path(folder).expanduser() / "metrics.jsonl"
        self._texts = self.path.with_name("texts.jsonl")
        self._clock = clock

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line of metrics."""
        head = self._head(step)
        values = {name: float(value) for name, value in metrics.items() if name not in head}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._append(self.path, head | finite)

    def text(self, step: int, name: str, value: str) -> None:
        """Appends a line with a text."""
        self._append(self._texts, {**self._head(step), "name": name, "text": value})

    def rewind(self, step: int) -> None:
        """Drops the lines after a step and one that a crash cut off, all or nothing of a file."""
        for path in (self.path, self._texts):
            if not path.exists():
                continue
            # Not splitlines, which also breaks at characters that belong to a text.
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= step]
            if kept != lines:
                replace_text(path, b"".join(kept).decode())

    def close(self) -> None:
        """Does nothing: no file stays open."""

    def _head(self, step: int) -> dict[str, Any]:
        return {"step": int(step), "time": round(self._clock(), 3)}

    def _append(self, path: epath.Path, line: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


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


class MLflow:
    """Logs to an MLflow server, a run of ours as a run there, resumed with it.

    Which run that is, stands in the folder's `mlflow_run_id`. MLflow forgets nothing: steps that
    are done again after a crash stand there twice.

    Args:
      folder: the model_dir; its last part names the run.
      experiment: what the run belongs to; made where there is none.
      tracking_uri: of the server; None for $MLFLOW_TRACKING_URI.

    Raises:
      InputError: if mlflow is not installed; from `check`, if the server refuses.
    """

    files = ("mlflow_run_id",)

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        experiment: str = "t5lite",
        tracking_uri: str | None = None,
    ):
        if not _installed("mlflow"):
            raise InputError("MLflow needs a library: pip install 't5lite[mlflow]'")
        self._folder = epath.Path(folder).expanduser()
        self._experiment = experiment
        self._uri = tracking_uri
        self._client: Any = None
        self._run_id = ""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics; NaN and infinities are left out."""
        from mlflow.entities import Metric

        client, now = self._open(), int(1000 * time.time())
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        points = [Metric(name, value, now, int(step)) for name, value in finite.items()]
        client.log_batch(self._run_id, metrics=points)

    def text(self, step: int, name: str, value: str) -> None:
        """Keeps a text as an artifact."""
        self._open().log_text(self._run_id, value, f"{name}/step_{int(step):08}.txt")

    def check(self) -> None:
        """Asks the server for the experiment, which changes nothing there."""
        with _mlflow_errors():
            self._connected().get_experiment_by_name(self._experiment)

    def rewind(self, step: int) -> None:
        """Opens the run: a new one at step 0, and afterwards the one that was."""
        self._open(resume=step > 0)

    def close(self) -> None:
        """Says that the run is over, until it is resumed."""
        if self._client is not None:
            self._client.set_terminated(self._run_id)
            self._client = None

    def _open(self, *, resume: bool = True) -> Any:
        if self._client is None:
            with _mlflow_errors():
                client = self._connected()
                self._run_id = self._started(client, resume=resume)
            self._client = client
        return self._client

    def _connected(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self._uri)

    def _started(self, client: Any, *, resume: bool) -> str:
        """Returns the id of the run that this one goes on with, or of a new one."""
        note = self._folder / "mlflow_run_id"
        if resume and note.exists():
            run_id = note.read_text().strip()
            client.update_run(run_id, status="RUNNING")
            return run_id
        known = client.get_experiment_by_name(self._experiment)
        where = known.experiment_id if known else client.create_experiment(self._experiment)
        run_id = client.create_run(where, run_name=self._folder.name).info.run_id
        replace_text(note, run_id + "\n")
        config = self._folder / "config.gin"
        if config.exists():
            client.log_text(run_id, config.read_text(), "config.gin")
        return run_id


@contextlib.contextmanager
def _mlflow_errors() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise InputError(
            f"MLflow: {str(error).strip().splitlines()[0]}\n"
            "set MLflow.tracking_uri or $MLFLOW_TRACKING_URI to a server's address"
        ) from error


def _installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def replace_text(path: epath.Path, text: str) -> None:
    """Writes a file anew, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _step_of(line: bytes) -> float:
    """Returns the step of a line, or infinity if it is no whole line."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
