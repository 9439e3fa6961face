"""The base of objectives that read texts and have a head say something of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.base import (
    Adaptable,
    Example,
    Model,
    Terms,
    Vocabulary,
    eos_of,
    expert_terms,
    feature,
    feature_length,
    without_eos,
    zero_is_token,
)
from t5lite.objectives.rows import holds_tokens, packing_of

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Understanding(Adaptable):
    """Reads `inputs` with an encoder or a decoder alone, and asks a head.

    Inputs are cut to their length, behind the vocabulary's `bos_id`, if it has one (BERT's [CLS]),
    and before EOS (its [SEP]).
    """

    features: ClassVar[tuple[str, ...]] = ("inputs", "labels")
    packable: ClassVar[bool] = False
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
        before, after = frame(vocabulary)
        room = feature_length(lengths, name, at_least=3) - before.size - after.size
        return np.concatenate([before, unended(tokens, vocabulary)[:room], after])

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
        rngs: Any = None,
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


def frame(vocabulary: Vocabulary | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns what stands before and behind a text that is understood, `[0 or 1]` and `[1]`.

    BERT's [CLS] and [SEP]; nothing before it in vocabularies without a `bos_id`, such as T5's.
    """
    bos_id = getattr(vocabulary, "bos_id", None)
    before = [] if bos_id is None else [bos_id]
    return np.array(before, np.int32), np.array([eos_of(vocabulary)], np.int32)


def unended(tokens: np.ndarray, vocabulary: Vocabulary | None) -> np.ndarray:
    """Returns a text `[n]` int32 without padding and EOS at its end."""
    return without_eos(tokens, eos_of(vocabulary), zero_is_token=zero_is_token(vocabulary))


def existing(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns `[batch]` float32: 1 for rows with a text, 0 for those that fill a batch."""
    return holds_tokens(rows, "inputs").any(axis=1).astype(np.float32)


def pair(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a metric: the weighted sum of `values`, and the weights' sum."""
    return jnp.sum(values * weights), jnp.sum(weights)
