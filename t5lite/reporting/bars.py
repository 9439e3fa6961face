"""Progress of commands: a bar for countable work, a line of stages for a compiler's."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from t5lite.text import WIDTH


class Bar:
    """A progress bar on standard error, in bytes by default; hidden unless that is a terminal.

    Args:
      name: in front of the bar.
      unit: of the amounts; bytes get prefixes.
      total: the whole amount; None if unknown, or given by calls.
      active: False hides it, on all processes but the first.
    """

    def __init__(
        self, name: str = "", *, unit: str = "B", total: int | None = None, active: bool = True
    ):
        self._name, self._unit, self._total = name, unit, total
        self._hidden = not (active and sys.stderr.isatty())
        self._bar: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, amount: int, total: int, *, start: int = 0, note: str = "") -> None:
        """Shows the amount done; the rate counts from `start`, and `note` follows the bar."""
        self._total = total
        bar = self._opened(start)
        bar.set_postfix_str(note, refresh=False)
        bar.update(amount - bar.n)

    def add(self, amount: int = 1) -> None:
        """Adds to the amount done."""
        self._opened().update(amount)

    def rename(self, name: str) -> None:
        self._name = name
        self._opened().set_description(name)

    def section(self, name: str) -> None:
        """Begins a further bar, unless `name` is the present one's."""
        if name != self._name:
            self.close()
            self._name = name

    def stage(self, name: str, amount: int, total: int) -> None:
        """Shows the amount of a stage, each with a bar."""
        self.section(name)
        self(amount, total)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _opened(self, start: int = 0) -> Any:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=start,
                desc=self._name,
                unit=self._unit if self._unit == "B" else f" {self._unit}",
                unit_scale=self._unit == "B",
                disable=self._hidden,
                file=sys.stderr,
            )
        return self._bar


@contextlib.contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Shows a title, a stage and the elapsed seconds on one line of a terminal, or a stage a line.

    Yields a function that takes the name of the next stage; "" keeps the present one.
    """
    stage, finished = "starting", threading.Event()
    start = time.monotonic()
    live = sys.stderr.isatty()

    def tick() -> None:
        while not finished.wait(0.5):
            line = f"{title}: {stage}, {time.monotonic() - start:.0f} s"
            print(f"\r\033[K{line[: WIDTH + 2]}", end="", file=sys.stderr, flush=True)

    ticking = threading.Thread(target=tick, daemon=True)
    if live:
        ticking.start()

    def show(name: str) -> None:
        nonlocal stage
        if name:
            stage = name
            if not live:
                print(f"{title}: {stage}", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        finished.set()
        if live:
            ticking.join()
            print("\r\033[K", end="", file=sys.stderr, flush=True)
