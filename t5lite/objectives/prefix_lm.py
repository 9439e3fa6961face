"""Prefix language modelling."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from t5lite.objectives.base import documents
from t5lite.objectives.inputs_to_targets import InputsToTargets
from t5lite.rows import Examples, Lengths, Prepared, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(InputsToTargets):
    """Cuts a text in two at random, and predicts the second part from the first.

    Texts (`targets` of the examples) are split into pieces of one length L: what a decoder's row
    holds beside EOS, or the most that either side of an encoder-decoder may have to hold. The
    prefix of a piece of n tokens has U[1, n - 1] of them. EOS ends the targets but not the inputs.
    No token is lost.

    Every other piece of length L takes the complement, L - cut, of the cut before it, as T5's
    `pack_prefix_lm_encoder_decoder` does: packed, the two fill one row of inputs and targets.

    Source: Raffel et al. 2020, arXiv:1910.10683, §3.2.1 and §3.3.1; `random_prefix_noise_mask` of
      `t5.data.preprocessors`.
    """

    features: ClassVar[tuple[str, ...]] = ("targets",)
    whole_texts: ClassVar[bool] = True

    @property
    def prompt(self) -> str:
        return "prefix" if self.bidirectional_inputs else "continue"

    def piece_length(self, lengths: Lengths, vocabulary: Any) -> int:
        """Returns L, the tokens in a full piece; raises InputError if too few to cut."""
        around = self.frames(vocabulary).targets.size  # EOS
        if self.topology == "decoder":
            inputs = feature_length(lengths, "inputs", at_least=1)
            return inputs + feature_length(lengths, "targets", at_least=around + 1) - around
        inputs = feature_length(lengths, "inputs")
        # Of two pieces that fill a row, both have their EOS.
        return min(inputs, feature_length(lengths, "targets", at_least=2 * around + 2) - 2 * around)

    def pairs(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        length = self.piece_length(lengths, vocabulary)
        frame = self.frames(vocabulary).targets

        def divided() -> Prepared:
            complement = 0
            for text in documents(examples, self, vocabulary):
                for start in range(0, text.size, length):
                    piece = text[start : start + length]
                    # A piece of one token is all inputs: its targets are EOS alone.
                    cut = int(rng.integers(1, max(piece.size, 2)))
                    if piece.size == length:
                        cut = complement or cut
                        complement = 0 if complement else length - cut
                    yield {"inputs": piece[:cut], "targets": frame(piece[cut:])}

        return divided()
