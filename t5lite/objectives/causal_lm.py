"""Causal language modelling."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5lite.objectives.base import Vocabulary, documents, known_vocabulary
from t5lite.objectives.prompts import Prompts, start_of
from t5lite.objectives.rows import decoder_batch
from t5lite.objectives.token_cross_entropy import TokenCrossEntropy
from t5lite.rows import Example, Examples, Lengths, Prepared, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(TokenCrossEntropy):
    """Predicts every token of a text, and its one EOS, from the tokens before.

    Texts (`targets` of the examples) that are longer than a row are cut into pieces that fill it,
    each trained without the pieces before. No token is lost.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.
    """

    features: ClassVar[tuple[str, ...]] = ("targets",)
    whole_texts: ClassVar[bool] = True
    refusals: ClassVar[Mapping[str, str]] = {
        "encoder": "an encoder sees the tokens that it would have to predict: use MaskedLM, or "
        "choose a decoder",
        "encoder_decoder": "its encoder would have nothing to read: use PrefixLM or "
        "SpanCorruption, or choose a decoder",
    }

    topology: str = "decoder"

    def prepare(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        del rng
        length = feature_length(lengths, "targets")
        first = start_of(vocabulary, self.start_id)
        eos = np.array([known_vocabulary(vocabulary).eos_id], np.int32)

        def pieces() -> Prepared:
            for text in documents(examples, self, vocabulary):
                text = first.without(text)
                if text.size:
                    whole = np.concatenate([text, eos])
                    for start in range(0, whole.size, length):
                        yield {"targets": whole[start : start + length]}

        return pieces()

    def prompts(self, vocabulary: Any) -> Prompts:
        return Prompts.by_default(vocabulary, topology=self.topology, start_id=self.start_id)

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return decoder_batch(rows, start_id=self.start_id)

    def show(self, example: Example, vocabulary: Vocabulary) -> list[str]:
        return [vocabulary.decode(example["targets"].tolist())]
