"""Token classification: named entities, parts of speech."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import (
    NOTHING,
    TOKENS,
    IdLimit,
    Model,
    Terms,
    Vocabulary,
    known,
    unended,
)
from t5lite.objectives.head_objective import Batch, HeadObjective, pair
from t5lite.objectives.losses import cross_entropy
from t5lite.objectives.rows import weights_of
from t5lite.rows import Example, RowSpec, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLabels(HeadObjective):
    """Predicts a label for each token, from `labels` `[n]` along `inputs`: from 0, -1 for none.

    Label 0 means "nothing in particular" (the O of named entities): precision and recall are those
    of all other labels together, token by token.

    Source: Devlin et al. 2018, arXiv:1810.04805, §5.3.
    """

    head: ClassVar[str] = "token_labels"
    packable: ClassVar[bool] = True
    per_row: ClassVar[tuple[str, ...]] = ()

    def limits(self, model: Any) -> dict[str, IdLimit]:
        """Returns the numbers of ids and of labels."""
        fix = "set TokenLabelsHeadSpec.num_labels to more, or fix the data"
        limit = IdLimit(model.limits["token_labels"], "classes", fix)
        return super().limits(model) | {"token_labels": limit}

    def label_spec(self, lengths: Mapping[str, int]) -> RowSpec:
        """Returns the declaration of `labels`, which lie along the inputs."""
        return RowSpec(feature_length(lengths, "inputs"), kind="aligned", along="inputs")

    def axes(self) -> dict[str, tuple[str | None, ...]]:
        """Returns the logical axes of a batch's arrays, by name."""
        return super().axes() | dict.fromkeys(("token_labels", "token_weights"), TOKENS)

    def prepared(
        self, example: Example, lengths: Mapping[str, int], vocabulary: Any
    ) -> dict[str, np.ndarray]:
        """Returns `inputs`, and `labels` along them, -1 on special tokens.

        Raises: InputError if an example has fewer labels than tokens.
        """
        text = unended(self.inputs_of(example), vocabulary)
        labels = self.labels_of(example)[: text.size].astype(np.int32)
        if labels.size < text.size:
            raise InputError(
                f"TokenLabels: an example has {labels.size} labels for {text.size} tokens: "
                "give each token of 'inputs' its label, -1 for none"
            )
        inputs = self.framed(text, lengths, vocabulary)
        return {"inputs": inputs, "labels": known(vocabulary).frame.filled(-1)(labels, inputs.size)}

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, token_labels int32 and token_weights float32 `[batch, length]`."""
        labels = rows["labels"]
        return {
            **self.named(rows),
            "token_labels": np.maximum(labels, 0),
            "token_weights": weights_of(rows, "inputs") * (labels >= 0).astype(np.float32),
        }

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of labels."""
        return {self.head: jnp.sum(batch["token_weights"])}

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
        """Returns the labels' cross entropy; metrics `loss`, `accuracy`, `precision`, `recall`."""
        logits, others = self.output(model, params, batch, rngs=rngs, train=train)
        labels, weights = batch["token_labels"], batch["token_weights"]
        found = cross_entropy(logits, labels)
        predicted = jnp.argmax(logits, axis=-1)
        true = ((predicted == labels) & (labels > 0)).astype(jnp.float32)
        loss = pair(found.negative_log_likelihood, weights)
        metrics = {
            "loss": loss,
            "accuracy": pair(found.correct, weights),
            "precision": pair(true, weights * (predicted > 0).astype(jnp.float32)),
            "recall": pair(true, weights * (labels > 0).astype(jnp.float32)),
        }
        return {"token_labels": (loss[0], jnp.float32(1))} | others, metrics

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
