"""Text classification."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.framing import Frame
from t5lite.objectives.base import Batch, IdLimit, Terms, check_number
from t5lite.objectives.head_objective import HeadObjective, row_weights, weighted
from t5lite.objectives.losses import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(HeadObjective):
    """Predicts the class of a text, from `labels` `[1]`: a class from 0, -1 where unknown.

    Metrics: `loss` (nats, unsmoothed) and `accuracy`.

    Attributes:
      label_smoothing: probability in `[0, 1)` taken from the class and given to all others.
    Source: Devlin et al. 2018, arXiv:1810.04805, §4.1.
    """

    head: ClassVar[str] = "classification"

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "label_smoothing", lambda x: 0 <= x < 1, "a number in [0, 1)")

    def limits(self, model: Any) -> dict[str, IdLimit]:
        fix = "set ClassificationHeadSpec.num_classes to more, or fix the data"
        limit = IdLimit(model.limits["labels"], "classes", fix)
        return super().limits(model) | {"labels": limit}

    def prepared_labels(
        self, labels: np.ndarray, text: np.ndarray, inputs: np.ndarray, frame: Frame
    ) -> np.ndarray:
        return labels.astype(np.int32)[0]

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, labels `[batch]` int32 and label_weights `[batch]` float32."""
        labels = rows["labels"][:, 0]
        return {
            **self.text_arrays(rows),
            "labels": np.maximum(labels, 0),
            "label_weights": row_weights(rows) * (labels >= 0).astype(np.float32),
        }

    def losses(self, output: jax.Array, batch: Batch) -> tuple[jax.Array, Terms]:
        classes = cross_entropy(output, batch["labels"], label_smoothing=self.label_smoothing)
        weights = batch["label_weights"]
        return jnp.sum(weights * classes.cross_entropy), {
            "loss": weighted(classes.negative_log_likelihood, weights),
            "accuracy": weighted(classes.correct, weights),
        }

    def show_labels(self, labels: np.ndarray, names: Sequence[str]) -> str:
        number = int(labels[0])
        return names[number] if 0 <= number < len(names) else f"class {number}"
