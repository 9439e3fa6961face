"""Texts of lines, generation options and the model, from the flags of `generate` and `infer`."""

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from t5lite.commands.flags import add_shared, placed
from t5lite.commands.lines import data_file
from t5lite.data.files.templates import SHOTS, Template
from t5lite.errors import InputError
from t5lite.inference.options import FLAGS, from_words

if TYPE_CHECKING:
    from t5lite.data.files.line_texts import LineTexts
    from t5lite.data.input_format import InputFormat
    from t5lite.inference import Loaded
    from t5lite.inference.request import Reader


def with_trained_template(texts: "LineTexts", inputs: "InputFormat", *, rows: bool) -> "LineTexts":
    """Returns texts with a run's template for rows, unless the flags have one; notes it."""
    if texts.template is not None:
        return texts
    note_template(inputs, rows=rows)
    return dataclasses.replace(texts, inputs=inputs) if rows else texts


def note_template(inputs: "InputFormat", *, rows: bool) -> None:
    """Notes on standard error how texts are read, if training read more than one column."""
    if inputs.is_plain:
        return
    template = json.dumps(inputs.template, ensure_ascii=False)
    note = (
        f"rows with the columns of training are read by its template: {template}"
        if rows
        else f"texts are read as they are; training read {template}"
    )
    print(f"t5lite: {note} (--template changes that)", file=sys.stderr)


def texts_of(arguments: argparse.Namespace) -> "LineTexts":
    """Returns the converter of lines to texts, by `--template`, `--examples` and `--shots`."""
    from t5lite.data.files.line_texts import LineTexts, few_shot

    template = None if arguments.template is None else Template(arguments.template)
    slot = template is not None and SHOTS in template.slots
    if len({slot, arguments.examples is not None, arguments.shots is not None}) > 1:
        raise InputError(
            "--examples=FILE, --shots=N and the slot {shots} of --template go together: "
            "give all three, or none"
        )
    if template is None or not slot:
        return LineTexts(template)
    return few_shot(template, data_file(arguments.examples, flag="--examples"), arguments.shots)


def chosen_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return from_words({name: value for name, value in vars(arguments).items() if name in FLAGS})


def open_reader(
    arguments: argparse.Namespace, model: Any, *, prompt: str | None = None, devices: Any = None
) -> tuple["Loaded", "Reader", dict[str, Any]]:
    """Opens the model and its draft.

    Args:
      model: its folder, or a checkpoint opened by `interop.open_model`.
      prompt: role of a text, unless the arguments say.
      devices: to use; None for all.

    Returns: the model, how it reads texts, and the draft's arguments of `Engine.generate`.
    """
    if arguments.draft_length is not None and arguments.draft is None:
        raise InputError("--draft_length is for --draft, which is missing", field="draft_length")

    from t5lite.inference.batching import check_count
    from t5lite.inference.generation import Draft

    check_count("--batch_size", arguments.batch_size)
    loaded, draft = placed(arguments, model, devices=devices), arguments.draft
    if draft not in (None, "prompt"):
        draft = placed(arguments, draft, devices=devices)
    length = 4 if arguments.draft_length is None else arguments.draft_length
    reader = loaded.reader(
        prompt=arguments.prompt or prompt,
        fill=arguments.fill,
        truncate=arguments.truncate,
        draft=draft,
        draft_length=length,
    )
    return loaded, reader, {"draft": Draft.of(draft), "draft_length": length}


def add_generation(parser: argparse.ArgumentParser) -> None:
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
        "--fill", action="store_true", help="respond with the whole text, its gaps filled in"
    )
    add_shared(parser, "--batch_size", "--prompt", "--truncate")
    parser.add_argument(
        "--draft",
        metavar="DIR",
        help="draft model of the same vocabulary, for speculative decoding; or `prompt`: n-grams "
        "of the text and the response are the draft",
    )
    parser.add_argument("--draft_length", type=int, metavar="N", help="draft tokens per step (4)")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='text of a row by its columns: "question: {question}"; {text} is a plain line or a '
        "TEXT (for rows, as in training; else `inputs` or `text`)",
    )
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help="few-shot examples for the template's slot {shots}: rows with `targets` or `answer`, "
        "each rendered with the template text after {shots} and followed by its answer, separated "
        "by blank lines",
    )
    parser.add_argument(
        "--shots",
        type=int,
        metavar="N",
        help="number of few-shot examples; a text is never among its own",
    )
