"""Extractive question answering."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.objectives.base import Batch, Terms, Vocabulary
from t5lite.objectives.head_objective import HeadObjective, row_weights, weighted
from t5lite.objectives.losses import cross_entropy
from t5lite.objectives.span_corruption import Piece, join_pieces
from t5lite.rows import Example, Lengths, RowSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSpans(HeadObjective):
    """Predicts the ends of an answer, from `labels` `[2]`: first and last token in `inputs`.

    (-1, -1) means no answer, and so does a truncated one: the model then learns to point at the
    first token, [CLS] in BERT, so that inputs should begin with the question. Metrics: `loss`,
    `accuracy` (of starts and ends) and `exact_match` (of both together).

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.2 and §4.3.
    """

    head: ClassVar[str] = "spans"
    per_row: ClassVar[tuple[str, ...]] = ("span_starts", "span_ends", "label_weights")
    former_name: ClassVar[str] = "Spans"  # in the data positions of earlier versions

    def label_spec(self, lengths: Lengths) -> RowSpec:
        return RowSpec(1, (2,), kind="per_example")

    def prepared_labels(
        self, labels: np.ndarray, text: np.ndarray, inputs: np.ndarray, frame: Frame
    ) -> np.ndarray:
        """Returns positions in `inputs`, -1 without an answer; InputError unless in order."""
        labels = labels.astype(np.int32)
        if labels.shape != (2,) or labels[0] > labels[1]:
            raise InputError(
                f"AnswerSpans: an example has the labels {labels.tolist()}: they must be the "
                "first and the last token of the answer in 'inputs', or (-1, -1)"
            )
        answered = labels[0] >= 0 and labels[1] < inputs.size - frame.size
        ends = labels + len(frame.before) if answered else np.full_like(labels, -1)
        return ends.astype(np.int32)

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, span_starts and span_ends `[batch]` int32, and label_weights."""
        ends = np.maximum(rows["labels"][:, 0], 0)
        return {
            **self.text_arrays(rows),
            "span_starts": ends[:, 0],
            "span_ends": ends[:, 1],
            "label_weights": row_weights(rows),
        }

    def losses(self, output: jax.Array, batch: Batch) -> tuple[jax.Array, Terms]:
        """Returns the cross entropy over positions, the mean of start and end; and the metrics."""
        valid = self.valid(batch)
        # Finite, so that a row without a text has a gradient of 0, not NaN.
        by_position = jnp.where(valid[:, None], jnp.moveaxis(output, -1, 1), jnp.float32(-1e9))
        ends = jnp.stack([batch["span_starts"], batch["span_ends"]], axis=1)
        losses, weights = cross_entropy(by_position, ends), batch["label_weights"]
        loss = weighted(losses.cross_entropy.mean(axis=1), weights)
        return loss[0], {
            "loss": loss,
            "accuracy": weighted(losses.correct.mean(axis=1), weights),
            "exact_match": weighted(losses.correct.prod(axis=1), weights),
        }

    def show(
        self, example: Example, vocabulary: Vocabulary, names: Sequence[str] = ()
    ) -> list[str]:
        """Returns the text of a prepared example, the answer «marked»."""
        del names  # positions have none
        tokens = example["inputs"]
        tokens = tokens[tokens != vocabulary.eos_id]
        first, last = example["labels"].tolist()
        if first < 0:
            return [vocabulary.decode(tokens.tolist()), "no answer"]
        pieces = [Piece(tokens[:first], None), Piece(tokens[first : last + 1], 0)]
        return [join_pieces([*pieces, Piece(tokens[last + 1 :], None)], vocabulary)]
