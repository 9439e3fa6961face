"""Extractive question answering."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import NOTHING, Model, Terms, Vocabulary, known
from t5lite.objectives.head_objective import Batch, HeadObjective, existing, pair
from t5lite.objectives.losses import cross_entropy
from t5lite.objectives.span_corruption import Piece, join_pieces
from t5lite.rows import Example, RowSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSpans(HeadObjective):
    """Predicts the ends of an answer, from `labels` `[2]`: first and last token in `inputs`.

    (-1, -1) means that there is none, and so does an answer that is cut off. The model is then
    trained to point at the first token, [CLS] in BERT: begin inputs with the question.

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.2 and §4.3.
    """

    head: ClassVar[str] = "spans"
    per_row: ClassVar[tuple[str, ...]] = ("span_starts", "span_ends", "label_weights")
    former_name: ClassVar[str] = "Spans"  # in the data positions of earlier versions

    def label_spec(self, lengths: Mapping[str, int]) -> RowSpec:
        """Returns the declaration of `labels`, two positions."""
        return RowSpec(1, (2,), kind="per_example")

    def prepared(
        self, example: Example, lengths: Mapping[str, int], vocabulary: Any
    ) -> dict[str, np.ndarray]:
        """Returns `inputs`, and `labels` as positions in them, -1 without an answer.

        Raises: InputError if labels are not two numbers, the first not above the second.
        """
        frame = known(vocabulary).frame
        inputs = self.framed(self.inputs_of(example), lengths, vocabulary)
        labels = self.labels_of(example).astype(np.int32)
        if labels.shape != (2,) or labels[0] > labels[1]:
            raise InputError(
                f"AnswerSpans: an example has the labels {labels.tolist()}: they must be the "
                "first and the last token of the answer in 'inputs', or (-1, -1)"
            )
        answered = labels[0] >= 0 and labels[1] < inputs.size - frame.size
        ends = labels + len(frame.before) if answered else np.full_like(labels, -1)
        return {"inputs": inputs, "labels": ends.astype(np.int32)}

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, span_starts and span_ends `[batch]` int32, and label_weights."""
        ends = np.maximum(rows["labels"][:, 0], 0)
        return {
            **self.named(rows),
            "span_starts": ends[:, 0],
            "span_ends": ends[:, 1],
            "label_weights": existing(rows),
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
        """Returns the cross entropy over positions, the mean of start and end.

        Metrics are `loss`, `accuracy` (of starts and ends) and `exact_match` (of both together).
        """
        logits, others = self.output(model, params, batch, rngs=rngs, train=train)
        valid = self.valid(batch)
        # Finite, so that a row without a text has a gradient of 0 rather than none.
        by_position = jnp.where(valid[:, None], jnp.moveaxis(logits, -1, 1), jnp.float32(-1e9))
        ends = jnp.stack([batch["span_starts"], batch["span_ends"]], axis=1)
        found, weights = cross_entropy(by_position, ends), batch["label_weights"]
        loss = pair(found.cross_entropy.mean(axis=1), weights)
        metrics = {
            "loss": loss,
            "accuracy": pair(found.correct.mean(axis=1), weights),
            "exact_match": pair(found.correct.prod(axis=1), weights),
        }
        return {"spans": (loss[0], jnp.float32(1))} | others, metrics

    def show(
        self, example: Example, vocabulary: Vocabulary, names: Sequence[str] = ()
    ) -> list[str]:
        """Returns a prepared example for a person to read: the text, the answer «marked»."""
        del names  # positions have none
        tokens = example["inputs"]
        tokens = tokens[tokens != vocabulary.eos_id]
        first, last = example["labels"].tolist()
        if first < 0:
            return [vocabulary.decode(tokens.tolist()), "no answer"]
        pieces = [Piece(tokens[:first], None), Piece(tokens[first : last + 1], 0)]
        return [join_pieces([*pieces, Piece(tokens[last + 1 :], None)], vocabulary)]
