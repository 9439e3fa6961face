"""Numbers as the page writes them; `page.js` writes its own the same way."""

import itertools
import math

_UNITS = ((1e15, "P", 1e15), (1e12, "T", 1e12), (1e9, "G", 1e9), (1e6, "M", 1e6), (1e4, "k", 1e3))


def number(value: float | None) -> str:
    """Returns four digits, three where there is a unit: `3.142`, `12.3k`, `1.5e-5`."""
    if value is None or not math.isfinite(value):
        return "–"
    for least, letter, unit in _UNITS:
        if abs(value) >= least:
            return f"{value / unit:.3g}{letter}" if abs(value) < 999.5 * unit else f"{value:.3g}"
    return f"{value:.4g}".replace("e-0", "e-")


def duration(seconds: float) -> str:
    """Returns the two largest units: `2 h 5 min`."""
    parts = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller, unit) in itertools.pairwise(parts):
        if seconds >= size:
            rest = int(seconds % size // unit)
            return f"{int(seconds // size)} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.0f} s"
