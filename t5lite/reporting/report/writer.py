"""Keeps a run's report.html up to date while it trains."""

import time
import warnings
from collections.abc import Callable, Mapping

from etils import epath

from t5lite.errors import InputError
from t5lite.reporting.files import replace_text
from t5lite.reporting.report.page import render
from t5lite.reporting.report.record import read_record


class Report:
    """Draws `report.html` from `run.json`, `metrics.jsonl` and `texts.jsonl` of the model_dir.

    Put it after `JsonLines`, whose files it reads. The page is rewritten, whole or not at all, at
    most once in `seconds`, at most for a hundredth of the time, and at the end. A failing report
    costs the run one warning.
    """

    files = ("report.html",)

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path = epath.Path(folder).expanduser() / "report.html"
        self._seconds = seconds
        self._clock = clock
        self._due = clock() + seconds
        self._written = self._warned = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Rewrites the page if it is due; the metrics are read from the folder."""
        del step, metrics
        self._written = True
        start = self._clock()
        if start >= self._due:
            self._draw(status="running")
            now = self._clock()
            self._due = now + max(self._seconds, 100 * (now - start))

    def close(self) -> None:
        """Rewrites the page a last time, if the run wrote anything."""
        if self._written:
            self._draw(status="ended")

    def _draw(self, *, status: str) -> None:
        try:
            try:
                record = read_record(self.path.parent)
            except InputError:
                return  # no JsonLines among the writers, so nothing to draw
            replace_text(self.path, render([record], status=status))
        except Exception as error:
            if not self._warned:
                self._warned = True
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(f"{self.path} cannot be drawn: {reason}", stacklevel=2)
