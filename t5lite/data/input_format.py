"""The format of a model's inputs: how rows become texts, saved beside it as `inputs.json`."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.data.files.columns import Answer, Column, Tags, Text
from t5lite.data.files.templates import Template
from t5lite.data.paths import as_path, read_json, write_json
from t5lite.errors import InputError

FILE = "inputs.json"
AMONG_OTHERS = "t5lite_inputs.json"  # in another library's folder
FORMAT_VERSION = 1
KINDS = ("text", "words", "context")


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """Format of the feature `inputs` in training.

    Attributes:
      template: of columns, such as "{title}. {body}"; None for data without one.
      kind: "text"; "words": the template's one slot holds words, in a list or with spaces between
        (`Tags`); "context": answers are in its last slot (`Answer`).
      length: most tokens of a text, special ones included, before truncation; None if unknown.
    """

    template: str | None = None
    kind: str = "text"
    length: int | None = None

    @classmethod
    def of(cls, column: Column | None, *, length: int | None) -> "InputFormat":
        """Returns the format of a column; without a template if it is of a user's own class."""
        if isinstance(column, Text):
            return cls(column.template.text, length=length)
        if isinstance(column, Tags):
            return cls(f"{{{column.words_column}}}", "words", length)
        if isinstance(column, Answer):
            return cls(column.template.text, "context", length)
        return cls(length=length)

    def of_rows(self, row: Mapping[str, Any]) -> Template | None:
        if self.template is None:
            return None
        template = Template(self.template)
        return template if all(row.get(slot) is not None for slot in template.slots) else None

    def text(self, row: Mapping[str, Any], *columns: str, template: Template | None = None) -> str:
        """Returns the text of a row; raises InputError if a column is missing, or holds no text.

        Args:
          row: its columns.
          columns: the first of them in the row is the text, if no template applies.
          template: of the text; None: the one of training, if the row has all of its columns.
        """
        if template is not None:
            if problem := Text(template).problem(dict(row)):
                raise InputError(problem)
            return template.render(row)
        trained = self.of_rows(row)
        if trained is not None:
            return trained.render(row)
        text = text_in(row, columns)
        if text is None:
            needed = f"no {' or '.join(map(repr, columns))}"
            if self.template is not None:
                needed += f", nor what training read, {self.template!r}"
            raise InputError(f"{needed}; there is {', '.join(map(repr, row)) or 'nothing'}")
        return text

    @property
    def is_plain(self) -> bool:
        """Whether a text is its column's content alone."""
        return self.template is None or Template(self.template).is_slot


def text_in(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Returns the text in the first of the columns that a row has, if any; refuses other values."""
    for name in columns:
        if name in row:
            if not isinstance(row[name], str):
                raise InputError(f"{name!r} is {json.dumps(row[name])[:40]}, not a text")
            return row[name]
    return None


def save_input_format(folder: str | os.PathLike, inputs: InputFormat, *, name: str = FILE) -> None:
    """Writes `inputs.json`, except of the default format, unless a load gives the same."""
    if inputs != load_input_format(folder, name=name):
        content = dataclasses.asdict(inputs)
        write_json(as_path(folder) / name, content, version=FORMAT_VERSION)


def load_input_format(folder: str | os.PathLike, *, name: str = FILE) -> InputFormat:
    """Returns what `save_input_format` wrote; the default without a file; InputError if damaged."""
    path = as_path(folder) / name
    if not path.exists():
        return InputFormat()
    return read_json(path, _parsed, version=FORMAT_VERSION)


def _parsed(content: dict[str, Any]) -> InputFormat:
    inputs = InputFormat(**content)
    if inputs.kind not in KINDS:
        raise ValueError(f"kind {inputs.kind!r}")
    if inputs.length is not None and not inputs.length >= 1:
        raise ValueError(f"length {inputs.length}")
    try:
        Template(inputs.template or "")
    except InputError as error:
        raise ValueError(str(error)) from error
    return inputs
