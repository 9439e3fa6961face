"""How rows become the texts that a run's model reads, kept beside the model: `inputs.json`."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.data.files.columns import Answer, Column, Tags, Text
from t5lite.data.files.templates import Template
from t5lite.data.paths import as_path, write_whole
from t5lite.errors import InputError, unknown

FILE = "inputs.json"
AMONG_OTHERS = "t5lite_inputs.json"  # in another library's folder
FORMAT_VERSION = 1
KINDS = ("text", "words", "context")


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """How the feature `inputs` was made in training.

    Attributes:
      template: the template of columns, such as "{title}. {body}"; None where the data had none.
      kind: "text"; "words": the template's one slot holds words, in a list or with spaces between
        (`Tags`); "context": answers are in its last slot (`Answer`).
      length: most tokens of a text, special ones included, longer ones losing their end; None where
        that is unknown.
    """

    template: str | None = None
    kind: str = "text"
    length: int | None = None

    @classmethod
    def of(cls, column: Column | None, *, length: int | None) -> "InputFormat":
        """Returns the format of what a column makes; without a template if only its code says."""
        if isinstance(column, Text):
            return cls(column.template.text, length=length)
        if isinstance(column, Tags):
            return cls(f"{{{column.words_column}}}", "words", length)
        if isinstance(column, Answer):
            return cls(column.template.text, "context", length)
        return cls(length=length)

    def of_rows(self, row: Mapping[str, Any]) -> Template | None:
        """Returns the template if a row has all of its columns, otherwise None."""
        if self.template is None:
            return None
        template = Template(self.template)
        return template if all(row.get(slot) is not None for slot in template.slots) else None

    def text(self, row: Mapping[str, Any], *columns: str, template: Template | None = None) -> str:
        """Returns the text of a row.

        Args:
          row: its columns.
          columns: of which the first that is there holds the text, where no template does.
          template: of the text, instead of the one in training. That one makes texts of rows that
            have all of its columns.

        Raises:
          InputError: if a column is missing, or holds no text.
        """
        if template is not None:
            if problem := Text(template).problem(dict(row)):
                raise InputError(problem)
            return template.render(row)
        trained = self.of_rows(row)
        if trained is not None:
            return trained.render(row)
        found = text_in(row, columns)
        if found is None:
            there = ", ".join(map(repr, row)) or "nothing"
            needed = f"no {' or '.join(map(repr, columns))}"
            if self.template is not None:
                needed += f", nor what training read, {self.template!r}"
            raise InputError(f"{needed}; there is {there}")
        return found

    @property
    def is_plain(self) -> bool:
        """Whether a text is its column's content alone."""
        return self.template is None or Template(self.template).is_slot


def text_in(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Returns the text in the first of the columns that a row has; None if it has none of them.

    Raises:
      InputError: if that column holds no text.
    """
    for name in columns:
        if name in row:
            if not isinstance(row[name], str):
                raise InputError(f"{name!r} is {json.dumps(row[name])[:40]}, not a text")
            return row[name]
    return None


def save_input_format(folder: str | os.PathLike, inputs: InputFormat, *, name: str = FILE) -> None:
    """Writes `inputs.json` unless it says the same already; nothing known, no file.

    Raises:
      InputError: if the file cannot be written.
    """
    if inputs != load_input_format(folder, name=name):
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(inputs)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_whole(as_path(folder) / name, text.encode())


def load_input_format(folder: str | os.PathLike, *, name: str = FILE) -> InputFormat:
    """Returns what `save_input_format` wrote into a folder; of one without the file, the default.

    Raises:
      InputError: if the file is damaged or of a newer format.
    """
    path = as_path(folder) / name
    if not path.exists():
        return InputFormat()
    try:
        content = json.loads(path.read_bytes())
        version = content.pop("format_version")
        inputs = InputFormat(**content) if version == FORMAT_VERSION else None
        if inputs is not None:
            if inputs.kind not in KINDS:
                raise unknown("kind", inputs.kind, KINDS)
            if inputs.template is not None:
                Template(inputs.template)
            if inputs.length is not None and not inputs.length >= 1:
                raise ValueError(f"length {inputs.length}")
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} is damaged: {error!r}; restore it from a backup") from error
    if inputs is None:
        raise InputError(
            f"{path}: format_version {version}; this t5lite reads {FORMAT_VERSION}: use the t5lite "
            "that wrote it"
        )
    return inputs
