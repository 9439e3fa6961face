"""Examples of an objective of a user's own, whose arrays are not all token ids, as text."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from t5lite.data import ArrayData, Bytes
from t5lite.experiment.preview import example_lines, example_texts, look
from t5lite.objectives import Objective, RowSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(Objective):
    """Texts with a vector at each token, and a score."""

    features: ClassVar[tuple[str, ...]] = ("targets",)

    def rows(self, lengths):
        """Declares three kinds of arrays."""
        length = lengths["targets"]
        return {
            "targets": RowSpec(length),
            "frames": RowSpec(length, (2,), "float32", "aligned", along="targets"),
            "score": RowSpec(3, dtype="float32", kind="per_example"),
        }

    def prepare(self, examples, *, lengths, vocabulary, rng):
        """Adds the vectors and the score."""
        for example in examples:
            ids = example["targets"]
            frames = np.stack([ids, -ids], axis=1).astype(np.float32)
            yield {"targets": ids, "frames": frames, "score": np.float32(0.5)}


@pytest.mark.parametrize("vocabulary", [Bytes(), None])
def test_arrays_of_numbers_are_shown_as_numbers(vocabulary):
    ids = np.array(Bytes().encode("ab"), np.int32)
    examples = [{"targets": ids}] * 8
    data = ArrayData(
        train=examples, validation=examples, vocab=vocabulary, lengths={"targets": 8}, batch_size=4
    )
    options = {"split": "train", "count": 1, "seed": 0}
    (text,) = example_texts(data, Scored(), **options)
    tokens, frames, score = text.split("\n→ ")
    assert tokens == ("ab" if vocabulary else " ".join(map(str, ids)))
    assert frames == f"[[ {ids[0]}. -{ids[0]}.] [ {ids[1]}. -{ids[1]}.]]"
    assert score == "0.5"
    lines = list(example_lines(look(data, Scored(), **options)))
    assert lines[0] == "1  2 targets + 2 frames"
    assert len(lines) == 4
