"""report.html: a run, or several, as one page that needs nothing but itself."""

from t5lite.training.report.facts import describe_run
from t5lite.training.report.page import render
from t5lite.training.report.record import Record, read_record
from t5lite.training.report.writer import Report

__all__ = ["Record", "Report", "describe_run", "read_record", "render"]
