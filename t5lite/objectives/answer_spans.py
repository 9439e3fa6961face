"""Where in a text the answer stands."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import NOTHING, Example, Model, Terms, Vocabulary, known
from t5lite.objectives.head_objective import Batch, HeadObjective, existing, pair
from t5lite.objectives.losses import cross_entropy
from t5lite.objectives.span_corruption import Piece, join_pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSpans(HeadObjective):
    """Says where an answer begins and ends, from `labels` `[2]`: first and last token in `inputs`.

    (-1, -1) means that there is none, and so does an answer that is cut off. The model says so by
    pointing at the first token, [CLS] in BERT: begin inputs with the question.

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.2 and §4.3.
    """

    head: ClassVar[str] = "spans"
    former_name: ClassVar[str] = "Spans"  # in the data positions of earlier versions

    def num_labels(self, lengths: Mapping[str, int]) -> int:
        return 2

    def prepare(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields `inputs`, and `labels`: one more than the places in them, 0 for no answer.

        Raises: InputError if labels are not two numbers, the first not above the second.
        """
        del rng
        frame = known(vocabulary).frame
        for example in examples:
            inputs = self.framed(self.inputs_of(example), lengths, vocabulary)
            labels = self.labels_of(example).astype(np.int32)
            if labels.shape != (2,) or labels[0] > labels[1]:
                raise InputError(
                    f"AnswerSpans: an example has the labels {labels.tolist()}: they must be the "
                    "first and the last token of the answer in 'inputs', or (-1, -1)"
                )
            there = labels[0] >= 0 and labels[1] < inputs.size - frame.size
            places = labels + len(frame.before) + 1 if there else np.zeros_like(labels)
            yield {"inputs": inputs, "labels": places.astype(np.int32)}

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the texts, span_starts and span_ends `[batch]` int32, and label_weights."""
        places = np.maximum(rows["labels"] - 1, 0).astype(np.int32)
        return {
            **self.named(rows),
            "span_starts": places[:, 0],
            "span_ends": places[:, 1],
            "label_weights": existing(rows),
        }

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of texts."""
        return {"spans": jnp.sum(batch["label_weights"])}

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
        """Returns the cross entropy over places, the mean of start and end.

        Metrics are `loss`, `accuracy` (of starts and ends) and `exact_match` (of both together).
        """
        logits, others = self.ask(model, params, batch, rngs=rngs, train=train)
        valid = self.valid(batch)
        # Finite, so that a row without a text has a gradient of 0 rather than none.
        places = jnp.where(valid[:, None], jnp.moveaxis(logits, -1, 1), jnp.float32(-1e9))
        ends = jnp.stack([batch["span_starts"], batch["span_ends"]], axis=1)
        found, weights = cross_entropy(places, ends), batch["label_weights"]
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
        del names  # places have none
        tokens = example["inputs"]
        tokens = tokens[tokens != vocabulary.eos_id]
        first, last = (int(label) - 1 for label in example["labels"])
        if first < 0:
            return [vocabulary.decode(tokens.tolist()), "no answer"]
        pieces = [Piece(tokens[:first], None), Piece(tokens[first : last + 1], 0)]
        return [join_pieces([*pieces, Piece(tokens[last + 1 :], None)], vocabulary)]
