"""The base of objectives that train a head on an encoded text."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.base import (
    NOTHING,
    Model,
    Objective,
    Terms,
    Vocabulary,
    expert_terms,
    feature,
    known,
    unended,
)
from t5lite.objectives.rows import segments_of
from t5lite.rows import Example, RowSpec, feature_length

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadObjective(Objective):
    """Reads `inputs` with an encoder or a decoder alone, and trains a head on its output.

    Inputs are framed by the vocabulary (BERT's `[CLS] text [SEP]`); longer texts lose their end.

    Class attributes:
      per_row: the arrays of a batch, beside those of the text, that have a value for each row.
    """

    features: ClassVar[tuple[str, ...]] = ("inputs", "labels")
    head: ClassVar[str]
    packable: ClassVar[bool] = False
    like_lengths: ClassVar[bool] = True
    per_row: ClassVar[tuple[str, ...]] = ("labels", "label_weights")
    refusals: ClassVar[Mapping[str, str]] = {
        "encoder_decoder": "its decoder would have nothing to write: drop it by "
        'models.override(..., {"decoder": None}), or use Seq2Seq with the label as text'
    }

    topology: str = "encoder"

    @property
    def side(self) -> str:
        """The stack that reads: its name in the batch."""
        return self.topology

    def label_spec(self, lengths: Mapping[str, int]) -> RowSpec:
        """Returns the declaration of `labels`, which need no length of their own."""
        del lengths
        return RowSpec(1, kind="per_example")

    def rows(self, lengths: Mapping[str, int]) -> dict[str, RowSpec]:
        """Returns the rows of inputs and labels."""
        inputs = RowSpec(feature_length(lengths, "inputs", at_least=3))
        return {"inputs": inputs, "labels": self.label_spec(lengths)}

    def axes(self) -> dict[str, tuple[str | None, ...]]:
        """Returns the logical axes of a batch's arrays, by name."""
        return super().axes() | dict.fromkeys(self.per_row, ("batch",))

    def prepare(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields what `prepared` makes of each example; see `HostHalf.prepare`."""
        del rng
        return (self.prepared(example, lengths, vocabulary) for example in examples)

    def prepared(
        self, example: Example, lengths: Mapping[str, int], vocabulary: Any
    ) -> dict[str, np.ndarray]:
        """Returns `inputs` and `labels`.

        Raises: InputError if the labels are not such as the objective needs.
        """
        raise NotImplementedError(f"{type(self).__name__}.prepared")

    def framed(
        self, tokens: np.ndarray, lengths: Mapping[str, int], vocabulary: Any, name: str = "inputs"
    ) -> np.ndarray:
        """Returns a text `[n]` as the model reads it."""
        frame = known(vocabulary).frame
        length = feature_length(lengths, name, at_least=frame.size + 1)
        return frame(unended(tokens, vocabulary), length)

    def labels_of(self, example: Example) -> np.ndarray:
        """Returns an example's `labels` `[n]`.

        Raises: InputError if it has none.
        """
        return np.atleast_1d(feature(example, "labels", self, "name the labels 'labels'"))

    def inputs_of(self, example: Example) -> np.ndarray:
        """Returns an example's `inputs`.

        Raises: InputError if it has none.
        """
        return feature(example, "inputs", self, "name the text 'inputs'")

    def named(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Names the inputs' rows for the side of the model that reads them."""
        segments = segments_of(rows, "inputs", self.side)
        return {f"{self.side}_input_tokens": rows["inputs"], **segments}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of labelled texts."""
        return {self.head: jnp.sum(batch["label_weights"])}

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
          names: of the labels, in the order of their ids; empty: they are shown by number.
        """
        text = vocabulary.decode(example["inputs"].tolist())
        return [text, self.show_labels(np.atleast_1d(example["labels"]), names)]

    def show_labels(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """Returns a row's labels for a person to read."""
        raise NotImplementedError(f"{type(self).__name__}.show_labels")


def existing(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns `[batch]` float32: 1 for rows with a text, 0 for padding rows."""
    return np.any(rows["inputs_segment_ids"] > 0, axis=1).astype(np.float32)


def pair(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a metric: the weighted sum of `values`, and the weights' sum."""
    return jnp.sum(values * weights), jnp.sum(weights)
