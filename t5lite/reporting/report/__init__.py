"""report.html: a run, or several, as one page that needs nothing but itself."""

from t5lite.reporting.report.facts import describe_run, read_facts
from t5lite.reporting.report.page import is_report, render
from t5lite.reporting.report.record import Record, read_record
from t5lite.reporting.report.writer import Report

__all__ = [
    "Record",
    "Report",
    "describe_run",
    "is_report",
    "read_facts",
    "read_record",
    "render",
]
