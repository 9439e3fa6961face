"""Input texts of lines, and few-shot prompts."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence

from t5lite.data.files.columns import Text
from t5lite.data.files.index import Hashes, hash_of, scan
from t5lite.data.files.readers import DataFile, Line, Row
from t5lite.data.files.source import Shots, most_shots
from t5lite.data.files.templates import SHOTS, Template
from t5lite.data.input_format import InputFormat
from t5lite.errors import InputError

_ANSWERS = ("targets", "answer")  # columns
_SLOT = re.compile(r"(?<!\{)\{shots\}(?!\})")


@dataclasses.dataclass(frozen=True)
class LineTexts:
    """Makes a model's input texts from the lines of a file."""

    template: Template | None = None
    shots: Shots | None = None  # for the template's slot `{shots}`
    made_of: str = ""  # identifies the examples of the shots: equal ones give equal texts
    inputs: InputFormat = InputFormat()  # of training; used without a template
    columns: Sequence[str] = ("inputs", "text")  # used without both: the first of a row

    def text(self, line: Line) -> str:
        """Returns the text of a line; raises InputError if broken or without a column of text."""
        if line.row is None:
            raise InputError(line.problem)
        row = line.row
        if self.template is None:
            return self.inputs.text(row, *self.columns)
        if SHOTS in self.template.slots:
            row = row | {SHOTS: ""}
        if problem := Text(self.template).problem(row):
            raise InputError(problem)
        if self.shots is not None:
            row = row | {SHOTS: self.shots.texts([row])[0]}
        return self.template.render(row)

    def leaves_options(self, row: Row) -> bool:
        """Whether a row's column `options` stays out of its text."""
        template = self.template or self.inputs.of_rows(row)
        return template is None or "options" not in template.slots


def few_shot(template: Template, file: DataFile, count: int) -> LineTexts:
    """Returns texts with examples of a file in the template's slot `{shots}`.

    An example is the template's text after that slot, followed by its answer, the column `targets`
    or `answer`; a question is excluded from its own. InputError if the template has no slot for a
    question, or examples lack a column or are too few.
    """
    question = _SLOT.split(template.text)[-1].lstrip()
    slots = Template(question).slots
    if not slots:
        raise InputError(
            f"template = {template.text!r}: no slot for a question after {{shots}}",
            field="template",
        )
    first = next((line.row for line in file.scan() if line.row is not None), {})
    answer = next((name for name in _ANSWERS if name in first), _ANSWERS[0])
    shot = Template(f"{question}{'' if question[-1].isspace() else ' '}{{{answer}}}")

    def hashes(row: Row) -> Hashes:
        return Hashes(*[hash_of(row, slots)] * 3)

    index = scan([file], {"shot": Text(shot)}, lambda *_: "train", hashes=hashes)
    if index.num_broken:
        raise InputError(f"examples = {file.path}: {index.broken()}", field="examples")
    most = most_shots(**index.tables)
    if not 1 <= count <= most:
        raise InputError(
            f"shots = {count}: must be 1..{most}, one less than there are different examples",
            field="shots",
        )
    shots = Shots(index.tables["train"], count=count, template=shot, hashes=hashes)
    made_of = hashlib.sha256(f"{file.digest} {count}".encode()).hexdigest()
    return LineTexts(template, shots, made_of)
