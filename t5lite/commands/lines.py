"""Input lines, from a command line or a file, and output files."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from t5lite.data.files.opening import find_files, format_of
from t5lite.data.files.readers import DataFile, Line, Row
from t5lite.data.paths import whole_file
from t5lite.errors import InputError
from t5lite.inference.batch_job import Lines


def check_input(texts: Sequence[object], input_file: str | None) -> None:
    """Raises an InputError unless there are either texts or a file."""
    if texts and input_file is not None:
        raise InputError("give TEXT or --input_file, not both", field="input_file")
    if not texts and input_file is None:
        raise InputError("no text; give TEXT or --input_file=FILE", field="input_file")


def numbered(rows: Sequence[Row]) -> list[Line]:
    return [Line(number, 0, 0, row) for number, row in enumerate(rows, 1)]


def input_lines(rows: Sequence[Row], input_file: str | None) -> tuple[Iterator[Line], int]:
    """Returns lines, and the bytes of the file that holds them; 0 for a command line's.

    Args:
      input_file: `.jsonl`, `.tsv`, `.csv`, `.parquet` or `.txt`, in place of rows.
    """
    check_input(rows, input_file)
    if input_file is None:
        return iter(numbered(rows)), 0
    file = data_file(input_file)
    return _nonempty(file.scan(), file.path), file.num_bytes


def counted_lines(path: str) -> Lines:
    """Returns the lines of `--input_file`, which is read once for their number and digest."""
    file = data_file(path)
    return Lines(file.scan, sum(1 for _ in _nonempty(file.scan(), file.path)), file.digest)


def data_file(pattern: str, *, flag: str = "--input_file") -> DataFile:
    """Returns the one file of a flag, its format by its name; InputError for none or several."""
    path, *more = find_files(pattern, field=flag)
    if more:
        raise InputError(f"{flag}={pattern}: {len(more) + 1} files; give one at a time", field=flag)
    try:
        return DataFile(path, format_of(path, None))
    except InputError as error:
        raise InputError(
            f"{flag}={path}: must end in .jsonl, .tsv, .csv, .parquet or .txt", field=flag
        ) from error


def is_table(path: str | None) -> bool:
    """Whether the lines of a file are rows of columns, rather than texts."""
    try:
        return path is not None and format_of(path, None) != "text"
    except InputError:
        return False


def _nonempty(lines: Iterator[Line], path: str) -> Iterator[Line]:
    first = next(lines, None)
    if first is None:
        raise InputError(f"--input_file={path} is empty", field="input_file")
    yield first
    yield from lines


def check_output(path: str | None, endings: Sequence[str]) -> None:
    """Raises an InputError unless an output file's name ends in one of `endings`."""
    if path is not None and Path(path).suffix not in endings:
        raise InputError(
            f"--output_file={path}: must end in {' or '.join(endings)}", field="output_file"
        )


@contextlib.contextmanager
def output(path: str | None) -> Iterator[BinaryIO]:
    """Yields standard output, or a file that appears only when complete."""
    if path is None:
        yield sys.stdout.buffer
        return
    if "://" in path:
        raise InputError(
            f"--output_file={path}: must be on this machine's disk", field="output_file"
        )
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(whole_file(Path(path).expanduser()))
        except OSError as error:
            raise InputError(f"cannot write --output_file={path}: {error.strerror}") from error
        yield file
