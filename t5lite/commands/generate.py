"""`t5lite generate`: text in, text out, with any checkpoint."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from t5lite.commands.examples import given, is_table
from t5lite.commands.placement import add_model
from t5lite.commands.prompts import (
    add_answering,
    given_options,
    open_generator,
    prompts_of,
    with_trained_template,
)
from t5lite.commands.session import converse, show
from t5lite.data import decode_text
from t5lite.data.files.readers import Line
from t5lite.data.files.templates import SHOTS
from t5lite.errors import InputError
from t5lite.inference.batch_job import answered

if TYPE_CHECKING:
    from t5lite.configuration import Configuration
    from t5lite.data.files.line_texts import LineTexts
    from t5lite.inference.answer import Answer
    from t5lite.inference.generator import Generator
    from t5lite.inference.options import Options
    from t5lite.inference.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to answer, and how."""
    parser.description = (
        f"{parser.description}; a line of output for each answer. In a terminal, without a text: "
        "a session"
    )
    parser.epilog = (
        "gaps of a span-corruption model are written <extra_id_0>, <extra_id_1>, ...: "
        't5lite generate --model_dir=DIR --fill "The <extra_id_0> is sorted."'
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    add_model(parser)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help="UTF-8, one text a line; or .jsonl, .tsv, .csv or .parquet with `inputs` or `text`, "
        "or what --template names. Without it and without TEXT, standard input is read",
    )
    add_answering(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Prints a line for each answer, its white space single spaces; or holds a session.

    A single text of the command line is answered piece by piece where somebody looks. A line that
    cannot be answered leaves an empty one, and is explained on standard error.
    """
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("generate reads no gin configuration; the model is --model_dir=DIR")
    prompts, chosen = prompts_of(arguments), given_options(arguments)
    typed = not arguments.texts and arguments.input_file is None and sys.stdin.isatty()
    lines = [] if typed and sys.stdout.isatty() else read_lines(arguments)
    if prompts.template is not None and not is_table(arguments.input_file):
        prompts.template.check(["text", SHOTS])

    from t5lite.inference.options import Options  # only now: reading the texts needs no JAX

    Options(**chosen)  # refuses what is out of range before a model is opened
    generator = open_generator(arguments, arguments.model_dir)
    options = generator.options(chosen)
    generator.check(options)
    rows = is_table(arguments.input_file)
    prompts = with_trained_template(prompts, generator.loaded.inputs, rows=rows)
    if not lines:
        return converse(generator, prompts, chosen)
    if len(arguments.texts) == 1:
        question = generator.read(prompts.text(lines[0]), options)
        if sys.stdout.isatty() and generator.streams(options):
            show(generator.stream(question))
        else:
            print_answers(generator.answers([question])[0])
        return 0
    return answer_lines(generator, prompts, options, lines, batch_size=arguments.batch_size)


def answer_lines(
    generator: "Generator",
    prompts: "LineTexts",
    options: "Options",
    lines: Iterable[Line],
    *,
    batch_size: int,
) -> int:
    """Prints the answers to lines, a batch at a time; returns the exit code, 1 if one failed."""
    failed = False

    def read(line: Line) -> "Request":
        return generator.read(prompts.text(line), options, number=line.number - 1)

    def answer(questions: list["Request"]) -> list["list[Answer] | InputError"]:
        return generator.outcomes(questions, batch_size=batch_size)

    for line, found in answered(lines, read, answer, at_once=batch_size):
        if isinstance(found, InputError):
            failed = True
            print(f"t5lite: line {line.number}: {found}", file=sys.stderr)
            print("\n" * (options.num_samples - 1), flush=True)
        else:
            print_answers(found)
    return int(failed)


def print_answers(answers: Iterable["Answer"]) -> None:
    """Prints answers, a line each."""
    for answer in answers:
        print(" ".join(answer.text.split()), flush=True)


def read_lines(arguments: argparse.Namespace) -> list[Line]:
    """Returns the texts of the command line, of `--input_file`, or of standard input.

    Of a table they are its rows; of anything else all lines, empty ones included.

    Raises:
      InputError: if there is none, or what is read is not UTF-8.
    """
    if arguments.texts and arguments.input_file is not None:
        raise InputError("give TEXT or --input_file, not both")
    if is_table(arguments.input_file):
        return list(given([], arguments.input_file)[0])
    texts = arguments.texts or _plain_lines(arguments.input_file)
    return [Line(number, 0, 0, {"text": text}) for number, text in enumerate(texts, 1)]


def _plain_lines(path: str | None) -> list[str]:
    if path is not None:
        where = path
        try:
            raw = Path(where).expanduser().read_bytes()
        except OSError as error:
            raise InputError(f"cannot read --input_file={where}: {error.strerror}") from error
    elif sys.stdin.isatty():
        raise InputError("no text; give TEXT, --input_file=FILE, or pipe lines into standard input")
    else:
        where, raw = "standard input", sys.stdin.buffer.read()
    # Not splitlines, which also breaks at characters that belong to a text.
    lines = [line.removesuffix("\r") for line in decode_text(raw, where=where).split("\n")]
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise InputError(f"{where} is empty; write one text a line")
    return lines
