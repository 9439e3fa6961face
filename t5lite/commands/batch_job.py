"""Lines of a file answered to JSON lines, in shards; stopped at any moment, a job goes on."""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from t5lite.commands.examples import Failures, answered, data_file, write_line
from t5lite.commands.resumable import Resumable, keep
from t5lite.data.files.readers import Line, Row
from t5lite.errors import InputError

AT_ONCE = 4  # batches that are written together, and shared out by length


@dataclasses.dataclass(frozen=True)
class Lines:
    """The lines to answer, in an order that is always the same.

    Args:
      scan: gives them, from the first.
      count: of them.
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
    """What is done with each line.

    Args:
      read: makes of a line what `answer` takes; its InputError is written in the line's place.
      answer: gives an answer, or an InputError, to each of several.
      record: returns what is written of a line and its answer.
      tally: counts something in what was written; the sum is said at the end.
      unit: what it counts.
      is_rate: whether so many a second are shown meanwhile.
    """

    read: Callable[[Line], Any]
    answer: Callable[[list[Any]], Iterable[Any]]
    record: Callable[[Line, Any], Row]
    tally: Callable[[Row], int]
    unit: str
    is_rate: bool = False

    def written(self, line: Line, found: Any) -> Row:
        """Returns what is written of a line: its answer's record, or its error."""
        if isinstance(found, InputError):
            return {"line": line.number, "error": str(found)}
        return self.record(line, found)


def lines_of(path: str) -> Lines:
    """Returns the lines of `--input_file`, which is read once for their number and digest."""
    file = data_file(path)
    count = sum(1 for _ in file.scan())
    if not count:
        raise InputError(f"--input_file={file.path} is empty")
    return Lines(file.scan, count, file.digest)


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


def shard_of(shard: str | None) -> tuple[int, int]:
    """Returns which part of how many: of the flag, or else of JAX's processes.

    Raises:
      InputError: if it is no `I/N`, with I below N.
    """
    if shard is None:
        import jax

        return jax.process_index(), jax.process_count()
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shard={shard}: must be I/N, I of 0..N-1, such as 0/4")
    return int(index), int(count)


def part_name(path: str, index: int, count: int) -> str:
    """Returns the name of a part of a file; of the only one, the file's own."""
    if count == 1:
        return path
    place = Path(path)
    return str(place.with_name(f"{place.stem}-{index:05d}-of-{count:05d}{place.suffix}"))


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


def add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="answer the I-th, from 0, of N parts of the lines, into FILE-0000I-of-0000N.jsonl, "
        "which `cat` puts together in order (of several processes of JAX, each one's)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew, whatever an earlier command wrote"
    )
