"""Progress bars of commands that read and write large files."""

import sys
from typing import Any


class Bar:
    """A progress bar, in bytes by default; hidden unless standard error is a terminal."""

    def __init__(self, name: str, *, unit: str = "B"):
        self._name, self._unit = name, unit
        self._bar: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __call__(self, done: int, total: int, *, start: int = 0, note: str = "") -> None:
        """Shows the amount done; the rate counts from `start`, and `note` follows the bar."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=start,
                desc=self._name,
                unit=self._unit,
                unit_scale=self._unit == "B",
                disable=not sys.stderr.isatty(),
            )
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
