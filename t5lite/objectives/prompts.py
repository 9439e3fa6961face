"""Prompts of models that generate: special tokens and attention as in training."""

import dataclasses
from typing import Any, NamedTuple

from t5lite.framing import Frame
from t5lite.objectives.base import known_vocabulary

PROMPTS = ("inputs", "continue", "prefix")  # see `Prompts.kind`


class Frames(NamedTuple):
    """The special tokens around inputs and around targets."""

    inputs: Frame
    targets: Frame


def frames_of(vocabulary: Any, *, topology: str, start_id: int | None) -> Frames:
    """Returns a vocabulary's frames of inputs and targets for a model.

    An encoder reads `frame(inputs)`; a decoder writes `target_frame(targets)`. A decoder alone
    reads both in one row, `frame(inputs)` and then the targets and EOS. The start token that a
    decoder reads first is never repeated.

    Args:
      vocabulary: of the ids; None where the data are ids alone.
      topology: of the model.
      start_id: the token that a decoder reads first, if any.
    """
    vocabulary = known_vocabulary(vocabulary)
    if topology == "decoder":
        ended = Frame(after=(vocabulary.eos_id,))
        return Frames(vocabulary.frame.read_after(start_id), ended)
    return Frames(vocabulary.frame, vocabulary.target_frame.read_after(start_id))


def start_of(vocabulary: Any, start_id: int | None) -> Frame:
    """Returns the frame of a decoder's start token if the vocabulary adds it to texts too.

    A text that spells it, `<s>`, is not read with two: see `Frame.without`.
    """
    before = known_vocabulary(vocabulary).frame.before
    return Frame(before if before == (start_id,) else ())


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompt kinds and frames of a model.

    Attributes:
      kind: the default, one of `PROMPTS`. `inputs`: a whole text, framed by `inputs`, which the
        model answers; `continue`: a beginning, which the model continues; `prefix`: the same, seen
        in both directions.
      inputs: the special tokens around a whole text.
      targets: the special tokens around its answer.
      bidirectional: whether a decoder sees the tokens of a whole text in both directions.
    """

    kind: str
    inputs: Frame
    targets: Frame
    bidirectional: bool = False

    @classmethod
    def by_default(cls, vocabulary: Any, *, topology: str, start_id: int | None) -> "Prompts":
        """Returns the prompts of a model whose training is unknown: a decoder is causal."""
        kind = "continue" if topology == "decoder" else "inputs"
        return cls(kind, *frames_of(vocabulary, topology=topology, start_id=start_id))

    def of(self, kind: str | None) -> "Prompt":
        """Returns the prompt of a kind; None: of the default one."""
        kind = kind or self.kind
        if kind == "inputs":
            return Prompt(kind, self.inputs, self.targets, self.bidirectional)
        targets = self.targets if kind == "prefix" else Frame()
        return Prompt(kind, Frame(), targets, kind == "prefix")


class Prompt(NamedTuple):
    """Frames and attention of one kind of prompts; see `Prompts`."""

    kind: str
    inputs: Frame
    targets: Frame
    bidirectional: bool
