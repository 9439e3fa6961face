"""`t5lite predict`: predictions of a head: classes, numbers, tags, answers; as JSON lines."""

import argparse
import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

from t5lite.commands.flags import (
    MODEL,
    add_processes,
    add_shared,
    description,
    placed,
    shard_of,
)
from t5lite.commands.lines import check_input, check_output, counted_lines, is_table, numbered
from t5lite.commands.prompts import note_template
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

_OPTIONS = (
    *("head", "top_k", "max_length", "template", "aggregation", "max_answer_length"),
    "no_answer",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{parser.description}. A JSON line per text has `line`, `input` and the prediction: "
        "`label` and `classes` with probabilities; `value` or `values`; `text` and `spans` with "
        "`tag`, `start` and `end` in characters; `answer`, `start`, `end` and `answers`; or "
        "`error`. Texts longer than in training are truncated at the end, by `num_cut` tokens"
    )
    parser.epilog = (
        "with --output_file, an interrupted command resumes when repeated. Examples: "
        't5lite predict --model_dir=runs/classify_csv "Return a random float."; t5lite predict '
        "--model_dir=DIR --input_file=in.csv --output_file=out.jsonl"
    )
    add_shared(parser, "texts")
    add_shared(parser, "--model_dir", required=True)
    add_shared(parser, *MODEL[1:])
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, or `inputs` or `text` "
        "(`question` and `context`, `text` and `text_pair` for pairs); or .txt, one text a line",
    )
    parser.add_argument(
        "--output_file",
        metavar="FILE",
        help="FILE.jsonl; FILE.jsonl.part until it is complete (stdout)",
    )
    add_shared(parser, "--shard", "--overwrite")
    parser.add_argument(
        "--head",
        choices=("classification", "regression", "token_labels", "spans"),
        help="head of a model with several",
    )
    parser.add_argument(
        "--top_k", type=int, default=5, metavar="K", help="classes, or answers, reported (5)"
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='text of a row by its columns: "{title}. {body}"; {text} is a plain line or a TEXT '
        "(for rows, as in training; else `inputs` or `text`). Its last slot holds answers",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="maximum tokens of a text (as in training; else the model's positions)",
    )
    parser.add_argument(
        "--aggregation",
        choices=("first", "simple"),
        default="first",
        help="tag of a word: that of its first token, or each token's own (first)",
    )
    parser.add_argument(
        "--max_answer_length", type=int, default=30, metavar="N", help="maximum answer tokens (30)"
    )
    parser.add_argument(
        "--no_answer",
        action=argparse.BooleanOptionalAction,
        help="whether a question may have no answer (as in training)",
    )
    add_shared(parser, "--batch_size")
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    del configuration
    check_output(arguments.output_file, [".jsonl"])
    for name in ("shard", "overwrite"):
        if getattr(arguments, name) and arguments.output_file is None:
            raise InputError(f"--{name} is for --output_file, which is missing", field=name)
    lines, shard = _lines(arguments), shard_of(arguments.shard)

    import jax  # only now: unreadable input is refused at once

    from t5lite.inference.batching import check_count
    from t5lite.inference.predict import Predictor
    from t5lite.interop import open_model

    batch_size = arguments.batch_size
    check_count("--batch_size", batch_size)
    model = open_model(arguments.model_dir)
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    output = None
    if arguments.output_file is not None:
        trained = model.description.inputs.template if is_table(arguments.input_file) else None
        made_of = {
            "input": lines.digest,
            "lines": [*lines.part(*shard)],
            "model": model.folder,
            "step": model.step,
            "batch_size": batch_size,
            **options,
            **description(arguments),
            "template": arguments.template or trained,
        }
        output = Resumable(part_name(arguments.output_file, *shard), made_of)
        if not arguments.overwrite and output.is_whole():
            print(f"{output.path} is complete", file=sys.stderr)
            return 0
    loaded = placed(arguments, model, devices=jax.local_devices())  # for this process's own lines
    predictor = Predictor(loaded, **options)
    _note(predictor, arguments)
    job = _job(loaded, predictor, arguments)
    if output is None:
        return _print(lines, job, batch_size=batch_size)
    return write(
        output, lines, job, shard=shard, batch_size=batch_size, overwrite=arguments.overwrite
    )


def _lines(arguments: argparse.Namespace) -> Lines:
    check_input(arguments.texts, arguments.input_file)
    if arguments.input_file is not None:
        return counted_lines(arguments.input_file)
    lines = numbered([{"text": text} for text in arguments.texts])
    digest = hashlib.sha256(json.dumps(arguments.texts).encode()).hexdigest()
    return Lines(lambda: iter(lines), len(lines), digest)


def _job(loaded: "Loaded", predictor: "Predictor", arguments: argparse.Namespace) -> Job:
    """Returns the job: plain lines are whole texts, rows are read as in training."""
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

    return Job(read, answer, record, lambda row: "num_cut" in row, "cut at their end")


def _print(lines: Lines, job: Job, *, batch_size: int) -> int:
    totals = Totals(job)
    file = sys.stdout.buffer
    at_once = AT_ONCE * batch_size
    for line, outcome in answered(lines.scan(), job.read, job.answer, at_once=at_once):
        row = job.row_of(line, outcome)
        write_line(file, row)
        totals.add(row)
    if totals.tally:
        print(f"t5lite: {totals.tally:,} of {totals.lines:,} texts {job.unit}", file=sys.stderr)
    return totals.failures.exit_code()


def _note(predictor: "Predictor", arguments: argparse.Namespace) -> None:
    """Notes on standard error: missing label names, and how texts are read."""
    if predictor.kind in ("classification", "token_labels") and not predictor.names:
        print("t5lite: the model has no label names: labels are numbers", file=sys.stderr)
    if arguments.template is None:
        note_template(predictor.source.inputs, rows=is_table(arguments.input_file))
