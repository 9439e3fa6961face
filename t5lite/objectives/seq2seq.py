"""Inputs in, targets out: what every SeqIO task that was written for T5X defines."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import (
    Example,
    TokenCrossEntropy,
    encoder_decoder_batch,
    end_with_eos,
    feature_length,
)

T5_EOS_ID = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(TokenCrossEntropy):
    """Predicts `targets` from `inputs`.

    Both end in exactly one EOS, also when cut to their length. An example whose targets hold no id
    at all is dropped, as it would have no weight; EOS alone is an answer, the empty one, and stays.

    Source: Raffel et al. 2020, arXiv:1910.10683, §2.4.
    """

    features = ("inputs", "targets")

    def prepare(
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
        eos_id = T5_EOS_ID if vocabulary is None else vocabulary.eos_id
        rooms = {name: feature_length(lengths, name) for name in self.features}

        def prepared() -> Iterator[dict[str, np.ndarray]]:
            for example in examples:
                for name in rooms:
                    if name not in example:
                        raise InputError(
                            f"Seq2Seq needs the feature {name!r} and the task's examples have "
                            f"{sorted(example)}; for text alone use SpanCorruption"
                        )
                if np.any(example["targets"]):
                    yield {
                        name: end_with_eos(example[name], room, eos_id)
                        for name, room in rooms.items()
                    }

        return prepared()

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Names rows for an encoder-decoder; see `Objective.batch`."""
        return encoder_decoder_batch(rows)
