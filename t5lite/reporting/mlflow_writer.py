"""Metrics on an MLflow server."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from t5lite.errors import InputError
from t5lite.reporting.files import installed, replace_text


class MLflow:
    """Logs to an MLflow server: one MLflow run a model_dir, resumed with it.

    Its id is in the folder's `mlflow_run_id`. MLflow cannot delete metrics: steps repeated after a
    crash appear twice.

    Args:
      folder: the model_dir; its last part names the run.
      experiment: name of the MLflow experiment; created if missing.
      tracking_uri: of the server; None for $MLFLOW_TRACKING_URI.
    Raises: InputError if mlflow is not installed; from `check`, if the server refuses.
    """

    files = ("mlflow_run_id",)

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        experiment: str = "t5lite",
        tracking_uri: str | None = None,
    ):
        if not installed("mlflow"):
            raise InputError(
                "train.writers: MLflow needs the library mlflow\n"
                "pip install 't5lite[mlflow]', or set t5lite.train.writers",
                field="train.writers",
            )
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
        with _mlflow_errors(self._uri):
            self._connected().get_experiment_by_name(self._experiment)

    def rewind(self, step: int) -> None:
        """Opens the run: a new one at step 0, and afterwards the earlier one."""
        self._open(resume=step > 0)

    def close(self) -> None:
        """Marks the run as finished, until it is resumed."""
        if self._client is not None:
            self._client.set_terminated(self._run_id)
            self._client = None

    def _open(self, *, resume: bool = True) -> Any:
        if self._client is None:
            with _mlflow_errors(self._uri):
                client = self._connected()
                self._run_id = self._started(client, resume=resume)
            self._client = client
        return self._client

    def _connected(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self._uri)

    def _started(self, client: Any, *, resume: bool) -> str:
        """Returns the id of the resumed run, or of a new one."""
        note = self._folder / "mlflow_run_id"
        if resume and note.exists():
            run_id = note.read_text().strip()
            client.update_run(run_id, status="RUNNING")
            return run_id
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment:
            experiment_id = experiment.experiment_id
        else:
            experiment_id = client.create_experiment(self._experiment)
        run_id = client.create_run(experiment_id, run_name=self._folder.name).info.run_id
        replace_text(note, run_id + "\n")
        config = self._folder / "config.gin"
        if config.exists():
            client.log_text(run_id, config.read_text(), "config.gin")
        return run_id


@contextlib.contextmanager
def _mlflow_errors(uri: str | None) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise InputError(
            f"MLflow.tracking_uri = {uri!r}: {str(error).strip().splitlines()[0]}\n"
            "set MLflow.tracking_uri or $MLFLOW_TRACKING_URI to a server's address",
            field="MLflow.tracking_uri",
        ) from error
