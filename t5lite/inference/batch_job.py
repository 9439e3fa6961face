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
from t5lite.inference.resumable import Resumable, keep

AT_ONCE = 4  # batches that are written together, and shared out by length


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines to answer, in a fixed order.

    Args:
      scan: yields them, from the first.
      count: number of lines.
      digest: of their content.
    """

    scan: Callable[[], Iterator[Line]]
    count: int
    digest: str

    def part(self, index: int, count: int) -> tuple[int, int]:
        """Returns the first line of a shard, from 0, and the line after its last."""
        start, stop = (self.count * each // count for each in (index, index + 1))
        return start, stop


@dataclasses.dataclass(frozen=True)
class Job:
    """How lines are answered and recorded.

    Args:
      read: returns the request of a line; its InputError is written in the line's place.
      answer: returns an answer, or an InputError, to each of several requests.
      record: returns the JSON object of a line and its answer.
      tally: counts something in such an object; the sum is printed at the end.
      unit: of that count.
      is_rate: whether the count a second is shown meanwhile.
    """

    read: Callable[[Line], Any]
    answer: Callable[[list[Any]], Iterable[Any]]
    record: Callable[[Line, Any], Row]
    tally: Callable[[Row], int]
    unit: str
    is_rate: bool = False

    def written(self, line: Line, outcome: Any) -> Row:
        """Returns the JSON object of a line: its answer's record, or its error."""
        if isinstance(outcome, InputError):
            return {"line": line.number, "error": str(outcome)}
        return self.record(line, outcome)


def check_row(line: Line) -> Row:
    """Returns a line's row.

    Raises:
      InputError: if it is broken, or cannot be written into a JSON line.
    """
    if line.row is None:
        raise InputError(line.problem)
    try:
        json.dumps(line.row, allow_nan=False)
    except ValueError as error:
        raise InputError("a NaN or an infinity is in it, which no JSON line can hold") from error
    return line.row


def part_name(path: str, index: int, count: int) -> str:
    """Returns the name of a part of a file; of the only one, the file's own."""
    if count == 1:
        return path
    place = Path(path)
    return str(place.with_name(f"{place.stem}-{index:05d}-of-{count:05d}{place.suffix}"))


def answered(
    lines: Iterable[Line],
    read: Callable[[Line], Any],
    answer: Callable[[list[Any]], Iterable[Any]],
    *,
    at_once: int,
) -> Iterator[tuple[Line, Any]]:
    """Yields each line with its answer, or with the InputError of `read` or `answer`.

    Args:
      lines: in order.
      read: makes of a line what `answer` takes.
      answer: gives an answer, or an InputError, to each of several, at least one.
      at_once: most lines held at a time.
    """
    lines = iter(lines)
    while chunk := list(itertools.islice(lines, at_once)):
        requests: list[Any] = []
        for line in chunk:
            try:
                requests.append(read(line))
            except InputError as error:
                requests.append(error)
        good = [each for each in requests if not isinstance(each, InputError)]
        answers = iter(answer(good) if good else ())
        for line, each in zip(chunk, requests, strict=True):
            yield line, each if isinstance(each, InputError) else next(answers)


@dataclasses.dataclass
class Failures:
    """The lines that have an error in place of an answer."""

    count: int = 0
    first: str = ""

    def add(self, line: Line, error: InputError) -> Row:
        """Returns what is written in a line's place."""
        self.count += 1
        self.first = self.first or f"line {line.number}: {error}"
        return {"line": line.number, "error": str(error)}

    def exit_code(self) -> int:
        """Returns 1 if a line has failed, and says so."""
        if self.count:
            others = f" ({self.count - 1:,} more failed)" if self.count > 1 else ""
            print(f"t5lite: {self.first}{others}", file=sys.stderr)
        return int(self.count > 0)


def write_line(file: BinaryIO, record: Row) -> None:
    """Writes a JSON line, at once where somebody may be waiting for it."""
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
    """Answers the lines of a shard that are not answered yet.

    Blocks of lines are the same whenever it begins, and so are the batches in them: answers do not
    depend on where an earlier process has ended, down to the last bit.

    Args:
      output: where to.
      lines: all of them.
      job: what is done.
      shard: which part of how many.
      batch_size: most lines at once.
      overwrite: whether to forget what is written.

    Returns:
      The exit code: 1 if a line failed, in this process or an earlier one.
    """
    from t5lite.reporting.bars import Bar

    block, (start, stop) = AT_ONCE * batch_size, lines.part(*shard)
    totals = Totals(job)
    with output.open(block=block, overwrite=overwrite) as part, Bar("answered", unit="line") as bar:
        for raw in part:
            totals.add(json.loads(raw))
        done, before, total = totals.lines, totals.tally, stop - start
        if done:
            print(f"{output.part} has {done:,} of {total:,} lines; going on", file=sys.stderr)
        bar(done, total, start=done)
        begin = time.monotonic()
        wanted = itertools.islice(lines.scan(), start + done, stop)
        for line, found in answered(wanted, job.read, job.answer, at_once=block):
            written = job.written(line, found)
            write_line(part, written)
            totals.add(written)
            if totals.lines % block == 0 or totals.lines == total:
                keep(part)
                rate = (totals.tally - before) / (time.monotonic() - begin)
                bar(totals.lines, total, note=totals.beside(rate))
    print(f"{output.path}: {totals}", file=sys.stderr)
    return totals.failures.exit_code()


@dataclasses.dataclass
class Totals:
    """Sums over what is written."""

    job: Job
    lines: int = 0
    tally: int = 0
    failures: Failures = dataclasses.field(default_factory=Failures)

    def add(self, written: Row) -> None:
        """Adds a line."""
        self.lines += 1
        if "error" in written:
            self.failures.add(Line(written["line"], 0, 0, None), InputError(written["error"]))
        else:
            self.tally += self.job.tally(written)

    def beside(self, rate: float) -> str:
        """Returns what is shown beside the progress."""
        shown = [f"{rate:,.0f} {self.job.unit}/s"] if self.job.is_rate else []
        shown += [f"{self.failures.count:,} failed"] if self.failures.count else []
        return ", ".join(shown)

    def __str__(self) -> str:
        tally = f"{self.tally:,} {self.job.unit}"
        return f"{self.lines:,} lines, {tally}, {self.failures.count:,} failed"
