"""Token classification: named entities, parts of speech."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.objectives.base import TOKENS, Axes, Batch, IdLimit, Terms, Vocabulary
from t5lite.objectives.head_objective import HeadObjective, weighted
from t5lite.objectives.losses import cross_entropy
from t5lite.objectives.rows import weights_of
from t5lite.rows import Example, Lengths, RowSpec, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLabels(HeadObjective):
    """Predicts a label for each token, from `labels` `[n]` along `inputs`: from 0, -1 for none.

    Label 0 means "nothing in particular" (the O of named entities): precision and recall are those
    of all other labels together, token by token. Metrics: `loss`, `accuracy`, `precision`,
    `recall`.

    Source: Devlin et al. 2018, arXiv:1810.04805, §5.3.
    """

    head: ClassVar[str] = "token_labels"
    packable: ClassVar[bool] = True
    per_row: ClassVar[tuple[str, ...]] = ()
    label_weights: ClassVar[str] = "token_weights"

    def limits(self, model: Any) -> dict[str, IdLimit]:
        fix = "set TokenLabelsHeadSpec.num_labels to more, or fix the data"
        limit = IdLimit(model.limits["token_labels"], "classes", fix)
        return super().limits(model) | {"token_labels": limit}

    def label_spec(self, lengths: Lengths) -> RowSpec:
        return RowSpec(feature_length(lengths, "inputs"), kind="aligned", along="inputs")

    def axes(self) -> Axes:
        return super().axes() | dict.fromkeys(("token_labels", "token_weights"), TOKENS)

    def prepared_labels(
        self, labels: np.ndarray, text: np.ndarray, inputs: np.ndarray, frame: Frame
    ) -> np.ndarray:
        """Returns the labels along `inputs`, -1 on special tokens; InputError if too few."""
        if labels.size < text.size:
            raise InputError(
                f"TokenLabels: an example has {labels.size} labels for {text.size} tokens: "
                "give each token of 'inputs' its label, -1 for none"
            )
        return frame.filled(-1)(labels[: text.size].astype(np.int32), inputs.size)

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, token_labels int32 and token_weights float32 `[batch, length]`."""
        labels = rows["labels"]
        return {
            **self.text_arrays(rows),
            "token_labels": np.maximum(labels, 0),
            "token_weights": weights_of(rows, "inputs") * (labels >= 0).astype(np.float32),
        }

    def losses(self, output: jax.Array, batch: Batch) -> tuple[jax.Array, Terms]:
        labels, weights = batch["token_labels"], batch["token_weights"]
        tokens, predicted = cross_entropy(output, labels), jnp.argmax(output, axis=-1)
        true = ((predicted == labels) & (labels > 0)).astype(jnp.float32)
        loss = weighted(tokens.negative_log_likelihood, weights)
        return loss[0], {
            "loss": loss,
            "accuracy": weighted(tokens.correct, weights),
            "precision": weighted(true, weights * (predicted > 0).astype(jnp.float32)),
            "recall": weighted(true, weights * (labels > 0).astype(jnp.float32)),
        }

    def show(
        self, example: Example, vocabulary: Vocabulary, names: Sequence[str] = ()
    ) -> list[str]:
        """Returns the text, then the tokens whose label is neither 0 nor missing."""
        marked = [
            f"{vocabulary.decode([int(token)])}={names[label] if names else label}"
            for token, label in zip(example["inputs"], example["labels"], strict=True)
            if label > 0
        ]
        text = vocabulary.decode(example["inputs"].tolist())
        return [text, " ".join(marked) or f"all {names[0] if names else 0}"]
