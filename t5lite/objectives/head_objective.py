"""The base of objectives that read texts and have a head say something of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.base import (
    NOTHING,
    Example,
    Model,
    Objective,
    Terms,
    Vocabulary,
    expert_terms,
    feature,
    feature_length,
    known,
    unended,
)
from t5lite.objectives.rows import holds_tokens, packing_of

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadObjective(Objective):
    """Reads `inputs` with an encoder or a decoder alone, and asks a head.

    Inputs are framed by the vocabulary (BERT's `[CLS] text [SEP]`); longer texts lose their end.
    """

    features: ClassVar[tuple[str, ...]] = ("inputs", "labels")
    head: ClassVar[str]
    packable: ClassVar[bool] = False
    # Whose rows lose padding together, in batches of like lengths; the first has the tokens.
    cut_together: ClassVar[tuple[tuple[str, ...], ...]] = (("inputs",),)
    refusals: ClassVar[Mapping[str, str]] = {
        "encoder_decoder": "its decoder would have nothing to write: drop it by "
        'models.override(..., {"decoder": None}), or use Seq2Seq with the label as text'
    }

    topology: str = "encoder"

    @property
    def side(self) -> str:
        """The stack that reads: its name in the batch."""
        return self.topology

    def num_labels(self, lengths: Mapping[str, int]) -> int:
        """Returns how many numbers `labels` has in a row."""
        raise NotImplementedError(f"{type(self).__name__}.num_labels")

    def row_lengths(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """Returns the lengths of inputs and labels; the latter need none of their own."""
        inputs = feature_length(lengths, "inputs", at_least=3)
        return {"inputs": inputs, "labels": self.num_labels(lengths)}

    def framed(
        self, tokens: np.ndarray, lengths: Mapping[str, int], vocabulary: Any, name: str = "inputs"
    ) -> np.ndarray:
        """Returns a text `[n]` as the model reads it."""
        frame = known(vocabulary).frame
        room = feature_length(lengths, name, at_least=frame.size + 1)
        return frame(unended(tokens, vocabulary), room)

    def labels_of(self, example: Example) -> np.ndarray:
        """Returns an example's `labels`.

        Raises: InputError if it has none.
        """
        advice = "name what is to be said of a text 'labels'"
        return np.atleast_1d(feature(example, "labels", self, advice))

    def inputs_of(self, example: Example) -> np.ndarray:
        """Returns an example's `inputs`.

        Raises: InputError if it has none.
        """
        return feature(example, "inputs", self, "name the text 'inputs'")

    def named(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Names the inputs' rows for the side of the model that reads them."""
        return {
            f"{self.side}_input_tokens": rows["inputs"],
            **packing_of(rows, "inputs", self.side),
        }

    def ask(
        self,
        model: Model,
        params: Any,
        batch: Batch,
        *,
        rngs: Mapping[str, jax.Array] = NOTHING,
        train: bool = False,
    ) -> tuple[jax.Array, Terms]:
        """Returns what the head says of the texts, float32, and the terms of experts."""
        hidden, aux = model.hidden(params, batch, rngs=rngs, train=train)
        valid = self.valid(batch)
        said = model.output(params, self.head, hidden, valid, rngs=rngs, train=train)
        return said, expert_terms(aux)

    def valid(self, batch: Batch) -> jax.Array:
        """Returns `[batch, length]` bool: the places that hold a token."""
        tokens = batch[f"{self.side}_input_tokens"]
        return batch.get(f"{self.side}_segment_ids", tokens) > 0

    def show(
        self, example: Example, vocabulary: Vocabulary, names: Sequence[str] = ()
    ) -> list[str]:
        """Returns a prepared example for a person to read: the text, then what is said of it.

        Args:
          example: as `prepare` yields it.
          vocabulary: of `inputs`.
          names: of the labels, in the order of their ids; empty: they are shown by number.
        """
        text = vocabulary.decode(example["inputs"].tolist())
        return [text, self.show_labels(example["labels"], names)]

    def show_labels(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """Returns a row's labels for a person to read."""
        raise NotImplementedError(f"{type(self).__name__}.show_labels")


def existing(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns `[batch]` float32: 1 for rows with a text, 0 for those that fill a batch."""
    return holds_tokens(rows, "inputs").any(axis=1).astype(np.float32)


def pair(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a metric: the weighted sum of `values`, and the weights' sum."""
    return jnp.sum(values * weights), jnp.sum(weights)
