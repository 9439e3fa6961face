"""Reporting: progress bars, rates, metrics files, and the HTML pages of a run and of attention."""

from t5lite.reporting.bars import Bar
from t5lite.reporting.mlflow_writer import MLflow
from t5lite.reporting.progress import Position, Progress
from t5lite.reporting.rates import Meter, peak_flops
from t5lite.reporting.report import Report
from t5lite.reporting.tensorboard import TensorBoard
from t5lite.reporting.writers import JsonLines, Writer, Writers

__all__ = [
    "Bar",
    "JsonLines",
    "MLflow",
    "Meter",
    "Position",
    "Progress",
    "Report",
    "TensorBoard",
    "Writer",
    "Writers",
    "peak_flops",
]
