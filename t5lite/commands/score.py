"""`t5lite score`: how likely a model finds texts, an example and a token at a time."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from t5lite.commands.examples import check_output, given, output
from t5lite.commands.placement import add_model, placed
from t5lite.data.files.readers import Line, Row
from t5lite.errors import InputError
from t5lite.inference.batch_job import Failures, answered, write_line

if TYPE_CHECKING:
    from t5lite.configuration import Configuration
    from t5lite.inference.scoring import Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to score, and how."""
    parser.description = f"{parser.description}; a JSON line for each"
    parser.epilog = 'example: t5lite score --model_dir=DIR "2 + 2 =" --targets " 4" --targets " 5"'
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    add_model(parser)
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
        help="what is scored, given TEXT; repeatable. Encoder-decoders need it",
    )
    parser.add_argument(
        "--per_token", action="store_true", help="write each piece and its log-probability too"
    )
    parser.add_argument(
        "--output_file", metavar="FILE", help="FILE.jsonl, written whole or not at all (stdout)"
    )
    parser.add_argument(
        "--prompt",
        choices=("inputs", "continue", "prefix"),
        help="what a text with a target is to the model: inputs that it answers, a beginning that "
        "it continues, or one that is seen in both directions (as it was trained; else inputs, of "
        "decoders continue)",
    )
    parser.add_argument(
        "--eos",
        action=argparse.BooleanOptionalAction,
        help="whether the end behind a target or a text is scored too (of answers to inputs)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="most rows at once (32)"
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model"
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Writes a JSON line for each example, and the totals to standard error."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("score reads no gin configuration; the model is --model_dir=DIR")
    check_output(arguments.output_file, [".jsonl"])
    lines, num_bytes = given(_rows(arguments), arguments.input_file)

    from t5lite.data.input_format import InputFormat, text_in
    from t5lite.inference.batching import check_count
    from t5lite.inference.scoring import Scorer
    from t5lite.reporting.bars import Bar

    check_count("--batch_size", arguments.batch_size)
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

        def score(pairs: list[tuple[Any, str]]) -> "Iterator[InputError | tuple[Score, str]]":
            requests, texts = zip(*pairs, strict=True)
            scores = loaded.engine.score(loaded.params, requests, batch_size=arguments.batch_size)
            for outcome, text in zip(scores, texts, strict=True):
                yield outcome if isinstance(outcome, InputError) else (outcome, text)

        for line, found in answered(lines, read, score, at_once=16 * arguments.batch_size):
            if isinstance(found, InputError):
                write_line(file, failures.add(line, found))
            else:
                totals.add(*found)
                write_line(file, record(line, found[0], per_token=arguments.per_token))
            if num_bytes:
                bar(line.end, num_bytes)
    if totals.examples:
        print("\n".join(totals.lines()), file=sys.stderr)
    return failures.exit_code()


def record(line: Line, score: "Score", *, per_token: bool) -> Row:
    """Returns what is written of an example; null is what is no finite number."""
    values = {"log_probability": score.log_probability, "perplexity": score.perplexity}
    found: Row = {"line": line.number, "num_tokens": score.num_tokens}
    found |= {name: value if math.isfinite(value) else None for name, value in values.items()}
    if per_token:
        found["pieces"] = score.pieces
        found["token_log_probabilities"] = [
            value if math.isfinite(value) else None
            for value in score.token_log_probabilities.tolist()
        ]
    return found


@dataclasses.dataclass
class Totals:
    """Sums over examples; bits a byte and a character are of those that were scored whole."""

    examples: int = 0
    tokens: int = 0
    log_probability: float = 0.0
    of_whole: float = 0.0
    characters: int = 0
    bytes: int = 0

    def add(self, score: "Score", text: str) -> None:
        """Adds an example; `text` is what was scored, empty if some of it was cut."""
        self.examples += 1
        self.tokens += score.num_tokens
        self.log_probability += score.log_probability
        if text:
            self.of_whole += score.log_probability
            self.characters += len(text)
            self.bytes += len(text.encode())

    def lines(self) -> list[str]:
        """Returns the totals for a person to read."""
        from t5lite.inference.scoring import perplexity

        mean, bits = self.log_probability / self.tokens, -self.of_whole / math.log(2)
        found = [
            f"{self.examples:,} examples, {self.tokens:,} tokens: log-probability "
            f"{mean:.4f} a token, {self.log_probability / self.examples:.2f} an example",
            f"perplexity {perplexity(self.log_probability, self.tokens):.4f}",
        ]
        if self.bytes:
            found[1] += (
                f", {bits / self.bytes:.4f} bits a byte, "
                f"{bits / self.characters:.4f} bits a character"
            )
        return found


def _rows(arguments: argparse.Namespace) -> list[Row]:
    """Returns the examples of the command line; one text goes with every target, and one target
    with every text."""
    texts, targets = arguments.texts, arguments.targets or []
    if not targets:
        return [{"text": text} for text in texts]
    if arguments.input_file is not None:
        raise InputError("--targets is for TEXT; targets of --input_file are in its `targets`")
    if len(texts) != len(targets) and 1 not in (len(texts), len(targets)):
        raise InputError(f"{len(texts)} texts and {len(targets)} --targets: give each text one")
    count = max(len(texts), len(targets)) if texts else 0
    texts, targets = (each * count if len(each) == 1 else each for each in (texts, targets))
    return [{"text": text, "targets": target} for text, target in zip(texts, targets, strict=False)]
