"""Text regression."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.objectives.base import NOTHING, Batch, Model, Terms
from t5lite.objectives.head_objective import HeadObjective, row_weights, weighted
from t5lite.rows import Lengths, RowSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(HeadObjective):
    """Predicts numbers of a text, from `labels` `[num_targets]` float32, by the squared error.

    Metrics: `loss` and `mse`, both the mean squared error.

    Attributes:
      num_targets: how many numbers; set by `bind` to those of the model's head.
    Source: Devlin et al. 2018, arXiv:1810.04805, §4.1, as the authors train STS-B.
    """

    head: ClassVar[str] = "regression"

    num_targets: int = 1

    def bind(self, model: Model, references: Mapping[str, Any] = NOTHING) -> Self:
        """Returns the objective for a model's topology and number of targets."""
        bound = super().bind(model, references)
        return dataclasses.replace(bound, num_targets=model.heads[self.head].num_targets)

    def label_spec(self, lengths: Lengths) -> RowSpec:
        return RowSpec(1, (self.num_targets,), "float32", "per_example")

    def prepared_labels(
        self, labels: np.ndarray, text: np.ndarray, inputs: np.ndarray, frame: Frame
    ) -> np.ndarray:
        """Returns the labels as float32; raises InputError unless there are `num_targets`."""
        if labels.shape != (self.num_targets,):
            raise InputError(
                f"Regression: an example has labels of shape {labels.shape} and the model's "
                f"head gives {self.num_targets}: set RegressionHeadSpec.num_targets"
            )
        return labels.astype(np.float32)

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, labels `[batch, num_targets]` and label_weights `[batch]` float32."""
        labels = rows["labels"][:, 0]
        return {**self.text_arrays(rows), "labels": labels, "label_weights": row_weights(rows)}

    def losses(self, output: jax.Array, batch: Batch) -> tuple[jax.Array, Terms]:
        squared = jnp.mean(jnp.square(output - batch["labels"]), axis=-1)
        error = weighted(squared, batch["label_weights"])
        return error[0], {"loss": error, "mse": error}

    def show_labels(self, labels: np.ndarray, names: Sequence[str]) -> str:
        if len(names) != len(labels):
            return " ".join(f"{label:g}" for label in labels)
        return " ".join(f"{name}={label:g}" for name, label in zip(names, labels, strict=True))
