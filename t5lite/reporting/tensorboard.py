"""TensorBoard event files."""

import math
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from t5lite.errors import InputError
from t5lite.reporting.files import installed


class TensorBoard:
    """Writes event files for TensorBoard into a folder, usually the model_dir, within ten seconds.

    Raises: InputError if the folder is on an object store whose library is not installed.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = str(epath.Path(folder).expanduser())
        store = self._folder.partition("://")[0]
        library = {"gs": "google.cloud.storage", "s3": "boto3"}.get(store)
        if library is not None and not installed(library):
            raise InputError(
                f"train.writers: TensorBoard needs the library {library} to write to "
                f"{self._folder}\npip install 't5lite[{store}]', or set t5lite.train.writers",
                field="train.writers",
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
        """Makes TensorBoard hide values written after a step."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
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
