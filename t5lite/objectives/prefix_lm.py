"""The rest of a text from its beginning, which is seen in both directions."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from t5lite.objectives.base import Example, documents, eos_of, feature_length
from t5lite.objectives.inputs_to_targets import InputsToTargets


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(InputsToTargets):
    """Cuts a text in two at random, and predicts the second part from the first.

    Texts (`targets` of the examples) are cut into pieces that just fit inputs and targets together.
    Each is divided at a place drawn evenly from those that leave both parts something and neither
    too much; EOS ends the targets and not the inputs, which just stop. No token is lost.

    Source: Raffel et al. 2020, arXiv:1910.10683, §3.2.1 and §3.3.1.
    """

    features: ClassVar[tuple[str, ...]] = ("targets",)
    whole_texts: ClassVar[bool] = True

    def pairs(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Cuts texts into pieces and each piece in two; see `Objective.prepare`."""
        room = feature_length(lengths, "inputs", at_least=1)
        targets_room = feature_length(lengths, "targets") - 1  # and EOS
        length = room + targets_room
        eos = np.array([eos_of(vocabulary)], np.int32)

        def divided() -> Iterator[dict[str, np.ndarray]]:
            for text in documents(examples, self, vocabulary):
                for start in range(0, text.size, length):
                    piece = text[start : start + length]
                    # A piece of one token is all inputs: its targets are EOS alone.
                    least = max(1, piece.size - targets_room)
                    most = max(1, min(piece.size - 1, room))
                    cut = rng.integers(least, most, endpoint=True)
                    yield {"inputs": piece[:cut], "targets": np.concatenate([piece[cut:], eos])}

        return divided()
