"""`t5lite score`: log-probabilities and perplexity of texts."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from t5lite.commands.flags import MODEL, add_shared, placed
from t5lite.commands.lines import check_output, input_lines, output
from t5lite.data.files.readers import Line, Row
from t5lite.errors import InputError
from t5lite.inference.batch_job import Failures, answered, write_line

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{parser.description}; a JSON line for each"
    parser.epilog = 'example: t5lite score --model_dir=DIR "2 + 2 =" --targets " 4" --targets " 5"'
    add_shared(parser, "texts")
    add_shared(parser, "--model_dir", required=True)
    add_shared(parser, *MODEL[1:])
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with `text`, or `inputs` and `targets`; or .txt, one "
        "text a line",
    )
    parser.add_argument(
        "--targets",
        action="append",
        metavar="TEXT",
        help="target to score, given TEXT; repeatable; required by encoder-decoders",
    )
    parser.add_argument(
        "--per_token", action="store_true", help="write each piece and its log-probability too"
    )
    parser.add_argument(
        "--output_file", metavar="FILE", help="FILE.jsonl, which appears when complete (stdout)"
    )
    parser.add_argument(
        "--eos",
        action=argparse.BooleanOptionalAction,
        help="whether EOS after a target or a text is scored too (for responses to inputs)",
    )
    add_shared(parser, "--batch_size", "--prompt", "--truncate")


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    del configuration
    check_output(arguments.output_file, [".jsonl"])
    lines, num_bytes = input_lines(_rows(arguments), arguments.input_file)

    from t5lite.data.input_format import InputFormat, text_in
    from t5lite.inference.batching import check_count
    from t5lite.inference.score_records import Totals, record
    from t5lite.inference.scoring import Scorer
    from t5lite.reporting.bars import Bar

    batch_size = arguments.batch_size
    check_count("--batch_size", batch_size)
    totals, failures = Totals(), Failures()
    with output(arguments.output_file) as file, Bar("scored") as bar:
        loaded = placed(arguments)
        scorer = Scorer(
            loaded, prompt=arguments.prompt, eos=arguments.eos, truncate=arguments.truncate
        )

        def read(line: Line) -> tuple[Any, str]:
            if line.row is None:
                raise InputError(line.problem)
            text = InputFormat().text(line.row, "inputs", "text")
            target = text_in(line.row, ["targets"])
            request = scorer.read(text, target)
            scored = text[request.skipped :] if target is None else target
            return request, "" if request.cut else scored

        def score(pairs: list[tuple[Any, str]]) -> Iterator[Any]:
            requests, texts = zip(*pairs, strict=True)
            outcomes = loaded.engine.score(loaded.params, requests, batch_size=batch_size)
            for outcome, text in zip(outcomes, texts, strict=True):
                yield outcome if isinstance(outcome, InputError) else (outcome, text)

        for line, outcome in answered(lines, read, score, at_once=16 * batch_size):
            if isinstance(outcome, InputError):
                write_line(file, failures.add(line, outcome))
            else:
                totals.add(*outcome)
                write_line(file, record(line, outcome[0], per_token=arguments.per_token))
            if num_bytes:
                bar(line.end, num_bytes)
    if totals.examples:
        print("\n".join(totals.lines()), file=sys.stderr)
    return failures.exit_code()


def _rows(arguments: argparse.Namespace) -> list[Row]:
    """Returns the examples of the command line: a single text or target goes with every other."""
    texts, targets = arguments.texts, arguments.targets or []
    if not targets:
        return [{"text": text} for text in texts]
    if arguments.input_file is not None:
        raise InputError(
            "--targets is for TEXT; targets of --input_file are in its `targets`", field="targets"
        )
    if len(texts) != len(targets) and 1 not in (len(texts), len(targets)):
        raise InputError(f"{len(texts)} texts and {len(targets)} --targets: give each text one")
    count = max(len(texts), len(targets)) if texts else 0
    texts, targets = (column * count if len(column) == 1 else column for column in (texts, targets))
    return [{"text": text, "targets": target} for text, target in zip(texts, targets, strict=False)]
