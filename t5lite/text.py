"""Text for a terminal: tables, wrapped lines, and numbers with units."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 98  # of a line, inside a margin of two


def table(rows: Sequence[Sequence[str]], *, right: int | None = None) -> list[str]:
    """Returns a line for each row, in columns, right-aligned from column `right` on."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = len(widths) if right is None else right
    return [
        "  ".join(
            cell.rjust(width) if index >= right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def wrapped(label: str, text: str, *, max_lines: int | None = None) -> list[str]:
    """Returns a label and, beside it, the wrapped text, at most `max_lines`."""
    text = " ".join(text.split()) or "(nothing)"
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        max_lines=max_lines,
        placeholder=" …",
    )


def titled(sections: Mapping[str, Iterable[str]]) -> str:
    """Returns sections of lines under their titles."""
    return "\n\n".join(
        "\n".join([f"── {title} ".ljust(WIDTH + 2, "─"), *(f"  {line}".rstrip() for line in lines)])
        for title, lines in sections.items()
    )


def shorten(text: str, width: int, *, keep: str = "both") -> str:
    """Returns `text` on one line of at most `width` >= 5 characters, with an ellipsis.

    Whole words of its "start", "end" or "both" remain; runs of white space become one space.
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    if keep == "start":
        return _head(text, width - 2) + " …"
    if keep == "end":
        return "… " + _head(text[::-1], width - 2)[::-1]
    tail = (width - 3) // 2
    return f"{_head(text, width - 3 - tail)} … {_head(text[::-1], tail)[::-1]}"


def _head(text: str, width: int) -> str:
    """Returns the first words that fit, or the start of the first word."""
    whole, _, _ = text[: width + 1].rpartition(" ")
    return whole.rstrip() or text[:width]


def in_bytes(count: float) -> str:
    """Returns three digits and a unit of 1,024s: `7.15 MiB`."""
    return _quantity(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def in_flops(count: float) -> str:
    """Returns three digits and a unit of 1,000s: `3.46 GFLOP`."""
    return _quantity(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _quantity(value: float, base: int, units: Sequence[str]) -> str:
    unit = 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f"{value:.3g} {units[unit]}"


def metric_lines(metrics: Mapping[str, float]) -> list[str]:
    """Returns a table, one metric a line."""
    width = max(map(len, metrics), default=0)
    return [f"  {name:<{width}}  {value:>12.6g}" for name, value in metrics.items()]
