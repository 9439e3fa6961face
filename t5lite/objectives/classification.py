"""A class for a text."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.base import NOTHING, Example, Model, Terms, check_number
from t5lite.objectives.head_objective import Batch, HeadObjective, pair
from t5lite.objectives.losses import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(HeadObjective):
    """Says which class a text is of, from `labels` `[1]`: a class from 0, -1 where unknown.

    Attributes:
      label_smoothing: probability in `[0, 1)` taken from the class and given to all others.

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.1.
    """

    head: ClassVar[str] = "classification"

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "label_smoothing", lambda x: 0 <= x < 1, "a number in [0, 1)")

    def num_labels(self, lengths: Mapping[str, int]) -> int:
        return 1

    def prepare(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields `inputs`, and `labels` one higher than the class; see `Objective.prepare`."""
        del rng
        for example in examples:
            yield {
                "inputs": self.framed(self.inputs_of(example), lengths, vocabulary),
                "labels": self.labels_of(example).astype(np.int32) + 1,
            }

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, labels `[batch]` int32 and label_weights `[batch]` float32."""
        labels = rows["labels"][:, 0]
        return {
            **self.named(rows),
            "labels": np.maximum(labels - 1, 0).astype(np.int32),
            "label_weights": (labels > 0).astype(np.float32),
        }

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of labelled texts."""
        return {"classification": jnp.sum(batch["label_weights"])}

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
        """Returns the classes' cross entropy; metrics `loss` (nats, unsmoothed) and `accuracy`."""
        logits, others = self.ask(model, params, batch, rngs=rngs, train=train)
        found = cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)
        weights = batch["label_weights"]
        terms = {"classification": (jnp.sum(weights * found.cross_entropy), jnp.float32(1))}
        metrics = {
            "loss": pair(found.negative_log_likelihood, weights),
            "accuracy": pair(found.correct, weights),
        }
        return terms | others, metrics

    def show_labels(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """Returns the class's name or number."""
        number = int(labels[0]) - 1
        return names[number] if 0 <= number < len(names) else f"class {number}"
