"""Resumable jobs: lines of a file, answered to JSON lines, in shards."""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from t5lite.data.files.readers import Line, Row
from t5lite.errors import InputError
from t5lite.inference.resumable import Resumable, sync

AT_ONCE = 4  # batches that are written together, and sorted by length


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines to answer in a fixed order, their number and a digest of their content."""

    scan: Callable[[], Iterator[Line]]
    count: int
    digest: str

    def part(self, index: int, count: int) -> tuple[int, int]:
        """Returns the first line of a shard, from 0, and the line after its last."""
        return self.count * index // count, self.count * (index + 1) // count


@dataclasses.dataclass(frozen=True)
class Job:
    """How lines are answered and recorded.

    Args:
      read: returns the request of a line, or raises the InputError of its row.
      answer: returns an answer, or an InputError, to each of several requests.
      record: returns the JSON object of a line and its answer.
      tally: counts something in such an object; the sum is printed at the end, in `unit`.
      is_rate: whether the progress bar shows the count per second.
    """

    read: Callable[[Line], Any]
    answer: Callable[[list[Any]], Iterable[Any]]
    record: Callable[[Line, Any], Row]
    tally: Callable[[Row], int]
    unit: str
    is_rate: bool = False

    def row_of(self, line: Line, outcome: Any) -> Row:
        failed = isinstance(outcome, InputError)
        return error_row(line, outcome) if failed else self.record(line, outcome)


def error_row(line: Line, error: InputError) -> Row:
    return {"line": line.number, "error": str(error)}


def check_row(line: Line) -> Row:
    """Returns a line's row; an InputError for a broken line, or one that JSON cannot hold."""
    if line.row is None:
        raise InputError(line.problem)
    try:
        json.dumps(line.row, allow_nan=False)
    except ValueError as error:
        raise InputError("a NaN or an infinity is in it, which no JSON line can hold") from error
    return line.row


def part_name(path: str, index: int, count: int) -> str:
    """Returns the name of a shard of a file; of the only one, the file's own."""
    if count == 1:
        return path
    file = Path(path)
    return str(file.with_name(f"{file.stem}-{index:05d}-of-{count:05d}{file.suffix}"))


def answered(
    lines: Iterable[Line],
    read: Callable[[Line], Any],
    answer: Callable[[list[Any]], Iterable[Any]],
    *,
    at_once: int,
) -> Iterator[tuple[Line, Any]]:
    """Yields each line, at most `at_once` in memory, with its answer or InputError; see `Job`."""
    lines = iter(lines)
    while chunk := list(itertools.islice(lines, at_once)):
        requests: list[Any] = []
        for line in chunk:
            try:
                requests.append(read(line))
            except InputError as error:
                requests.append(error)
        valid = [request for request in requests if not isinstance(request, InputError)]
        answers = iter(answer(valid) if valid else ())
        for line, request in zip(chunk, requests, strict=True):
            yield line, request if isinstance(request, InputError) else next(answers)


@dataclasses.dataclass
class Failures:
    """The lines with an error instead of an answer."""

    count: int = 0
    first: str = ""

    def add(self, line: Line, error: InputError) -> Row:
        """Counts a line, and returns its JSON object."""
        self.count += 1
        self.first = self.first or f"line {line.number}: {error}"
        return error_row(line, error)

    def exit_code(self) -> int:
        """Returns 1 if a line has failed, and prints the first error."""
        if self.count:
            more = f" ({self.count - 1:,} more failed)" if self.count > 1 else ""
            print(f"t5lite: {self.first}{more}", file=sys.stderr)
        return int(self.count > 0)


@dataclasses.dataclass
class Totals:
    """Sums over the JSON objects of lines."""

    job: Job
    lines: int = 0
    tally: int = 0
    failures: Failures = dataclasses.field(default_factory=Failures)

    def add(self, row: Row) -> None:
        self.lines += 1
        if "error" in row:
            self.failures.add(Line(row["line"], 0, 0, None), InputError(row["error"]))
        else:
            self.tally += self.job.tally(row)

    def note(self, rate: float) -> str:
        parts = [f"{rate:,.0f} {self.job.unit}/s"] if self.job.is_rate else []
        parts += [f"{self.failures.count:,} failed"] if self.failures.count else []
        return ", ".join(parts)

    def __str__(self) -> str:
        tally = f"{self.tally:,} {self.job.unit}"
        return f"{self.lines:,} lines, {tally}, {self.failures.count:,} failed"


def write_line(file: BinaryIO, record: Row) -> None:
    """Writes a JSON line, unbuffered to standard output."""
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    if file is sys.stdout.buffer:
        file.flush()


def write(
    output: Resumable,
    lines: Lines,
    job: Job,
    *,
    shard: tuple[int, int],
    batch_size: int,
    overwrite: bool,
) -> int:
    """Answers the remaining lines of a shard; returns the exit code, as `line_job.infer` does.
    Blocks and batches do not depend on where an earlier process ended: answers are bit-equal."""
    from t5lite.reporting.bars import Bar

    block, (start, stop) = AT_ONCE * batch_size, lines.part(*shard)
    totals = Totals(job)
    with output.open(block=block, overwrite=overwrite) as part, Bar("answered", unit="line") as bar:
        for raw in part:
            totals.add(json.loads(raw))
        resumed, tally, total = totals.lines, totals.tally, stop - start
        if resumed:
            print(f"{output.part} has {resumed:,} of {total:,} lines; going on", file=sys.stderr)
        bar(resumed, total, start=resumed)
        begin = time.monotonic()
        remaining = itertools.islice(lines.scan(), start + resumed, stop)
        for line, outcome in answered(remaining, job.read, job.answer, at_once=block):
            row = job.row_of(line, outcome)
            write_line(part, row)
            totals.add(row)
            if totals.lines % block == 0 or totals.lines == total:
                sync(part)
                rate = (totals.tally - tally) / (time.monotonic() - begin)
                bar(totals.lines, total, note=totals.note(rate))
    print(f"{output.path}: {totals}", file=sys.stderr)
    return totals.failures.exit_code()
