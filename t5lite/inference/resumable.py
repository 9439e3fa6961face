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
    """A file under construction: `FILE.part` until it is complete; `FILE.json` beside it describes
    its content, so that no job continues another's lines, and stays.

    Args:
      path: FILE, on this machine's disk, else an InputError.
      recipe: everything that determines its lines, by name; JSON values.
    """

    def __init__(self, path: str, recipe: Mapping[str, Any]):
        if "://" in path:
            raise InputError(f"{option('output_file', path)}: must be on this machine's disk")
        self.path = Path(path).expanduser()
        self.part = self.path.with_name(f"{self.path.name}.part")
        self._description = self.path.with_name(f"{self.path.name}.json")
        self._recipe = json.loads(json.dumps(recipe))

    def is_whole(self) -> bool:
        """Whether the file is complete; an InputError if it, or its part, has another recipe."""
        partial = self.part.exists() and self.part.stat().st_size > 0
        if partial or self.path.exists():
            self._check(self.part if partial else self.path)
        return self.path.exists() and not partial

    def _check(self, file: Path) -> None:
        try:
            recipe = json.loads(self._description.read_bytes())
        except (OSError, ValueError):
            recipe = None
        fix = f"{option('overwrite', True)} replaces it, another {option('output_file')} keeps it"
        if not isinstance(recipe, dict):
            raise InputError(f"{file} exists without {self._description.name}; {fix}")
        for name in self._recipe | recipe:
            old, new = recipe.get(name), self._recipe.get(name)
            if old != new:
                raise InputError(
                    f"{file} was written with {option(name)} = {_short(old)}, now {_short(new)}; "
                    f"{fix}"
                )

    def _check_description(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            raw = self._description.read_bytes()
            try:
                ours = bool(json.loads(raw).keys() & self._recipe.keys())
            except (ValueError, AttributeError):
                ours = False
            if not ours:
                raise InputError(
                    f"{self._description} exists and would be overwritten; choose another "
                    f"{option('output_file')}"
                )

    @contextlib.contextmanager
    def open(self, *, block: int, overwrite: bool = False) -> Iterator[BinaryIO]:
        """Yields the part, positioned to read its whole blocks and then to append. It becomes the
        file at the end; an error leaves it to be resumed.

        Args:
          block: lines that are written together; those of a partial block are cut off.
          overwrite: whether to start from an empty file.
        Raises: InputError if the file cannot be written, or another process is writing it.
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
            if file.tell() == 0:  # before any line, so that none is without it
                write_whole(self._description, json.dumps(self._recipe, indent=2).encode())
            file.seek(0)
            yield file
            sync(file)
            os.replace(self.part, self.path)


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _end_of_blocks(file: BinaryIO, block: int) -> int:
    """Seeks, and returns, the end of the last whole block of lines."""
    position = end = 0
    file.seek(0)
    for number, raw in enumerate(file, 1):
        position += len(raw)
        if number % block == 0 and raw.endswith(b"\n"):
            end = position
    return file.seek(end)


def _short(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:60]
