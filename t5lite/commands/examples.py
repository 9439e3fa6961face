"""Input rows of a command line or file, and output files."""

import argparse
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


def lines_of(path: str) -> Lines:
    """Returns the lines of `--input_file`, which is read once for their number and digest."""
    file = data_file(path)
    count = sum(1 for _ in file.scan())
    if not count:
        raise InputError(f"--input_file={file.path} is empty")
    return Lines(file.scan, count, file.digest)


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


def add_shard(parser: argparse.ArgumentParser) -> None:
    """Declares which part of the lines, and whether to start anew."""
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="answer the I-th, from 0, of N parts of the lines, into FILE-0000I-of-0000N.jsonl, "
        "which `cat` puts together in order (of several processes of JAX, each one's)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew, whatever an earlier command wrote"
    )
