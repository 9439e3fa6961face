"""A label for each token of a text: named entities, parts of speech."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import (
    NOTHING,
    Example,
    Model,
    Terms,
    Vocabulary,
    feature_length,
    known,
    unended,
)
from t5lite.objectives.head_objective import Batch, HeadObjective, pair
from t5lite.objectives.losses import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLabels(HeadObjective):
    """Says what each token is, from `labels` `[n]` along `inputs`: from 0, -1 where not asked for.

    Label 0 means "nothing in particular" (the O of named entities): precision and recall are those
    of all other labels together, token by token.

    Source: Devlin et al. 2018, arXiv:1810.04805, §5.3.
    """

    head: ClassVar[str] = "token_labels"
    packable: ClassVar[bool] = True
    cut_together: ClassVar[tuple[tuple[str, ...], ...]] = (("inputs", "labels"),)

    def num_labels(self, lengths: Mapping[str, int]) -> int:
        return feature_length(lengths, "inputs")

    def prepare(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields `inputs`, and `labels` one higher, 0 where not asked for.

        Raises: InputError if an example has fewer labels than tokens.
        """
        del rng
        unlabelled = known(vocabulary).frame.filled(0)
        for example in examples:
            text = unended(self.inputs_of(example), vocabulary)
            labels = self.labels_of(example)[: text.size].astype(np.int32) + 1
            if labels.size < text.size:
                raise InputError(
                    f"TokenLabels: an example has {labels.size} labels for {text.size} tokens: "
                    "give each token of 'inputs' its label, -1 for none"
                )
            inputs = self.framed(text, lengths, vocabulary)
            yield {"inputs": inputs, "labels": unlabelled(labels, inputs.size)}

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, token_labels int32 and token_weights float32 `[batch, length]`."""
        labels = rows["labels"]
        return {
            **self.named(rows),
            "token_labels": np.maximum(labels - 1, 0).astype(np.int32),
            "token_weights": (labels > 0).astype(np.float32),
        }

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of labels."""
        return {"token_labels": jnp.sum(batch["token_weights"])}

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
        logits, others = self.ask(model, params, batch, rngs=rngs, train=train)
        labels, weights = batch["token_labels"], batch["token_weights"]
        found = cross_entropy(logits, labels)
        said = jnp.argmax(logits, axis=-1)
        true = ((said == labels) & (labels > 0)).astype(jnp.float32)
        loss = pair(found.negative_log_likelihood, weights)
        metrics = {
            "loss": loss,
            "accuracy": pair(found.correct, weights),
            "precision": pair(true, weights * (said > 0).astype(jnp.float32)),
            "recall": pair(true, weights * (labels > 0).astype(jnp.float32)),
        }
        return {"token_labels": (loss[0], jnp.float32(1))} | others, metrics

    def show(
        self, example: Example, vocabulary: Vocabulary, names: Sequence[str] = ()
    ) -> list[str]:
        """Returns the text, then the tokens whose label is neither 0 nor missing."""
        marked = [
            f"{vocabulary.decode([int(token)])}={names[label - 1] if names else label - 1}"
            for token, label in zip(example["inputs"], example["labels"], strict=True)
            if label > 1
        ]
        text = vocabulary.decode(example["inputs"].tolist())
        return [text, " ".join(marked) or f"all {names[0] if names else 0}"]
