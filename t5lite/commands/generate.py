"""`t5lite generate`: text in, text out, with any checkpoint."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5lite.commands.flags import MODEL, add_shared
from t5lite.commands.lines import check_input, input_lines, is_table, numbered
from t5lite.commands.prompts import (
    add_generation,
    chosen_options,
    open_reader,
    texts_of,
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
    from t5lite.inference.answer import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{parser.description}; one line of output per response. In a terminal, without TEXT: an "
        "interactive session"
    )
    parser.epilog = (
        "gaps of a span-corruption model are written <extra_id_0>, <extra_id_1>, ...: "
        't5lite generate --model_dir=DIR --fill "The <extra_id_0> is sorted."'
    )
    add_shared(parser, "texts")
    add_shared(parser, "--model_dir", required=True)
    add_shared(parser, *MODEL[1:])
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help="UTF-8, one text a line; or .jsonl, .tsv, .csv or .parquet with `inputs` or `text`, "
        "or the columns of --template. Without it and without TEXT, standard input is read",
    )
    add_generation(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Prints a line for each response, white space collapsed; or holds a session.

    A single TEXT's response is streamed to a terminal. A failed line prints an empty one, with its
    error on standard error.
    """
    del configuration
    texts, chosen = texts_of(arguments), chosen_options(arguments)
    rows = is_table(arguments.input_file)
    typed = not arguments.texts and arguments.input_file is None and sys.stdin.isatty()
    lines = [] if typed and sys.stdout.isatty() else read_lines(arguments)
    if texts.template is not None and not rows:
        texts.template.check(["text", SHOTS])

    from t5lite.inference.options import Options  # only now: reading the texts needs no JAX
    from t5lite.inference.request import Request

    Options(**chosen)  # refuses values out of range before a model is opened
    loaded, reader, draft = open_reader(arguments, arguments.model_dir)
    options = reader.options(chosen)
    reader.check(options)
    texts = with_trained_template(texts, loaded.inputs, rows=rows)
    engine, params = loaded.engine, loaded.decoding_params
    outcomes = functools.partial(engine.outcomes, params, batch_size=arguments.batch_size, **draft)

    def stream(request: Request) -> Iterator[str]:
        return engine.stream(params, request, **draft)

    if not lines:
        return converse(reader, texts, chosen, generate=outcomes, stream=stream)

    def read(line: Line) -> Request:
        return Request.from_text(texts.text(line), reader, options, number=line.number - 1)

    if len(arguments.texts) != 1:
        return print_lines(
            lines,
            read,
            outcomes,
            batch_size=arguments.batch_size,
            num_samples=options.num_samples,
        )
    request = read(lines[0])
    if sys.stdout.isatty() and reader.streams(options):
        show(stream(request))
    else:
        print_responses(engine.generate(params, [request], **draft)[0])
    return 0


def print_lines(
    lines: Iterable[Line],
    read: Callable[[Line], Any],
    generate: Callable[[list[Any]], Iterable["list[Answer] | InputError"]],
    *,
    batch_size: int,
    num_samples: int,
) -> int:
    """Prints responses a batch at a time; returns the exit code, 1 if a line failed."""
    failed = False
    for line, outcome in answered(lines, read, generate, at_once=batch_size):
        if isinstance(outcome, InputError):
            failed = True
            print(f"t5lite: line {line.number}: {outcome}", file=sys.stderr)
            print("\n" * (num_samples - 1), flush=True)  # as many lines as responses
        else:
            print_responses(outcome)
    return int(failed)


def print_responses(answers: Iterable["Answer"]) -> None:
    for answer in answers:
        print(" ".join(answer.text.split()), flush=True)


def read_lines(arguments: argparse.Namespace) -> list[Line]:
    """Returns the texts of the command line, of `--input_file`, or of standard input.

    A table gives its rows, any other file all lines, empty ones included.
    """
    if arguments.texts:
        check_input(arguments.texts, arguments.input_file)
    if is_table(arguments.input_file):
        return list(input_lines([], arguments.input_file)[0])
    texts = arguments.texts or _plain_lines(arguments.input_file)
    return numbered([{"text": text} for text in texts])


def _plain_lines(path: str | None) -> list[str]:
    if path is not None:
        name = path
        try:
            raw = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise InputError(f"cannot read --input_file={path}: {error.strerror}") from error
    elif sys.stdin.isatty():
        raise InputError("no text; give TEXT, --input_file=FILE, or pipe lines into standard input")
    else:
        name, raw = "standard input", sys.stdin.buffer.read()
    # Not splitlines, which also breaks at characters inside texts.
    lines = [line.removesuffix("\r") for line in decode_text(raw, where=name).split("\n")]
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise InputError(f"{name} is empty; write one text a line")
    return lines
