"""Examples of a command line or of a file, and what becomes of each, in order and in place."""

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from t5lite.data.files.readers import DataFile, Line, Row, find_files, format_of
from t5lite.data.paths import whole_file
from t5lite.errors import InputError


def given(rows: Sequence[Row], input_file: str | None) -> tuple[Iterator[Line], int]:
    """Returns the examples, and the bytes of the file that they are in.

    Args:
      rows: of the command line.
      input_file: a file of another kind than these: `.jsonl`, `.tsv`, `.csv`, `.parquet`, `.txt`.

    Returns:
      Lines, those of a command line being its texts from 1, and 0 bytes for them.

    Raises:
      InputError: both or none of the two, or a file that cannot be read; or later, an empty one.
    """
    if rows and input_file is not None:
        raise InputError("give TEXT or --input_file, not both")
    if rows:
        return (Line(number, 0, 0, row) for number, row in enumerate(rows, 1)), 0
    if input_file is None:
        raise InputError("no text; give TEXT or --input_file=FILE")
    file = data_file(input_file)
    return _some(file.scan(), file.path), file.num_bytes


def data_file(pattern: str, *, flag: str = "--input_file") -> DataFile:
    """Returns the one file of a flag, its format from its name.

    Raises:
      InputError: no file, several, or one of no such format.
    """
    path, *others = find_files(pattern, field=flag)
    if others:
        raise InputError(f"{flag}={pattern}: {len(others) + 1} files; give one at a time")
    try:
        format = format_of(path, None)
    except InputError as error:
        raise InputError(
            f"{flag}={path}: must end in .jsonl, .tsv, .csv, .parquet or .txt"
        ) from error
    return DataFile(path, format)


def is_table(path: str | None) -> bool:
    """Whether the lines of a file are rows of columns, rather than texts."""
    try:
        return path is not None and format_of(path, None) != "text"
    except InputError:
        return False


def _some(lines: Iterator[Line], path: str) -> Iterator[Line]:
    first = next(lines, None)
    if first is None:
        raise InputError(f"--input_file={path} is empty")
    yield first
    yield from lines


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
        found: list[Any] = []
        for line in chunk:
            try:
                found.append(read(line))
            except InputError as error:
                found.append(error)
        good = [each for each in found if not isinstance(each, InputError)]
        answers = iter(answer(good) if good else ())
        for line, each in zip(chunk, found, strict=True):
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


def check_output(path: str | None, endings: Sequence[str]) -> None:
    """Raises an InputError unless a file's name ends in one of `endings`, or there is none."""
    if path is not None and Path(path).suffix not in endings:
        raise InputError(f"--output_file={path}: must end in {' or '.join(endings)}")


@contextlib.contextmanager
def output(path: str | None) -> Iterator[BinaryIO]:
    """Yields standard output, or a file that takes its place when all is written, or not at all.

    Raises:
      InputError: if the file cannot be made.
    """
    if path is None:
        yield sys.stdout.buffer
        return
    if "://" in path:
        raise InputError(f"--output_file={path}: must be on this machine's disk")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(whole_file(Path(path).expanduser()))
        except OSError as error:
            raise InputError(f"cannot write --output_file={path}: {error.strerror}") from error
        yield file


def write_line(file: BinaryIO, record: Row) -> None:
    """Writes a JSON line, at once where somebody may be waiting for it."""
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    if file is sys.stdout.buffer:
        file.flush()
