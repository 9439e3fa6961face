"""Progress bars of commands that read and write large files."""

import sys
from typing import Any

from tqdm import tqdm


class Bar:
    """A progress bar in bytes; none where nobody looks."""

    def __init__(self, name: str):
        self._name = name
        self._bar: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                desc=self._name,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            )
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
