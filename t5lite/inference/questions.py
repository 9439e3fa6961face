"""What is asked and answered, and the options of a batch of questions as arrays."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from t5lite.decoding import Constraints, Sampling, Settings, Stops, pack_sequences
from t5lite.inference.batching import power_of_two
from t5lite.inference.defaults import Rules
from t5lite.inference.options import RULES, Options


class Answer(NamedTuple):
    """What a model wrote.

    Args:
      text: up to its end or the first stop.
      tokens: ids, the EOS or what stopped it included.
      log_probability: their sum in nats, under the model alone: before penalties, temperature and
        filters.
      score: of a beam search, what answers are ranked by; otherwise the log-probability.
    """

    text: str
    tokens: np.ndarray
    log_probability: float
    score: float


class Question(NamedTuple):
    """A text as ids, and how it is to be answered.

    Args:
      ids: as the model reads them.
      options: of the text, and those of its texts as ids, below.
      number: which the text is among all, which its draws depend on.
    """

    ids: list[int]
    options: Options
    number: int
    banned: tuple[int, ...]
    forced: list[int]
    choices: tuple[list[int], ...]


def settings_of(
    questions: Sequence[Question],
    rows: int,
    *,
    repeat: int,
    rules: Rules,
    size: int,
    vocab: int,
    stops: Stops | None = None,
) -> Settings:
    """Returns the options of questions as arrays.

    Args:
      questions: at least one.
      rows: of the batch; those after the questions are padding.
      repeat: rows of each question.
      rules: of the model.
      size: of the vocabulary.
      vocab: embeddings of the model, which may be padded.
      stops: of all the questions.
    """
    every = [each.options for each in questions]
    given = frozenset[str]().union(*(options.changed() for options in every))
    row_of = np.repeat(np.minimum(np.arange(rows), len(questions) - 1), repeat)

    def numbers(name: str, dtype: Any) -> Any:
        if name not in given:
            return None
        values = [getattr(options, name) for options in every]
        return np.asarray([RULES[name].neutral if v is None else v for v in values], dtype)[row_of]

    forced = sequences([each.forced for each in questions])
    choices = None
    if any(each.choices for each in questions):
        choices = _sets([each.choices for each in questions])[row_of]
    limits = np.asarray([options.max_new_tokens for options in every], np.int32)[row_of]
    limits[len(questions) * repeat :] = 1
    last, many = rules.forced_last, [list(word) for word in rules.banned_sequences]
    drawn = every[0].temperature > 0
    return Settings(
        eos_ids=_sets([[[token] for token in rules.eos_ids]])[:, :, 0],  # type: ignore[arg-type]
        limits=limits,  # type: ignore[arg-type]
        sampling=Sampling(
            temperature=numbers("temperature", np.float32) if drawn else None,
            top_k=numbers("top_k", np.int32),
            top_p=numbers("top_p", np.float32),
            min_p=numbers("min_p", np.float32),
            typical_p=numbers("typical_p", np.float32),
        ),
        constraints=Constraints(
            repetition_penalty=numbers("repetition_penalty", np.float32),
            presence_penalty=numbers("presence_penalty", np.float32),
            min_new_tokens=numbers("min_new_tokens", np.int32),
            banned=_banned(questions, row_of, rules, size, vocab),
            banned_first=_mask(rules.banned_first, vocab) if rules.banned_first else None,
            banned_sequences=_sets([many], align="right") if many else None,
            forced=None if forced is None else forced[row_of],
            forced_last=None if last is None else np.full(1, last, np.int32),  # type: ignore
            choices=choices,
            stops=stops,
            no_repeat_ngram_size=every[0].no_repeat_ngram_size,
        ),
        logits_fn=every[0].logits_fn,
    )


def sequences(rows: Sequence[Sequence[int]]) -> Any:
    """Returns `[rows, longest]` int32, -1 after each row's ids, in few sizes; None if all are
    empty."""
    longest = max(map(len, rows))
    if not longest:
        return None
    found = np.full((len(rows), power_of_two(longest)), -1, np.int32)
    found[:, :longest] = pack_sequences(rows)
    return found


def _sets(rows: Any, align: Literal["left", "right"] = "left") -> Any:
    """Returns `[rows, n, longest]` int32, -1 where there is no token, in few sizes."""
    count = power_of_two(max(map(len, rows)))
    longest = power_of_two(max(len(ids) for row in rows for ids in row))
    found = np.full((len(rows), count, longest), -1, np.int32)
    for into, row in zip(found, rows, strict=True):
        if row:
            packed = pack_sequences(row, align=align)
            part = slice(longest - packed.shape[1], None) if align == "right" else None
            into[: len(row), part or slice(packed.shape[1])] = packed
    return found


def _banned(
    questions: Sequence[Question], row_of: np.ndarray, rules: Rules, size: int, vocab: int
) -> Any:
    """Returns the tokens that never come, `[vocab]` or `[rows, vocab]` bool."""
    never = np.arange(vocab) >= size  # the embedding may be padded
    never[list(rules.banned)] = True
    if not any(each.banned for each in questions):
        return never
    rows = np.tile(never, (len(questions), 1))
    for row, each in zip(rows, questions, strict=True):
        row[list(each.banned)] = True
    return rows[row_of]


def _mask(tokens: Sequence[int], vocab: int) -> Any:
    return np.isin(np.arange(vocab), tokens)
