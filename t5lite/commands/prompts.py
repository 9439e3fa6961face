"""What lines are to a model, and what answers them, as the flags of `generate` and `infer` say."""

import argparse
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t5lite.commands.examples import data_file
from t5lite.commands.placement import placed
from t5lite.data.files.columns import Text
from t5lite.data.files.index import Hashes, hash_of, scan
from t5lite.data.files.readers import Line, Row
from t5lite.data.files.source import Shots, most_shots
from t5lite.data.files.templates import SHOTS, Template
from t5lite.data.input_format import InputFormat
from t5lite.errors import InputError
from t5lite.inference.options import FLAGS, from_words

if TYPE_CHECKING:
    from t5lite.inference.generator import Generator

_ANSWERS = ("targets", "answer")  # columns
_SLOT = re.compile(r"(?<!\{)\{shots\}(?!\})")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Makes of lines the texts that a model answers.

    Args:
      template: of a text; None: a line has it, as `inputs` or `text`.
      shots: fills the template's slot `{shots}`; None where it has none.
      made_of: says where the shots come from: equal ones give equal texts.
      inputs: how training made texts of rows, where there is no template.
      columns: of which the first that a row has is its text, where there is neither.
    """

    template: Template | None = None
    shots: Shots | None = None
    made_of: str = ""
    inputs: InputFormat = InputFormat()
    columns: Sequence[str] = ("inputs", "text")

    def text(self, line: Line) -> str:
        """Returns the text of a line.

        Raises:
          InputError: a broken line, or a column that is missing or no text.
        """
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
        """Whether a row's column `options` is no part of its text."""
        template = self.template or self.inputs.of_rows(row)
        return template is None or "options" not in template.slots

    def as_trained(self, inputs: InputFormat, *, rows: bool) -> "Prompts":
        """Returns the same with a run's template for rows, and says so; not over one of its own.

        Args:
          inputs: of the run.
          rows: whether there are columns; plain texts are read as they are.
        """
        if self.template is not None:
            return self
        say_template(inputs, rows=rows)
        return dataclasses.replace(self, inputs=inputs) if rows else self


def say_template(inputs: InputFormat, *, rows: bool) -> None:
    """Says on standard error how texts are read, where training read more than a column's text.

    Args:
      inputs: of the run.
      rows: whether there are columns; plain texts are read as they are.
    """
    if inputs.is_plain:
        return
    template = json.dumps(inputs.template, ensure_ascii=False)
    how = (
        f"rows with the columns of training are read by its template: {template}"
        if rows
        else f"texts are read as they are; training read {template}"
    )
    print(f"t5lite: {how} (--template changes that)", file=sys.stderr)


def prompts_of(arguments: argparse.Namespace) -> Prompts:
    """Returns what makes texts, as `--template`, `--examples` and `--shots` say.

    Raises:
      InputError: a template that is none, one of the three without the others, or examples that
        cannot be read, lack a column or are too few.
    """
    template = None if arguments.template is None else Template(arguments.template)
    slot = template is not None and SHOTS in template.slots
    if len({slot, arguments.examples is not None, arguments.shots is not None}) > 1:
        raise InputError(
            "--examples=FILE, --shots=N and the slot {shots} of --template go together: "
            "give all three, or none"
        )
    if template is None or not slot:
        return Prompts(template)
    return _with_shots(template, arguments.examples, arguments.shots)


def _with_shots(template: Template, path: str, count: int) -> Prompts:
    behind = _SLOT.split(template.text)[-1].lstrip()
    slots = Template(behind).slots
    if not slots:
        raise InputError(f"--template={template.text!r}: no slot behind {{shots}} for a question")
    file = data_file(path, flag="--examples")
    first = next((line.row for line in file.scan() if line.row is not None), {})
    answer = next((name for name in _ANSWERS if name in first), _ANSWERS[0])
    space = "" if behind[-1].isspace() else " "
    shot = Template(f"{behind}{space}{{{answer}}}")

    def hashes(row: Row) -> Hashes:  # a question is never told beside itself
        return Hashes(*[hash_of(row, slots)] * 3)

    index = scan([file], {"shot": Text(shot)}, lambda *_: "train", hashes=hashes)
    if index.num_broken:
        raise InputError(f"--examples={path}: {index.broken()}")
    most = most_shots(**index.tables)
    if not 1 <= count <= most:
        raise InputError(
            f"--shots={count}: must be 1..{most}, one less than there are different examples"
        )
    shots = Shots(index.tables["train"], count=count, template=shot, hashes=hashes)
    made_of = hashlib.sha256(f"{file.digest} {count}".encode()).hexdigest()
    return Prompts(template, shots, made_of)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the generation options of the command line, by name."""
    return from_words({name: value for name, value in vars(arguments).items() if name in FLAGS})


def open_generator(
    arguments: argparse.Namespace, model: Any, *, prompt: str | None = None, devices: Any = None
) -> "Generator":
    """Opens the model and its draft.

    Args:
      arguments: of the command line.
      model: its folder, or the checkpoint that `interop.open_model` opened in it.
      prompt: what a text is to it, unless the arguments say.
      devices: to use; None for all.

    Raises:
      InputError: no such folder, a model that cannot write, or a draft that does not fit.
    """
    if arguments.draft_length is not None and arguments.draft is None:
        raise InputError("--draft_length is for --draft, which is missing")

    from t5lite.inference.batching import check_count
    from t5lite.inference.generator import Generator

    check_count("--batch_size", arguments.batch_size)
    draft = arguments.draft
    return Generator(
        placed(arguments, model, devices=devices),
        prompt=arguments.prompt or prompt,
        fill=arguments.fill,
        truncate=arguments.truncate,
        draft=draft if draft in (None, "prompt") else placed(arguments, draft, devices=devices),
        draft_length=4 if arguments.draft_length is None else arguments.draft_length,
    )


def add_answering(parser: argparse.ArgumentParser) -> None:
    """Declares what texts are made of, and how they are answered."""
    for name, rule in FLAGS.items():
        parser.add_argument(
            f"--{name}",
            type=rule.parse,
            metavar=None if rule.names else rule.metavar,
            choices=tuple(rule.names) or None,
            action="append" if rule.repeatable or rule.weighted else "store",
            default=argparse.SUPPRESS,
            help=rule.help,
        )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="most texts at once (32)"
    )
    parser.add_argument(
        "--fill", action="store_true", help="answer with the texts, their gaps filled in"
    )
    parser.add_argument(
        "--prompt",
        choices=("inputs", "continue", "prefix"),
        help="what a text is to the model: inputs to answer, a beginning to continue, or one that "
        "is seen in both directions (as it was trained; else inputs, of decoders continue)",
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model"
    )
    parser.add_argument(
        "--draft",
        metavar="DIR",
        help="a smaller model of the same vocabulary that proposes tokens; or `prompt`: they are "
        "looked up in the text and the answer",
    )
    parser.add_argument(
        "--draft_length", type=int, metavar="N", help="tokens proposed at a time (4)"
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='makes texts of columns: "question: {question}"; {text} is a plain line or a TEXT (of '
        "rows, as in training; else of `inputs` or `text`)",
    )
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help="rows with `targets` or `answer` too, for the template's slot {shots}: told as what "
        "stands behind it, each with its answer, an empty line between them",
    )
    parser.add_argument(
        "--shots", type=int, metavar="N", help="how many of --examples a text gets; not itself"
    )
