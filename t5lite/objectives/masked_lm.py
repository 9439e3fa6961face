"""Masked language modelling: BERT's pretraining."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import Vocabulary, check_number, documents
from t5lite.objectives.rows import segments_of
from t5lite.objectives.span_corruption import Piece, join_pieces
from t5lite.objectives.token_cross_entropy import TokenCrossEntropy
from t5lite.objectives.words import word_starts
from t5lite.rows import Example, Examples, Lengths, Prepared, RowSpec, feature_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(TokenCrossEntropy):
    """Predicts tokens of a text that are masked, replaced or unchanged.

    Texts (`targets` of the examples) are cut into pieces that fill a row, each framed by the
    vocabulary (`[CLS] piece [SEP]`); special tokens are never predicted. Of the tokens to predict,
    different in every epoch, 80 % are masked, 10 % become a random ordinary token and 10 % stay.
    The mask is the vocabulary's `mask_id`, or else its first sentinel.

    Attributes:
      mask_rate: the share of tokens, in (0, 1), to predict; at least one of a piece.
      whole_word: whether words are predicted as a whole; words begin at pieces that do not start
        with `##` or, in vocabularies without it, at pieces that start with `▁` or `Ġ`.
      max_predictions_per_row: the most tokens that are predicted in a row, and the only ones whose
        logits are computed; surplus masked tokens get no loss. None: no limit, all logits.
    Source: Devlin et al. 2018, arXiv:1810.04805, §3.1; whole words: the authors' repository.
    """

    features: ClassVar[tuple[str, ...]] = ("targets",)
    side: ClassVar[str] = "encoder"
    loss_fields: ClassVar[tuple[str, ...]] = (
        *TokenCrossEntropy.loss_fields,
        "max_predictions_per_row",
    )
    whole_texts: ClassVar[bool] = True
    refusals: ClassVar[Mapping[str, str]] = {
        "decoder": "a decoder does not see what follows a masked token: use CausalLM, or choose "
        "an encoder",
        "encoder_decoder": "its decoder would have nothing to write: use SpanCorruption, or drop "
        'the decoder: models.override(..., {"decoder": None})',
    }

    topology: str = "encoder"
    mask_rate: float = 0.15
    whole_word: bool = False
    max_predictions_per_row: int | None = None
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "mask_rate", lambda x: 0 < x < 1, "a number in (0, 1)")
        if self.max_predictions_per_row is not None:
            check_number(
                self,
                "max_predictions_per_row",
                lambda x: isinstance(x, int) and x >= 1,
                "None or int >= 1",
            )

    def rows(self, lengths: Lengths) -> dict[str, RowSpec]:
        length = feature_length(lengths, "targets", at_least=4)
        if self.max_predictions_per_row is not None and self.max_predictions_per_row > length:
            raise InputError(
                f"MaskedLM.max_predictions_per_row is {self.max_predictions_per_row}: it must be "
                f"at most TASK_FEATURE_LENGTHS['targets'], {length}"
            )
        return {
            "inputs": RowSpec(length),
            "targets": RowSpec(length, kind="aligned", along="inputs"),
            "predicted": RowSpec(length, dtype="bool", kind="aligned", along="inputs"),
        }

    def prepare(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        """Yields `inputs`, `targets` and `predicted`: masked text, the text, tokens with a loss."""
        length = self.rows(lengths)["inputs"].length
        if vocabulary is None:
            raise InputError(
                "MaskedLM needs a vocabulary, to know what to mask with: give the data one"
            )
        mask_id, ordinary = mask_of(vocabulary), ordinary_ids(vocabulary)
        frame = vocabulary.frame
        room, unmasked = length - frame.size, frame.filled(0)

        def prepared() -> Prepared:
            for text in documents(examples, self, vocabulary):
                for start in range(0, text.size, room):
                    piece = text[start : start + room]
                    predicted = self._predicted(piece, vocabulary, rng)
                    masked = _masked(piece, predicted, mask_id, ordinary, rng)
                    yield {
                        "inputs": frame(masked),
                        "targets": frame(piece),
                        "predicted": unmasked(predicted.astype(np.int32)).astype(bool),
                    }

        return prepared()

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        targets, predicted, positions = rows["targets"], rows["predicted"], {}
        if self.max_predictions_per_row is not None:
            # Stable, so that predicted positions come first and in order.
            chosen = np.argsort(~predicted, axis=1, kind="stable")
            chosen = chosen[:, : self.max_predictions_per_row].astype(np.int32)
            targets, predicted = (np.take_along_axis(a, chosen, 1) for a in (targets, predicted))
            positions = {"encoder_target_positions": chosen}
        return {
            "encoder_input_tokens": rows["inputs"],
            "encoder_target_tokens": np.where(predicted, targets, 0),
            "encoder_loss_weights": predicted.astype(np.float32),
            **positions,
            **segments_of(rows, "inputs", "encoder"),
        }

    def show(self, example: Example, vocabulary: Vocabulary) -> list[str]:
        """Returns the text of a prepared example, predictions «marked»."""
        shown = example["inputs"] != vocabulary.eos_id
        text, predicted = example["targets"][shown], example["predicted"][shown]
        bounds = [0, *(np.flatnonzero(np.diff(predicted)) + 1).tolist(), text.size]
        pieces = [
            Piece(text[start:end], 0 if predicted[start] else None)
            for start, end in itertools.pairwise(bounds)
            if end > start
        ]
        return [join_pieces(pieces, vocabulary)]

    def _predicted(
        self, tokens: np.ndarray, vocabulary: Any, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns `[n]` bool: words, or else tokens, in random order until there are enough."""
        count = max(1, round(tokens.size * self.mask_rate))
        predicted = np.zeros(tokens.size, bool)
        if not self.whole_word:
            predicted[rng.choice(tokens.size, count, replace=False, shuffle=False)] = True
            return predicted
        begins = word_starts(vocabulary)[tokens]
        begins[0] = True
        words = np.cumsum(begins) - 1
        sizes = np.bincount(words)
        order = rng.permutation(sizes.size)
        # As BERT: a word that would exceed the count is skipped, except the first.
        chosen, total = np.zeros(sizes.size, bool), 0
        for word in order:
            if total == 0 or total + sizes[word] <= count:
                chosen[word] = True
                total += sizes[word]
        return chosen[words]


