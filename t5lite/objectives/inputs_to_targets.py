"""The base of objectives that map inputs to targets, with or without an encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from t5lite.objectives.base import Vocabulary
from t5lite.objectives.prompts import Frames, Prompts, frames_of, start_of
from t5lite.objectives.rows import encoder_decoder_batch, join_pair, prefix_lm_batch, split_pair
from t5lite.objectives.token_cross_entropy import TokenCrossEntropy
from t5lite.rows import Example, Examples, Lengths, Prepared, RowSpec, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputsToTargets(TokenCrossEntropy):
    """Predicts `targets` from `inputs`; an objective of this kind defines `pairs`.

    An encoder-decoder gives inputs to the encoder and targets to the decoder. A decoder alone reads
    the inputs, which have no loss, and then the targets in one row of the sum of both lengths.

    Attributes:
      bidirectional_inputs: whether a decoder alone sees inputs in both directions (a prefix
        language model), rather than causally. Recorded with the run for its prompts.
    Source: Raffel et al. 2020, arXiv:1910.10683, §3.2.1.
    """

    features: ClassVar[tuple[str, ...]] = ("inputs", "targets")
    loss_fields: ClassVar[tuple[str, ...]] = (
        *TokenCrossEntropy.loss_fields,
        "bidirectional_inputs",
    )
    refusals: ClassVar[Mapping[str, str]] = {
        "encoder": "an encoder writes no targets: choose a model with a decoder, or an objective "
        "for encoders, e.g. MaskedLM"
    }

    bidirectional_inputs: bool = True

    @property
    def prompt(self) -> str:
        """The kind of prompts: see `Prompts.kind`."""
        return "inputs"

    def frames(self, vocabulary: Any) -> Frames:
        """Returns the special tokens around inputs and targets."""
        return frames_of(vocabulary, topology=self.topology, start_id=self.start_id)

    def prompts(self, vocabulary: Any) -> Prompts:
        frames = self.frames(vocabulary)
        return Prompts(self.prompt, *frames, bidirectional=self.bidirectional_inputs)

    def prompted(self, prompts: Prompts | None) -> Self:
        if prompts is None:
            return self
        return dataclasses.replace(self, bidirectional_inputs=prompts.bidirectional)

    def pairs(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        """Yields `inputs` and `targets`, 1-D int32, by the rules of `Objective.prepare`."""
        raise NotImplementedError(f"{type(self).__name__}.pairs")

    def rows(self, lengths: Lengths) -> dict[str, RowSpec]:
        """Returns the rows of both, or the one that a decoder alone reads them in."""
        both = {name: feature_length(lengths, name, at_least=1) for name in ("inputs", "targets")}
        if self.topology != "decoder":
            return {name: RowSpec(length) for name, length in both.items()}
        length = sum(both.values())
        return {
            "targets": RowSpec(length),
            "prefix": RowSpec(length, kind="aligned", along="targets"),
        }

    def prepare(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        pairs = self.pairs(examples, lengths=lengths, vocabulary=vocabulary, rng=rng)
        if self.topology != "decoder":
            return pairs
        start = start_of(vocabulary, self.start_id)
        return (join_pair({**pair, "inputs": start.without(pair["inputs"])}) for pair in pairs)

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.topology != "decoder":
            return encoder_decoder_batch(rows, start_id=self.start_id)
        return prefix_lm_batch(
            rows, start_id=self.start_id, bidirectional=self.bidirectional_inputs
        )

    def show(self, example: Example, vocabulary: Vocabulary) -> list[str]:
        return self.show_pair(*split_pair(example), vocabulary)

    def show_pair(
        self, inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary
    ) -> list[str]:
        """Returns `inputs` and `targets` `[n]` for a person to read."""
        return [vocabulary.decode(inputs.tolist()), vocabulary.decode(targets.tolist())]
