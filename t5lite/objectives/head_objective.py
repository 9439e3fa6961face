"""The base of objectives that train a head on an encoded text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.framing import Frame
from t5lite.objectives.base import (
    NOTHING,
    Axes,
    Batch,
    Model,
    Objective,
    Terms,
    Vocabulary,
    expert_terms,
    feature,
    known_vocabulary,
    unended,
)
from t5lite.objectives.rows import segments_of
from t5lite.rows import Example, Examples, Lengths, Prepared, RowSpec, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadObjective(Objective):
    """Reads `inputs` with an encoder or a decoder alone, and trains a head on its output.

    Inputs are framed by the vocabulary (BERT's `[CLS] text [SEP]`); longer texts lose their end.
    A subclass defines `label_spec`, `prepared_labels`, `batch`, `losses` and `show_labels`.

    Class attributes:
      per_row: the arrays of a batch, beside those of the text, that have a value for each row.
      label_weights: the array of a batch that weighs the labels.
    """

    features: ClassVar[tuple[str, ...]] = ("inputs", "labels")
    head: ClassVar[str]
    packable: ClassVar[bool] = False
    like_lengths: ClassVar[bool] = True
    per_row: ClassVar[tuple[str, ...]] = ("labels", "label_weights")
    label_weights: ClassVar[str] = "label_weights"
    refusals: ClassVar[Mapping[str, str]] = {
        "encoder_decoder": "its decoder would have nothing to write: drop it by "
        'models.override(..., {"decoder": None}), or use Seq2Seq with the label as text'
    }

    topology: str = "encoder"

    @property
    def side(self) -> str:
        """The stack that reads: its name in the batch."""
        return self.topology

    def label_spec(self, lengths: Lengths) -> RowSpec:
        """Returns the declaration of `labels`, whose length is independent of `lengths`."""
        del lengths
        return RowSpec(1, kind="per_example")

    def rows(self, lengths: Lengths) -> dict[str, RowSpec]:
        inputs = RowSpec(feature_length(lengths, "inputs", at_least=3))
        return {"inputs": inputs, "labels": self.label_spec(lengths)}

    def axes(self) -> Axes:
        return super().axes() | dict.fromkeys(self.per_row, ("batch",))

    def prepare(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        del rng
        return (self.prepared(example, lengths, vocabulary) for example in examples)

    def prepared(
        self, example: Example, lengths: Lengths, vocabulary: Any
    ) -> dict[str, np.ndarray]:
        """Returns framed `inputs` and `labels`; raises InputError if missing or unfit."""
        text = unended(feature(example, "inputs", self, "name the text 'inputs'"), vocabulary)
        labels = np.atleast_1d(feature(example, "labels", self, "name the labels 'labels'"))
        inputs, frame = self.framed(text, lengths, vocabulary), known_vocabulary(vocabulary).frame
        return {"inputs": inputs, "labels": self.prepared_labels(labels, text, inputs, frame)}

    def prepared_labels(
        self, labels: np.ndarray, text: np.ndarray, inputs: np.ndarray, frame: Frame
    ) -> np.ndarray:
        """Returns the labels of a `text` `[n]` that is read as `inputs`, inside `frame`."""
        raise NotImplementedError(f"{type(self).__name__}.prepared_labels")

    def framed(
        self, text: np.ndarray, lengths: Lengths, vocabulary: Any, name: str = "inputs"
    ) -> np.ndarray:
        """Returns the text `[n]` of feature `name` inside the vocabulary's frame, truncated."""
        frame = known_vocabulary(vocabulary).frame
        return frame(text, feature_length(lengths, name, at_least=frame.size + 1))

    def text_arrays(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the rows of inputs under the batch names of the stack that reads."""
        segments = segments_of(rows, "inputs", self.side)
        return {f"{self.side}_input_tokens": rows["inputs"], **segments}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of labels."""
        return {self.head: jnp.sum(batch[self.label_weights])}

    def output(
        self,
        model: Model,
        params: Any,
        batch: Batch,
        *,
        rngs: Mapping[str, jax.Array] = NOTHING,
        train: bool = False,
    ) -> tuple[jax.Array, Terms]:
        """Returns the head's output for the texts, float32, and the terms of experts."""
        hidden, aux = model.hidden(params, batch, rngs=rngs, train=train)
        valid = self.valid(batch)
        output = model.output(params, self.head, hidden, valid, rngs=rngs, train=train)
        return output, expert_terms(aux)

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
        output, experts = self.output(model, params, batch, rngs=rngs, train=train)
        total, metrics = self.losses(output, batch)
        return {self.head: (total, jnp.float32(1))} | experts, metrics

    def losses(self, output: jax.Array, batch: Batch) -> tuple[jax.Array, Terms]:
        """Returns the sum of the labels' losses, and the metrics."""
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def valid(self, batch: Batch) -> jax.Array:
        """Returns `[batch, length]` bool: the positions that hold a token."""
        return batch[f"{self.side}_segment_ids"] > 0

    def show(
        self, example: Example, vocabulary: Vocabulary, names: Sequence[str] = ()
    ) -> list[str]:
        """Returns a prepared example for a person to read: the text, then its labels.

        Args:
          example: as `prepare` yields it.
          vocabulary: of `inputs`.
          names: of the labels, in the order of their ids; empty: labels are shown by number.
        """
        text = vocabulary.decode(example["inputs"].tolist())
        return [text, self.show_labels(np.atleast_1d(example["labels"]), names)]

    def show_labels(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """Returns a row's labels for a person to read."""
        raise NotImplementedError(f"{type(self).__name__}.show_labels")


def row_weights(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns `[batch]` float32: 1 for rows with a text, 0 for padding rows."""
    return np.any(rows["inputs_segment_ids"] > 0, axis=1).astype(np.float32)


def weighted(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a metric: the weighted sum of `values`, and the weights' sum."""
    return jnp.sum(values * weights), jnp.sum(weights)
