"""The options of requests as arrays: `decoding.Settings` of one fixed structure."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from t5lite.data import Vocabulary
from t5lite.decoding import Settings, pack_sequences, token_table
from t5lite.inference.batching import power_of_two
from t5lite.inference.context import token_texts
from t5lite.inference.options import RULES
from t5lite.inference.request import Request

_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_RULE_NUMBERS = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
)


def settings_of(
    requests: Sequence[Request],
    *,
    rows: int,
    vocab: int,
    vocabulary: Vocabulary | None,
    repeat: int = 1,
) -> Settings:
    """Returns the settings of a batch, of the shapes of `Settings.neutral` and what all share.

    Requests of more forced tokens, choices or stops than there is room for get the next power of
    two, which compiles once.

    Args:
      requests: at least one, of one `rules` and one `logits_fn`.
      rows: of the batch, before they are repeated; those after the requests are padding.
      vocab: embeddings of the model, which may be padded.
      vocabulary: of the requests; None where they have no stops.
      repeat: rows of each request, next to each other.
    """
    rules = requests[0].rules
    some_stop = any(request.options.stop for request in requests)
    known: Any = vocabulary
    table = stop_bytes(known, vocab) if some_stop else no_stop_bytes(vocab)
    sizes = _sizes(requests)
    settings: Any = Settings.neutral(rows * repeat, vocab, token_bytes=table, **sizes)
    sampling, constraints = settings.sampling, settings.constraints
    stops = constraints.stops
    for index, request in enumerate(requests):
        part, options = slice(index * repeat, (index + 1) * repeat), request.options
        _set(settings.limits, part, options.max_new_tokens)
        _set(settings.num_top, part, options.num_log_probabilities)
        for owner, names in ((sampling, _NUMBERS), (constraints, _RULE_NUMBERS)):
            for name in names:
                value = getattr(options, name)
                _set(getattr(owner, name), part, RULES[name].neutral if value is None else value)
        _set(settings.eos_ids, part, rules.eos_ids)
        _set(constraints.forced, part, request.forced)
        _set(constraints.bias_ids, part, [*request.bias])
        _set(constraints.bias, part, [*request.bias.values()])
        if rules.forced_last is not None:
            _set(constraints.forced_last, part, rules.forced_last)
        for place, choice in enumerate(request.choices):
            _set(constraints.choices, (part, place), choice)
        for place, stop in enumerate(map(str.encode, options.stop)):
            _set(stops.texts, (part, place, slice(-len(stop), None)), [*stop])
        _set(stops.fresh, part, not request.continues)
    size = vocab if vocabulary is None else vocabulary.size  # embeddings may be padded
    many = [list(word) for word in rules.banned_sequences]
    constraints = dataclasses.replace(
        constraints,
        banned=_mask(rules.banned, vocab) | (np.arange(vocab) >= size),
        banned_first=_mask(rules.banned_first, vocab) if rules.banned_first else None,
        banned_sequences=pack_sequences(many, align="right")[None] if many else None,
    )
    return dataclasses.replace(
        settings, constraints=constraints, logits_fn=requests[0].options.logits_fn
    )


def _sizes(requests: Sequence[Request]) -> dict[str, int]:
    """Returns the sizes of `Settings.neutral` that the requests need beyond its own."""
    needed = {
        "max_eos": (4, [len(request.rules.eos_ids) for request in requests]),
        "max_bias": (32, [len(request.bias) for request in requests]),
        "max_forced": (16, [len(request.forced) for request in requests]),
        "max_choices": (8, [len(request.choices) for request in requests]),
        "choice_length": (16, [len(ids) for request in requests for ids in request.choices]),
        "max_stops": (4, [len(request.options.stop) for request in requests]),
        "stop_length": (
            16, [len(text.encode()) for request in requests for text in request.options.stop],
        ),
    }  # fmt: skip
    return {name: power_of_two(max([least, *sizes])) for name, (least, sizes) in needed.items()}


def _set(array: Any, place: Any, value: Any) -> None:
    """Writes a number, or the first entries of a row, in place."""
    if isinstance(value, list | tuple):
        array[place][..., : len(value)] = value
    else:
        array[place] = value


def _mask(tokens: Sequence[int], vocab: int) -> Any:
    return np.isin(np.arange(vocab), tokens)


@functools.lru_cache(maxsize=4)
def stop_bytes(vocabulary: Any, vocab: int) -> jax.Array:
    """Returns `Stops.token_bytes` of a vocabulary, on the device, made once."""
    first = token_texts(vocabulary, alone=True)
    return jax.device_put(token_table(token_texts(vocabulary), first=first, vocab=vocab))


@functools.lru_cache(maxsize=4)
def no_stop_bytes(vocab: int) -> jax.Array:
    """Returns a table of the same shape for batches without stops, which nothing reads."""
    return jax.device_put(token_table((), vocab=vocab))
