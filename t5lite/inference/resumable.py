"""Resumable files of lines: written in blocks, continued after any interruption."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from t5lite.data.paths import write_whole
from t5lite.errors import InputError, option


class Resumable:
    """A file that is being written.

    It is `FILE.part` until it is complete; `FILE.json` beside it describes its content, so that no
    job continues another's lines, and stays.

    Args:
      path: FILE, on this machine's disk.
      made_of: everything that determines its lines, by name; JSON values.

    Raises:
      InputError: if the path is not on this machine's disk.
    """

    def __init__(self, path: str, made_of: Mapping[str, Any]):
        if "://" in path:
            raise InputError(f"{option('output_file', path)}: must be on this machine's disk")
        self.path = Path(path).expanduser()
        self.part = self.path.with_name(f"{self.path.name}.part")
        self._description = self.path.with_name(f"{self.path.name}.json")
        self._made_of = json.loads(json.dumps(made_of))

    def is_whole(self) -> bool:
        """Whether the file is complete.

        Raises:
          InputError: if it, or its part, was made of something else.
        """
        begun = self.part.exists() and self.part.stat().st_size > 0
        if begun or self.path.exists():
            self._check(self.part if begun else self.path)
        return self.path.exists() and not begun

    def _check(self, there: Path) -> None:
        try:
            found = json.loads(self._description.read_bytes())
        except (OSError, ValueError):
            found = None
        overwrite, other = option("overwrite", True), option("output_file")
        anew = f"{overwrite} starts anew, another {other} leaves it"
        if not isinstance(found, dict):
            raise InputError(f"{there} exists without {self._description.name}; {anew}")
        for name in self._made_of | found:
            was, now = found.get(name), self._made_of.get(name)
            if was != now:
                raise InputError(
                    f"{there} was written with {option(name)} = {_shown(was)}, now "
                    f"{_shown(now)}; {anew}"
                )

    def _check_description(self) -> None:
        """Raises an InputError if the description would take the place of another file."""
        with contextlib.suppress(FileNotFoundError):
            raw = self._description.read_bytes()
            try:
                own = bool(json.loads(raw).keys() & self._made_of.keys())
            except (ValueError, AttributeError):
                own = False
            if not own:
                raise InputError(
                    f"{self._description} exists and would be overwritten; choose another "
                    f"{option('output_file')}"
                )

    @contextlib.contextmanager
    def open(self, *, block: int, overwrite: bool = False) -> Iterator[BinaryIO]:
        """Yields the part, positioned to read its whole blocks and then to append.

        When all is written it becomes the file; an error leaves it as it is, to be resumed.

        Args:
          block: lines that are written together; those of half a block are cut off.
          overwrite: whether to forget what is there.

        Raises:
          InputError: if it cannot be written, or another process is writing it.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.part.open("a+b")
        except OSError as error:
            raise InputError(f"cannot write {self.part}: {error.strerror}") from error
        from t5lite.training.claims import claimed

        claims = self.path.with_name(f".{self.path.name}.claims")
        with file, claimed(claims, name=str(self.part)):
            self._check_description()
            if overwrite:
                self.path.unlink(missing_ok=True)
                file.truncate(0)
            file.truncate(_end_of_blocks(file, block))
            if file.tell() == 0:  # before any line: none is ever without it
                write_whole(self._description, json.dumps(self._made_of, indent=2).encode())
            file.seek(0)
            yield file
            keep(file)
            os.replace(self.part, self.path)


def keep(file: BinaryIO) -> None:
    """Returns when all that is written is safe from whatever may happen."""
    file.flush()
    os.fsync(file.fileno())


def _end_of_blocks(file: BinaryIO, block: int) -> int:
    """Returns, and goes to, the byte behind the last whole block of lines."""
    at = end = 0
    file.seek(0)
    for number, raw in enumerate(file, 1):
        at += len(raw)
        if number % block == 0 and raw.endswith(b"\n"):
            end = at
    return file.seek(end)


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:60]
