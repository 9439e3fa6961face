"""`t5lite predict`: what a head says of texts: classes, numbers, tags, answers; as JSON lines."""

import argparse
import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

from t5lite.commands.examples import add_shard, check_output, is_table, lines_of, shard_of
from t5lite.commands.placement import add_model, description, placed
from t5lite.commands.processes import add_processes
from t5lite.commands.prompts import say_template
from t5lite.data.files.readers import Line, Row
from t5lite.errors import InputError
from t5lite.inference.batch_job import (
    AT_ONCE,
    Job,
    Lines,
    Totals,
    answered,
    check_row,
    part_name,
    write,
    write_line,
)
from t5lite.inference.resumable import Resumable

if TYPE_CHECKING:
    from t5lite.configuration import Configuration
    from t5lite.inference import Loaded
    from t5lite.inference.predict import Predictor
    from t5lite.inference.predictions import Prediction

_OPTIONS = ("head", "top_k", "max_length", "template", "aggregation", "max_answer_length")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to ask its head, and where the predictions go."""
    parser.description = (
        f"{parser.description}. A JSON line for each text has `line`, `input` and what the head "
        "says: `label` and `classes` with probabilities; `value` or `values`; `text` and `spans` "
        "with `tag`, `start` and `end` in characters; `answer`, `start`, `end` and `answers`; or "
        "`error`. Longer texts than those of training lose their end: `num_cut` tokens"
    )
    parser.epilog = (
        "with --output_file, stopped or killed, the same command goes on where it was. Examples: "
        't5lite predict --model_dir=runs/classify_csv "Return a random float."; t5lite predict '
        "--model_dir=DIR --input_file=in.csv --output_file=out.jsonl"
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    add_model(parser)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, or `inputs` or `text` "
        "(`question` and `context`, `text` and `text_pair` for pairs); or .txt, one text a line",
    )
    parser.add_argument(
        "--output_file", metavar="FILE", help="FILE.jsonl; FILE.jsonl.part meanwhile (stdout)"
    )
    add_shard(parser)
    parser.add_argument(
        "--head",
        choices=("classification", "regression", "token_labels", "spans"),
        help="of a model with several",
    )
    parser.add_argument(
        "--top_k", type=int, default=5, metavar="K", help="most classes, or answers (5)"
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='makes texts of columns: "{title}. {body}"; {text} is a plain line or a TEXT (of '
        "rows, as in training; else of `inputs` or `text`). Its last slot holds answers",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="most tokens of a text (as in training; else the model's positions)",
    )
    parser.add_argument(
        "--aggregation",
        choices=("first", "simple"),
        default="first",
        help="tags are those of a word's first token, or of every token by itself (first)",
    )
    parser.add_argument(
        "--max_answer_length", type=int, default=30, metavar="N", help="most tokens of one (30)"
    )
    parser.add_argument(
        "--no_answer",
        action=argparse.BooleanOptionalAction,
        help="whether an answer may be missing (if it may in training)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="most texts at once (32)"
    )
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Writes a JSON line for each text, in order, and says on standard error how it went."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("predict reads no gin configuration; the model is --model_dir=DIR")
    check_output(arguments.output_file, [".jsonl"])
    for name in ("shard", "overwrite"):
        if getattr(arguments, name) and arguments.output_file is None:
            raise InputError(f"--{name} is for --output_file, which is missing")
    lines, shard = _lines(arguments), shard_of(arguments.shard)

    import jax  # only now: what cannot be read is said at once

    from t5lite.inference.batching import check_count
    from t5lite.inference.predict import Predictor
    from t5lite.interop import open_model

    check_count("--batch_size", arguments.batch_size)
    model = open_model(arguments.model_dir)
    options = {name: getattr(arguments, name) for name in (*_OPTIONS, "no_answer")}
    output = None
    if arguments.output_file is not None:
        trained = model.description.inputs.template if is_table(arguments.input_file) else None
        output = Resumable(
            part_name(arguments.output_file, *shard),
            {
                "input": lines.digest,
                "lines": [*lines.part(*shard)],
                "model": str(model.where),
                "step": model.step,
                "batch_size": arguments.batch_size,
                **options,
                **description(arguments),
                "template": arguments.template or trained,
            },
        )
        if not arguments.overwrite and output.is_whole():
            print(f"{output.path} is complete", file=sys.stderr)
            return 0
    # Each process answers its own lines.
    loaded = placed(arguments, model, devices=jax.local_devices())
    predictor = Predictor(loaded, **options)
    _say(predictor, arguments)
    job = _job(loaded, predictor, arguments)
    if output is None:
        return _print(lines, job, batch_size=arguments.batch_size)
    return write(
        output,
        lines,
        job,
        shard=shard,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
    )


def _lines(arguments: argparse.Namespace) -> Lines:
    if arguments.texts and arguments.input_file is not None:
        raise InputError("give TEXT or --input_file, not both")
    if arguments.input_file is not None:
        return lines_of(arguments.input_file)
    if not arguments.texts:
        raise InputError("no text; give TEXT or --input_file=FILE")
    lines = [Line(number, 0, 0, {"text": each}) for number, each in enumerate(arguments.texts, 1)]
    digest = hashlib.sha256(json.dumps(arguments.texts).encode()).hexdigest()
    return Lines(lambda: iter(lines), len(lines), digest)


def _job(loaded: "Loaded", predictor: "Predictor", arguments: argparse.Namespace) -> Job:
    """Returns what is done with each line; plain ones are whole texts, rows are as in training."""
    rows = is_table(arguments.input_file)

    def read(line: Line) -> Any:
        row = check_row(line)
        return predictor.read(row if rows else row["text"])

    def answer(requests: list[Any]) -> list["Prediction | InputError"]:
        return loaded.engine.predict(
            loaded.params, predictor, requests, batch_size=arguments.batch_size
        )

    def record(line: Line, prediction: "Prediction") -> Row:
        return {"line": line.number, "input": line.row, **prediction.record()}

    return Job(read, answer, record, lambda written: "num_cut" in written, "cut at their end")


def _print(lines: Lines, job: Job, *, batch_size: int) -> int:
    """Prints the JSON lines; returns the exit code, 1 if a line failed."""
    totals = Totals(job)
    file = sys.stdout.buffer
    for line, found in answered(lines.scan(), job.read, job.answer, at_once=AT_ONCE * batch_size):
        written = job.written(line, found)
        write_line(file, written)
        totals.add(written)
    if totals.tally:
        print(f"t5lite: {totals.tally:,} of {totals.lines:,} texts {job.unit}", file=sys.stderr)
    return totals.failures.exit_code()


def _say(predictor: "Predictor", arguments: argparse.Namespace) -> None:
    """Says on standard error what may differ from what is expected."""
    if predictor.kind in ("classification", "token_labels") and not predictor.names:
        print("t5lite: no names of labels beside the model: they are numbers", file=sys.stderr)
    if arguments.template is None:
        say_template(predictor.source.inputs, rows=is_table(arguments.input_file))
