"""Inputs to targets, as SeqIO tasks written for T5X define them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from t5lite.errors import unknown
from t5lite.framing import Frame
from t5lite.objectives.base import feature, known_vocabulary, unended, unpadded
from t5lite.objectives.inputs_to_targets import InputsToTargets
from t5lite.objectives.prompts import Frames
from t5lite.rows import Examples, Lengths, Prepared, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(InputsToTargets):
    """Predicts `targets` from `inputs`.

    The vocabulary frames both; a text that exceeds its length loses its end. Examples with empty
    targets are dropped.

    Attributes:
      add_eos: whether each feature ends with EOS, and nothing else is added to it; None: as the
        SeqIO task says, `seqio.Feature.add_eos`, or without one as the vocabulary does. As in
        SeqIO, an EOS that a task's preprocessors have appended is cut off where it does not fit.
    Source: Raffel et al. 2020, arXiv:1910.10683, §2.4.
    """

    bidirectional_inputs: bool = False
    add_eos: Mapping[str, bool] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.add_eos or {}:
            if name not in self.features:
                raise unknown("feature in Seq2Seq.add_eos", name, self.features)

    def for_features(self, add_eos: Mapping[str, bool]) -> Self:
        if self.add_eos is not None:
            return self
        own = {name: add_eos[name] for name in self.features if name in add_eos}
        return dataclasses.replace(self, add_eos=own)

    def frames(self, vocabulary: Any) -> Frames:
        eos_id = known_vocabulary(vocabulary).eos_id
        own = {
            name: Frame(after=(eos_id,) if ends else ())
            for name, ends in (self.add_eos or {}).items()
        }
        return super().frames(vocabulary)._replace(**own)

    def pairs(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        """Yields framed pairs; raises InputError if a feature or its length is missing."""
        frames, eos_id = self.frames(vocabulary)._asdict(), known_vocabulary(vocabulary).eos_id
        rooms = {name: feature_length(lengths, name) for name in self.features}

        def framed(name: str, tokens: np.ndarray) -> np.ndarray:
            if self.add_eos is not None and name in self.add_eos:
                tokens = unpadded(tokens, vocabulary)
                if not self.add_eos[name] or (tokens.size and tokens[-1] == eos_id):
                    return tokens[: rooms[name]]
            return frames[name](unended(tokens, vocabulary), rooms[name])

        def prepared() -> Prepared:
            for example in examples:
                pair = {
                    name: framed(
                        name, feature(example, name, self, "for text alone use SpanCorruption")
                    )
                    for name in self.features
                }
                if pair["targets"].size:
                    yield pair

        return prepared()
