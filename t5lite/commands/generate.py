"""`t5lite generate`: text in, text out, with any checkpoint."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from t5lite.data import decode_text
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Prints an answer to each text; white space in it becomes single spaces."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("generate reads no gin configuration; the model is --model_dir=DIR")
    texts = read_texts(arguments)

    from t5lite.interop import load  # only now: reading the texts needs no JAX

    answers = load(arguments.model_dir).stream(
        texts,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        fill=arguments.fill,
        prompt=arguments.prompt,
    )
    for answer in answers:
        print(" ".join(answer.split()), flush=True)


def read_texts(arguments: argparse.Namespace) -> list[str]:
    """Returns the texts of the command line, of `--input_file`, or of standard input.

    Raises:
      InputError: if there is none, or what is read is not UTF-8.
    """
    if arguments.texts and arguments.input_file is not None:
        raise InputError("give TEXT or --input_file, not both")
    if arguments.texts:
        return arguments.texts
    if arguments.input_file is not None:
        where = arguments.input_file
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
