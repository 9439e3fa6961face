"""Contrastive learning: texts that belong together are close, all others apart."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.base import (
    NOTHING,
    TOKENS,
    Axes,
    Batch,
    IdLimit,
    Model,
    Terms,
    Vocabulary,
    check_number,
    feature,
    unended,
)
from t5lite.objectives.head_objective import HeadObjective, weighted
from t5lite.objectives.losses import cross_entropy
from t5lite.objectives.rows import segments_of
from t5lite.rows import Example, Lengths, RowSpec, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(HeadObjective):
    """Finds the text `targets` that belongs to `inputs` among those of the batch (InfoNCE).

    Similarity is the dot product of the head's embeddings. Under microbatches the other texts are
    those of the microbatch, and the loss is the mean over microbatches: fewer negatives, an easier
    task. Padding rows are excluded from the negatives. Metrics: `loss` and `accuracy`.

    Attributes:
      temperature: divisor of similarities, > 0.
      symmetric: whether `inputs` is also found among those of the batch from `targets`.
    Source: van den Oord et al. 2018, arXiv:1807.03748, §2.3; Radford et al. 2021,
      arXiv:2103.00020, §2.3 (symmetric); Gao et al. 2021, arXiv:2104.08821, §3 (0.05).
    """

    features: ClassVar[tuple[str, ...]] = ("inputs", "targets")
    head: ClassVar[str] = "embedding"
    per_row: ClassVar[tuple[str, ...]] = ()
    min_rows: ClassVar[int] = 2  # the other rows are a row's negatives

    temperature: float = 0.05
    symmetric: bool = True

    def __post_init__(self) -> None:
        check_number(self, "temperature", lambda x: 0 < x < math.inf, "a number > 0")

    def rows(self, lengths: Lengths) -> dict[str, RowSpec]:
        return {name: RowSpec(feature_length(lengths, name, at_least=3)) for name in self.features}

    def axes(self) -> Axes:
        tokens = dict.fromkeys(("other_input_tokens", "other_segment_ids"), TOKENS)
        return super().axes() | tokens | {"other_lengths": ("batch",)}

    @property
    def token_arrays(self) -> tuple[str, ...]:
        return (*super().token_arrays, "other_segment_ids")

    def limits(self, model: Any) -> dict[str, IdLimit]:
        limits = super().limits(model)
        return limits | {"other_input_tokens": limits["encoder_input_tokens"]}

    def prepared(
        self, example: Example, lengths: Lengths, vocabulary: Any
    ) -> dict[str, np.ndarray]:
        """Returns both texts, framed and truncated; raises InputError if one is missing."""
        advice = "name the two texts that belong together 'inputs' and 'targets'"
        texts = {name: feature(example, name, self, advice) for name in self.features}
        return {
            name: self.framed(unended(text, vocabulary), lengths, vocabulary, name)
            for name, text in texts.items()
        }

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the first texts under the side's name, the second as other_input_tokens."""
        second = {"other_input_tokens": rows["targets"], **segments_of(rows, "targets", "other")}
        return self.text_arrays(rows) | second

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns nothing: the loss is a mean already."""
        del batch
        return {}

    def loss(
        self,
        model: Model,
        params: Any,
        batch: Batch,
        *,
        frozen: Mapping[str, Any] = NOTHING,
        rngs: Mapping[str, jax.Array] = NOTHING,
        train: bool = False,
    ) -> tuple[Terms, Terms]:
        """Returns the mean cross entropy of the matching text, and the metrics."""
        texts = (_renamed(batch, self.side, self.side), _renamed(batch, "other", self.side))
        (first, terms), (second, second_terms) = (
            # Separate dropout keys: they are what tells a text from itself (SimCSE).
            self.output(model, params, text, rngs=_folded(rngs, index), train=train)
            for index, text in enumerate(texts)
        )
        exists = self.valid(batch).any(axis=1)
        # In float32 whatever the device: the temperature makes much of small differences.
        similar = jnp.einsum("ie,je->ij", first, second, precision="highest")
        logits = similar / jnp.float32(self.temperature)
        diagonal = jnp.arange(len(logits), dtype=jnp.int32)
        directions = [
            cross_entropy(jnp.where(exists[None], scores, jnp.float32(-1e9)), diagonal)
            for scores in ([logits, logits.T] if self.symmetric else [logits])
        ]
        losses = sum((d.cross_entropy for d in directions[1:]), directions[0].cross_entropy)
        loss = weighted(losses / jnp.float32(len(directions)), exists.astype(jnp.float32))
        mean = loss[0] / jnp.maximum(loss[1], 1.0)
        correct = weighted(directions[0].correct, exists.astype(jnp.float32))
        # Terms of experts: the mean of both calls.
        terms = {
            name: ((total + second_terms[name][0]) / 2, coefficient)
            for name, (total, coefficient) in terms.items()
        }
        terms["contrastive"] = (mean, jnp.float32(1))
        return terms, {"loss": loss, "accuracy": correct}

    def show(
        self, example: Example, vocabulary: Vocabulary, names: Sequence[str] = ()
    ) -> list[str]:
        del names  # without labels
        return [vocabulary.decode(example[name].tolist()) for name in self.features]


def _renamed(batch: Batch, side: str, name: str) -> dict[str, jax.Array]:
    arrays = ("input_tokens", "segment_ids", "lengths")
    return {f"{name}_{a}": batch[f"{side}_{a}"] for a in arrays if f"{side}_{a}" in batch}


def _folded(rngs: Mapping[str, jax.Array], index: int) -> dict[str, jax.Array]:
    return {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
