"""`t5lite report`: one or more runs as one HTML page."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t5lite.data.paths import write_whole
from t5lite.errors import InputError

if TYPE_CHECKING:
    from etils import epath

    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: t5lite report runs/small runs/large --output=compared.html"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder (its MODEL_DIR)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page (RUN/report.html; for several runs, report.html)",
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    del configuration

    from t5lite.reporting.report import read_record, render

    output = target(arguments.runs, arguments.output)
    names = names_of(arguments.runs)
    records = [
        read_record(folder, name=name) for folder, name in zip(arguments.runs, names, strict=True)
    ]
    write_whole(output, render(records).encode())
    print(output)


def target(runs: Sequence[str], output: str | None) -> "epath.Path":
    """Returns the page's path: by default in the run's folder; for several runs, in this one."""
    from etils import epath

    from t5lite.reporting.report import is_report

    if output is None:
        output = "report.html" if len(runs) > 1 else f"{runs[0]}/report.html"
    path = epath.Path(output).expanduser()
    if path.is_dir():
        raise InputError(
            f"--output={output}: must be a file, e.g. {path / 'report.html'}", field="output"
        )
    if path.exists() and not is_report(path):
        raise InputError(
            f"--output={output}: exists and is not a report of t5lite; name another, or delete it",
            field="output",
        )
    return path


def names_of(runs: Sequence[str]) -> list[str]:
    """Returns the shortest ends of the folders' paths that differ."""
    parts = [
        (run.rstrip("/").split("/") if "://" in run else Path(run).expanduser().resolve().parts)
        for run in runs
    ]
    for index, path in enumerate(parts):
        if path in parts[:index]:
            raise InputError(f"RUN = {runs[index]}: named twice; name each run once", field="runs")
    names = []
    for path in parts:
        length = 1
        while sum(part[-length:] == path[-length:] for part in parts) > 1:
            length += 1
        names.append("/".join(path[-length:]))
    return names