def _masked(
    tokens: np.ndarray,
    predicted: np.ndarray,
    mask_id: int,
    ordinary: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns the tokens with 80 % of the predicted ones masked and 10 % replaced."""
    chance = rng.random(tokens.size)
    replacements = rng.choice(ordinary, tokens.size)
    return np.select(
        [predicted & (chance < 0.8), predicted & (chance < 0.9)],
        [np.int32(mask_id), replacements],
        tokens,
    ).astype(np.int32)


def mask_of(vocabulary: Vocabulary) -> int:
    """Returns the id that masks; raises InputError without a mask token and sentinels."""
    if vocabulary.mask_id is not None:
        return vocabulary.mask_id
    if not vocabulary.num_sentinels:
        raise InputError(
            "MaskedLM: the vocabulary has neither a mask token nor sentinels: set its "
            "num_sentinels to 1 or more"
        )
    return vocabulary.sentinel(0)


@functools.lru_cache(maxsize=4)
def ordinary_ids(vocabulary: Vocabulary) -> np.ndarray:
    """Returns the ids `[n]` int32 of text: no padding, EOS, mask, sentinel or such."""
    special = {vocabulary.eos_id, vocabulary.bos_id, vocabulary.unk_id, vocabulary.pad_id}
    special |= {mask_of(vocabulary), *vocabulary.frame.before, *vocabulary.frame.after}
    special |= {vocabulary.sentinel(i) for i in range(vocabulary.num_sentinels)}
    return np.array([i for i in range(vocabulary.size) if i not in special], np.int32)
