"""Resumable batch inference: lines in, JSON lines of responses out."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5lite.data.files.readers import Line, Row
from t5lite.errors import InputError, unknown
from t5lite.inference.answer import Answer
from t5lite.inference.batch_job import Job, Lines, check_row, part_name, write
from t5lite.inference.options import FLAGS, Options
from t5lite.inference.request import Reader, Request
from t5lite.inference.resumable import Resumable


@dataclasses.dataclass(frozen=True)
class LineReader:
    """Turns lines into requests, and answers them.

    Args:
      answer: `Engine.outcomes` of the model.
      text_of: returns the text of a line.
      options: of lines without their own.
      chosen: options by name that precede the model's own.
      ids: of a line by its number, instead of those of its text.
      is_option: whether a row's object `options` holds options, rather than a column of its text.
    """

    reader: Reader
    answer: Callable[[Sequence[Request]], Sequence[list[Answer] | InputError]]
    text_of: Callable[[Line], str]
    options: Options
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ids: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    is_option: Callable[[Row], bool] = lambda row: True

    def read(self, line: Line) -> Request:
        """Returns the request of a line, whose samples depend on its number alone; an InputError
        for a broken line, or one that `text_of` or `Request` refuses."""
        row, number, text = check_row(line), line.number - 1, self.text_of(line)
        options = self.options_of(row)
        if line.number in self.ids:
            ids = self.ids[line.number]
            return Request.from_ids(ids, self.reader, options, number=number, text=text)
        return Request.from_text(text, self.reader, options, number=number)

    def options_of(self, row: Row) -> Options:
        """Returns the options of a row: its own object `options` precedes the others."""
        own = row.get("options")
        if not isinstance(own, dict) or not self.is_option(row):
            return self.options
        for name in own:
            if name not in FLAGS:
                raise unknown("option", name, FLAGS)
        return self.reader.options({**self.chosen, **own})


def infer(
    output_file: str,
    lines: Lines,
    open_reader: Callable[[], LineReader],
    *,
    made_of: Mapping[str, Any],
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 32,
    overwrite: bool = False,
) -> int:
    """Answers the lines of a shard. Interrupted, the same call resumes, and writes the same bytes.

    Args:
      output_file: FILE.jsonl; of several shards FILE-0000I-of-0000N.jsonl.
      lines: to answer.
      open_reader: opens the model, if lines remain.
      made_of: everything else that determines the answers, by name; JSON values.
      shard: index from 0, and number of shards.
      batch_size: most lines at once.
      overwrite: whether to start from an empty file.
    Returns: the exit code, 1 if a line failed, in this call or an earlier one.
    Raises: InputError if the file has other lines or `made_of`, or cannot be written.
    """
    output = Resumable(
        part_name(output_file, *shard),
        {"input": lines.digest, "lines": [*lines.part(*shard)], **made_of},
    )
    if not overwrite and output.is_whole():
        print(f"{output.path} is complete", file=sys.stderr)
        return 0
    reader = open_reader()
    piece = reader.reader.vocabulary.piece

    def answer(requests: list[Request]) -> Iterator[InputError | tuple[Request, list[Answer]]]:
        for request, outcome in zip(requests, reader.answer(requests), strict=True):
            yield outcome if isinstance(outcome, InputError) else (request, outcome)

    def record(line: Line, answered: tuple[Request, list[Answer]]) -> Row:
        return {"line": line.number, "input": line.row} | columns_of(*answered, piece=piece)

    job = Job(reader.read, answer, record, num_tokens, "tokens", is_rate=True)
    return write(output, lines, job, shard=shard, batch_size=batch_size, overwrite=overwrite)


def columns_of(
    request: Request, answers: Sequence[Answer], *, piece: Callable[[int], str]
) -> dict[str, Any]:
    """Returns the JSON columns of answers: lists for several samples, null for NaN and infinity."""
    columns: dict[str, list[Any]] = {
        "output": [answer.text for answer in answers],
        "num_tokens": [len(answer.tokens) for answer in answers],
        "log_probability": [_finite(answer.log_probability) for answer in answers],
    }
    if request.options.num_beams > 1:
        columns["score"] = [_finite(answer.score) for answer in answers]
    if request.options.num_log_probabilities:
        columns["pieces"] = [[piece(int(token)) for token in answer.tokens] for answer in answers]
        columns["token_log_probabilities"] = [
            [_finite(float(value)) for value in answer.token_log_probabilities]
            for answer in answers
        ]
        columns["top_log_probabilities"] = [
            [[[piece(token), value] for token, value in best.items()] for best in answer.top]
            for answer in answers
        ]
        columns["finish_reason"] = [answer.finish_reason for answer in answers]
    return {name: values if len(answers) > 1 else values[0] for name, values in columns.items()}


def num_tokens(row: Row) -> int:
    counts = row["num_tokens"]
    return sum(counts) if isinstance(counts, list) else counts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
