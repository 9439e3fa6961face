"""The options of `generate`: what they may be, and which of them exclude each other."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.decoding import LogitsFn
from t5lite.errors import InputError, unknown


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: isinstance(value, int | np.integer) and bool(least <= value < 2**31),
        f"a whole number of at least {least}, and below 2**31",
    )


def _share(*, zero: bool) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: (value >= 0 if zero else value > 0) and value <= 1,
        f"in {'[' if zero else '('}0, 1]",
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """How one text is answered.

    Args:
      max_new_tokens: most tokens of an answer, its EOS included.
      min_new_tokens: tokens before which it cannot end.
      temperature: 0 is greedy; above, tokens are drawn from softmax(logits / temperature).
      top_k: draws from the likeliest so many tokens only; see `decoding.Sampling` for this and the
        three below, which need a temperature.
      top_p: from the likeliest tokens that together have this probability, in (0, 1].
      min_p: from tokens at least this share as probable as the likeliest, in [0, 1].
      typical_p: from the most typical tokens that together have this probability, in (0, 1].
      repetition_penalty: above 1, what makes tokens of the prompt and the answer less likely.
      no_repeat_ngram_size: no so many tokens of the prompt and the answer come twice in a row.
      presence_penalty: in nats, taken from the logits of tokens that the answer has already.
      num_samples: answers for each text: drawn ones, or the best of a beam search.
      num_beams: above 1, of a beam search; see `decoding.beam_search`.
      length_penalty: of a beam search: the power of the length that sums are divided by.
      early_stopping: of a beam search: see there.
      stop: texts that end an answer, wherever its tokens begin and end; it then holds what is
        before the first of them.
      banned: tokens that are never written: texts that are one token, or ids.
      forced: what an answer begins with, in the tokens that it has behind the text.
      choices: whole answers, of which one is written, in the tokens that they have there.
      turns: of a masked language model: in how many steps gaps are filled, the surest first.
      logits_fn: a rule of your own about the next token's logits; see `decoding.Settings`.
      seed: of the draws; an answer depends on it, and on the text's number among the texts.
    """

    max_new_tokens: int = 64
    min_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    presence_penalty: float | None = None
    num_samples: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | None = False
    stop: tuple[str, ...] = ()
    banned: tuple[str | int, ...] = ()
    forced: str | None = None
    choices: tuple[str, ...] = ()
    turns: int = 1
    logits_fn: LogitsFn | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (allowed, words) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and allowed(value)):
                raise InputError(f"{name} = {value!r}: must be {words}")
        for name in _LISTS:
            value = getattr(self, name)
            if isinstance(value, str):
                value = (value,)
            kinds = (str, int) if name == "banned" else (str,)
            if not isinstance(value, list | tuple) or not all(
                isinstance(each, kinds) and each != "" for each in value
            ):
                raise InputError(f"{name} = {value!r}: must be a list of texts, none of them empty")
            object.__setattr__(self, name, tuple(value))
        if self.early_stopping not in (True, False, None):
            raise InputError(
                f"early_stopping = {self.early_stopping!r}: must be True, False or None"
            )
        if self.forced is not None and (not isinstance(self.forced, str) or not self.forced):
            raise InputError(f"forced = {self.forced!r}: must be a text, and not empty")
        self._check_together()

    def _check_together(self) -> None:
        least = self.min_new_tokens
        if least is not None and least > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens = {least} is more than max_new_tokens = {self.max_new_tokens}"
            )
        if self.temperature == 0:
            for name in ("top_k", "top_p", "min_p", "typical_p"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{name} = {getattr(self, name)}: nothing is drawn at temperature = 0; set "
                        "a temperature, such as 1.0"
                    )
            if self.num_samples > self.num_beams:
                raise InputError(
                    f"num_samples = {self.num_samples}: without a temperature answers are equal; "
                    "set one, or num_beams to at least as many"
                )
        elif self.num_beams > 1:
            raise InputError(
                f"temperature = {self.temperature} and num_beams = {self.num_beams}: a beam search "
                "draws nothing; leave one out"
            )
        if self.num_beams == 1:
            for name in ("length_penalty", "early_stopping"):
                if getattr(self, name) != getattr(Options, name):
                    raise InputError(f"{name} is for a beam search: set num_beams")
        if self.choices and self.forced is not None:
            raise InputError("choices and forced: one of them says what is written; leave one out")

    def given(self) -> frozenset[str]:
        """Returns the names of those that are not what they are by default."""
        return frozenset(
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )


_NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": _whole(1),
    "min_new_tokens": _whole(0),
    "temperature": (lambda value: value >= 0, "0 (greedy) or above"),
    "top_k": _whole(1),
    "top_p": _share(zero=False),
    "min_p": _share(zero=True),
    "typical_p": _share(zero=False),
    "repetition_penalty": (lambda value: value > 0, "above 0; 1 is none"),
    "no_repeat_ngram_size": _whole(1),
    "presence_penalty": (lambda value: True, "a number"),
    "num_samples": _whole(1),
    "num_beams": _whole(1),
    "length_penalty": (lambda value: True, "a number"),
    "turns": _whole(1),
    "seed": _whole(0),
}
_OPTIONAL = {
    field.name for field in dataclasses.fields(Options) if field.default is None
}  # None where there is none
_LISTS = ("stop", "banned", "choices")


def options_of(
    values: Mapping[str, Any],
    count: int,
    make: Callable[[Mapping[str, Any]], Options] = lambda chosen: Options(**chosen),
) -> list[Options]:
    """Returns the options of each of `count` texts.

    Args:
      values: by name; a list has one for each text, and a list of texts is for all of them.
      count: of the texts.
      make: makes the options of a text, given those that are chosen for it.

    Raises:
      InputError: an unknown name, a list of another length, or a value out of range.
    """
    check_names(values)
    shared: dict[str, Any] = {}
    apart: dict[str, Sequence[Any]] = {}
    for name, value in values.items():
        listed = isinstance(value, list | tuple)
        if name in _LISTS:  # a list of lists is one for each
            listed = listed and len(value) > 0 and all(isinstance(x, list | tuple) for x in value)
        if not listed:
            shared[name] = value
        elif len(value) != count:
            raise InputError(f"{name} has {len(value)} values for {count} texts")
        else:
            apart[name] = value
    if not apart:
        return [make(shared)] * count
    return [
        make({**shared, **{name: value[row] for name, value in apart.items()}})
        for row in range(count)
    ]


def check_names(values: Mapping[str, Any]) -> None:
    """Raises an InputError at a name that is no option."""
    names = [field.name for field in dataclasses.fields(Options)]
    for name in values:
        if name not in names:
            raise unknown("option", name, names)
