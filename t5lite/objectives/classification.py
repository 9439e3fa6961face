"""Text classification."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.base import NOTHING, IdLimit, Model, Terms, check_number
from t5lite.objectives.head_objective import Batch, HeadObjective, existing, pair
from t5lite.objectives.losses import cross_entropy
from t5lite.rows import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(HeadObjective):
    """Predicts the class of a text, from `labels` `[1]`: a class from 0, -1 where unknown.

    Attributes:
      label_smoothing: probability in `[0, 1)` taken from the class and given to all others.

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.1.
    """

    head: ClassVar[str] = "classification"

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "label_smoothing", lambda x: 0 <= x < 1, "a number in [0, 1)")

    def limits(self, model: Any) -> dict[str, IdLimit]:
        """Returns the numbers of ids and of classes."""
        fix = "set ClassificationHeadSpec.num_classes to more, or fix the data"
        limit = IdLimit(model.limits["labels"], "classes", fix)
        return super().limits(model) | {"labels": limit}

    def prepared(
        self, example: Example, lengths: Mapping[str, int], vocabulary: Any
    ) -> dict[str, np.ndarray]:
        """Returns `inputs`, and `labels`, the class, as a number."""
        return {
            "inputs": self.framed(self.inputs_of(example), lengths, vocabulary),
            "labels": self.labels_of(example).astype(np.int32)[0],
        }

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, labels `[batch]` int32 and label_weights `[batch]` float32."""
        labels = rows["labels"][:, 0]
        return {
            **self.named(rows),
            "labels": np.maximum(labels, 0),
            "label_weights": existing(rows) * (labels >= 0).astype(np.float32),
        }

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
        logits, others = self.output(model, params, batch, rngs=rngs, train=train)
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
        number = int(labels[0])
        return names[number] if 0 <= number < len(names) else f"class {number}"
