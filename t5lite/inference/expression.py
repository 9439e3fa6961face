"""Options that are texts as ids: banned and biased tokens, forced text, choices."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5lite.data import Vocabulary
from t5lite.decoding import can_occur
from t5lite.errors import InputError
from t5lite.inference.context import continuation, token_texts
from t5lite.inference.defaults import Rules
from t5lite.inference.gaps import encode
from t5lite.inference.options import RULES, Options


class Expression(NamedTuple):
    """Options as ids.

    Args:
      bias: nats by token, -inf for banned ones.
      forced: the first tokens of an answer.
      choices: whole answers, each with its EOS.
    """

    bias: Mapping[int, float]
    forced: Sequence[int]
    choices: Sequence[Sequence[int]]


def expressed(
    options: Options,
    vocabulary: Vocabulary,
    *,
    rules: Rules,
    mask_id: int | None = None,
    before: str = "",
    begins: Sequence[int] = (),
) -> Expression:
    """Returns options as ids.

    Args:
      rules: of the model's files.
      mask_id: of an encoder, which fills gaps; None for a model with a decoder.
      before: the text that an answer continues; "" for a new text.
      begins: ids at the start of every answer.
    Raises: InputError if the vocabulary cannot express a text, or options contradict each other.
    """
    if mask_id is not None:
        for name in sorted(options.changed()):
            if not RULES[name].encoder:
                raise _error(name, f"{name} is not supported by encoders, which only fill masks")
    for stop in options.stop:
        _check_stop(stop, vocabulary, alone=not before)
    banned = [_token("banned", token, vocabulary) for token in options.banned]
    bias = {
        _token("logit_bias", token, vocabulary): value
        for token, value in (options.logit_bias or {}).items()
    }
    bias |= dict.fromkeys(banned, -float("inf"))
    begins = begins if rules.forced_first is None else (rules.forced_first,)
    forced = [] if rules.forced_first is None else [rules.forced_first]
    if options.forced:
        forced = _continuing("forced", before, options.forced, begins, vocabulary)
    eos_id = vocabulary.eos_id if vocabulary.eos_id in rules.eos_ids else rules.eos_ids[0]
    choices = [
        [*_continuing("choices", before, choice, begins, vocabulary), eos_id]
        for choice in options.choices
    ]
    for name, sequences in (("forced", [forced]), ("choices", choices)):
        _check_sequences(name, sequences, options, banned, vocabulary)
    _check_choices(choices, options)
    _check_some_left({*banned, *rules.banned}, options, vocabulary, rules, mask_id)
    return Expression(bias, forced, choices)


def _error(name: str, message: str) -> InputError:
    return InputError(message, field=f"Options.{name}")


def _check_choices(choices: Sequence[Sequence[int]], options: Options) -> None:
    least = options.min_new_tokens or 0
    for choice, ids in zip(options.choices, choices, strict=True):
        if len(ids) - 1 < least:  # without its EOS
            raise _error(
                "min_new_tokens",
                f"min_new_tokens = {least}: the choice {choice!r} has {len(ids) - 1} tokens",
            )
    different = len({*map(tuple, choices)})
    if choices and options.num_beams > 1 and options.num_samples > different:
        raise _error(
            "num_samples",
            f"num_samples = {options.num_samples}: beam search returns each of the {different} "
            "choices once; set it to at most as many",
        )


def _check_sequences(
    name: str,
    sequences: Sequence[Sequence[int]],
    options: Options,
    banned: Sequence[int],
    vocabulary: Vocabulary,
) -> None:
    """Raises an InputError at a sequence that is too long for an answer, or has a banned token."""
    longest = max(map(len, sequences), default=0)
    if longest > options.max_new_tokens:
        raise _error(
            name, f"{name} is {longest} tokens long, max_new_tokens = {options.max_new_tokens}"
        )
    both = {*banned} & {token for ids in sequences for token in ids}
    if both:
        piece = vocabulary.piece(min(both))
        raise _error("banned", f"banned and {name} both have {piece!r}: leave one out")


def _check_some_left(
    banned: set[int],
    options: Options,
    vocabulary: Vocabulary,
    rules: Rules,
    mask_id: int | None,
) -> None:
    if mask_id is not None:
        banned.add(mask_id)
    elif options.min_new_tokens and vocabulary.size - len(banned | {*rules.eos_ids}) < 1:
        raise _error(
            "banned",
            "banned leaves no token but those that end an answer, which min_new_tokens forbids "
            "at first: ban fewer, or leave min_new_tokens out",
        )
    if vocabulary.size - len(banned) < 1:
        raise _error("banned", "banned leaves no token of the vocabulary: ban fewer")


def _check_stop(stop: str, vocabulary: Vocabulary, *, alone: bool) -> None:
    """Raises an InputError at a stop that is in the text of no tokens."""
    ids = encode(stop, vocabulary.targets)
    if vocabulary.unk_id not in ids and stop in vocabulary.decode(ids):
        return
    # It may still be part of the text of longer tokens.
    hashable: Any = vocabulary
    texts = [*token_texts(hashable), *(token_texts(hashable, alone=True) if alone else ())]
    if not can_occur(stop.encode(), texts):
        raise _error("stop", f"stop {stop!r}: the vocabulary cannot express it")


def _ids(name: str, text: str, vocabulary: Vocabulary) -> list[int]:
    """Returns the ids of a text, which must have known tokens."""
    ids = encode(text, vocabulary.targets)
    if not ids or vocabulary.unk_id in ids:
        raise _error(name, f"{name} {text!r}: the vocabulary cannot express it")
    return ids


def _continuing(
    name: str, before: str, text: str, begins: Sequence[int], vocabulary: Vocabulary
) -> list[int]:
    """Returns the ids of a text after another one, starting with `begins`."""
    ids: list[int] | None = _ids(name, text, vocabulary)
    if before:
        ids = continuation(before, text, vocabulary)
    if ids is None:
        raise _error(
            name,
            f"{name} {text!r}: the vocabulary cannot write it after {before[-20:]!r}; move the "
            "border to the end of a word",
        )
    return ids if ids[: len(begins)] == [*begins] else [*begins, *ids]


def _token(name: str, token: str | int, vocabulary: Vocabulary) -> int:
    """Returns the id of a text that is one token, or of an id."""
    if isinstance(token, str):
        ids = _ids(name, token, vocabulary)
        if len(ids) > 1:
            pieces = " ".join(map(vocabulary.piece, ids))
            raise _error(
                name,
                f"{name} {token!r} is {len(ids)} tokens, {pieces}: only single tokens can be "
                f"{'banned' if name == 'banned' else 'biased'}, also by their ids",
            )
        return ids[0]
    if not 0 <= token < vocabulary.size:
        raise _error(name, f"{name} {token}: ids are 0..{vocabulary.size - 1}")
    return token
