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

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_CONSTRAINTS = (
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
    """Returns a batch's settings, of the shapes of `Settings.neutral`; see `Steps.settings`. More
    forced tokens, choices or stops than these hold get the next power of two, which compiles once.
    """
    rules = requests[0].rules
    hashable: Any = vocabulary
    some = any(request.options.stop for request in requests)
    table = stop_bytes(hashable, vocab) if some else no_stop_bytes(vocab)
    settings: Any = Settings.neutral(rows * repeat, vocab, token_bytes=table, **_sizes(requests))
    constraints = settings.constraints
    for index, request in enumerate(requests):
        part, options = slice(index * repeat, (index + 1) * repeat), request.options
        for owner, names in ((settings.sampling, _SAMPLING), (constraints, _CONSTRAINTS)):
            for name in names:
                value = getattr(options, name)
                getattr(owner, name)[part] = RULES[name].neutral if value is None else value
        settings.limits[part] = options.max_new_tokens
        settings.num_top[part] = options.num_log_probabilities
        constraints.stops.fresh[part] = not request.continues
        if rules.forced_last is not None:
            constraints.forced_last[part] = rules.forced_last
        for array, values in (
            (settings.eos_ids, rules.eos_ids),
            (constraints.forced, request.forced),
            (constraints.bias_ids, [*request.bias]),
            (constraints.bias, [*request.bias.values()]),
        ):
            array[part, : len(values)] = values
        for column, choice in enumerate(request.choices):
            constraints.choices[part, column, : len(choice)] = choice
        for column, stop in enumerate(map(str.encode, options.stop)):
            constraints.stops.texts[part, column, -len(stop) :] = [*stop]
    size = vocab if vocabulary is None else vocabulary.size  # embeddings may be padded
    sequences = [list(word) for word in rules.banned_sequences]
    ids = np.arange(vocab)
    banned, banned_first = np.isin(ids, rules.banned), np.isin(ids, rules.banned_first)
    constraints = dataclasses.replace(
        constraints,
        banned=banned | (ids >= size),
        banned_first=banned_first if rules.banned_first else None,
        banned_sequences=pack_sequences(sequences, align="right")[None] if sequences else None,
    )
    return dataclasses.replace(
        settings, constraints=constraints, logits_fn=requests[0].options.logits_fn
    )


def _sizes(requests: Sequence[Request]) -> dict[str, int]:
    stops = [stop.encode() for request in requests for stop in request.options.stop]
    choices = [ids for request in requests for ids in request.choices]
    needed = {
        "max_eos": (4, [len(request.rules.eos_ids) for request in requests]),
        "max_bias": (32, [len(request.bias) for request in requests]),
        "max_forced": (16, [len(request.forced) for request in requests]),
        "max_choices": (8, [len(request.choices) for request in requests]),
        "choice_length": (16, [*map(len, choices)]),
        "max_stops": (4, [len(request.options.stop) for request in requests]),
        "stop_length": (16, [*map(len, stops)]),
    }
    return {name: power_of_two(max([least, *sizes])) for name, (least, sizes) in needed.items()}


@functools.lru_cache(maxsize=4)
def stop_bytes(vocabulary: Any, vocab: int) -> jax.Array:
    """Returns `Stops.token_bytes` of a vocabulary, on the device."""
    first = token_texts(vocabulary, alone=True)
    return jax.device_put(token_table(token_texts(vocabulary), first=first, vocab=vocab))


@functools.lru_cache(maxsize=4)
def no_stop_bytes(vocab: int) -> jax.Array:
    """Returns an unused table of the same shape, for batches without stops."""
    return jax.device_put(token_table((), vocab=vocab))
