"""Inputs in, targets out: what every SeqIO task that was written for T5X defines."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5lite.objectives.base import (
    Example,
    end_with_eos,
    eos_of,
    feature,
    feature_length,
    zero_is_token,
)
from t5lite.objectives.inputs_to_targets import InputsToTargets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(InputsToTargets):
    """Predicts `targets` from `inputs`.

    Both end in exactly one EOS, also when cut to their length. An example whose targets hold no id
    at all is dropped, as it would have no weight; EOS alone is an answer, the empty one, and stays.

    Source: Raffel et al. 2020, arXiv:1910.10683, §2.4.
    """

    def pairs(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Ends and cuts inputs and targets; see `Objective.prepare`.

        Without a vocabulary EOS is 1, as in every T5 vocabulary.

        Raises: InputError if a feature has no length or an example lacks a feature.
        """
        eos_id, keeps_zeros = eos_of(vocabulary), zero_is_token(vocabulary)
        rooms = {name: feature_length(lengths, name) for name in self.features}

        def prepared() -> Iterator[dict[str, np.ndarray]]:
            for example in examples:
                found = {
                    name: feature(example, name, self, "for text alone use SpanCorruption")
                    for name in rooms
                }
                if found["targets"].size if keeps_zeros else np.any(found["targets"]):
                    yield {
                        name: end_with_eos(tokens, rooms[name], eos_id, zero_is_token=keeps_zeros)
                        for name, tokens in found.items()
                    }

        return prepared()
