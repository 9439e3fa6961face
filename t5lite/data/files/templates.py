"""Texts from the columns of a row: `"question: {question} context: {context}"`."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from t5lite.errors import InputError, unknown

SHOTS = "shots"
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """A text with slots: column names in braces.

    `{{` and `}}` are braces of the text. The slot `{shots}` takes the examples of few-shot prompts.

    Args:
      text: such as `"question: {question} context: {context}"`.
    Attributes:
      slots: column names, in order, `shots` included.
    Raises: InputError if a brace has no partner or a slot no name.
    """

    def __init__(self, text: str):
        self.text = text
        # Literal text and slots alternate: [literal, slot, literal, slot, literal].
        self._parts, end = [""], 0
        for token in _TOKEN.finditer(text):
            self._parts[-1] += text[end : token.start()]
            end = token.end()
            if token[0] in ("{{", "}}"):
                self._parts[-1] += token[0][0]
            elif token[1]:
                self._parts += [token[1], ""]
            else:
                raise InputError(
                    f"template {text!r}: {token[0]!r} at character {token.start()} names no "
                    "column; write {{ or }} for a brace of the text"
                )
        self._parts[-1] += text[end:]
        self.slots = tuple(self._parts[1::2])

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    @property
    def is_slot(self) -> bool:
        """Whether it is a single slot without text around it."""
        return len(self.slots) == 1 and not any(self._parts[::2])

    def check(self, columns: Iterable[str]) -> None:
        """Raises an InputError, with the nearest names, if a slot is not a column."""
        for slot in self.slots:
            if slot not in columns:
                raise InputError(f"template {self.text!r}: {unknown('column', slot, columns)}")

    def render(self, row: Mapping[str, Any]) -> str:
        """Returns the text with the row's values in its slots; see `plain`."""
        parts = self._parts.copy()
        parts[1::2] = [plain(row[slot]) for slot in self.slots]
        return "".join(parts)

    def start_of(self, slot: str, row: Mapping[str, Any]) -> int:
        """Returns the first character of a slot's last use in the rendered text."""
        last = len(self.slots) - 1 - self.slots[::-1].index(slot)
        parts = self._parts[: 2 * last + 1]
        return sum(len(plain(row[part]) if i % 2 else part) for i, part in enumerate(parts))


def plain(value: Any) -> str:
    """Returns a value as text: 3.0 is `3`, None is empty, lists are joined by spaces."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | tuple):
        return " ".join(map(plain, value))
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
