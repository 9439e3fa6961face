"""TensorFlow-free twins of SeqIO's vocabularies."""

from typing import Any

from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.sentence_pieces import SentencePiece
from t5lite.errors import InputError


def from_seqio(vocabulary: Any) -> Vocabulary | None:
    """Returns the TensorFlow-free twin of a SeqIO vocabulary, with the same ids.

    None for PassThroughVocabulary, whose examples are ids without text.

    Args:
      vocabulary: a SeqIO SentencePieceVocabulary, ByteVocabulary or PassThroughVocabulary, the
        result of `as_seqio`, or a vocabulary of t5lite.
    Raises: InputError for any other vocabulary or one with options that change the ids.
    """
    if Vocabulary in type(vocabulary).__mro__:  # not isinstance: SeqIO's properties raise
        return vocabulary
    if isinstance(twin := getattr(vocabulary, "twin", None), Vocabulary):
        return twin
    kind = type(vocabulary).__name__
    if kind == "PassThroughVocabulary":
        return None
    if kind == "ByteVocabulary":
        return Bytes(vocabulary.extra_ids)
    if kind != "SentencePieceVocabulary":
        raise InputError(
            f"SeqIO vocabulary {kind} is not supported; "
            "use SentencePieceVocabulary, ByteVocabulary, PassThroughVocabulary, or "
            "t5lite.data.HuggingFaceTokenizer(...).as_seqio()"
        )
    if vocabulary._normalizer_spec_overrides or not vocabulary._reverse_extra_ids:
        raise InputError(
            f"{vocabulary.sentencepiece_model_file}: SentencePieceVocabulary with "
            "normalizer_spec_overrides or reverse_extra_ids=False is not supported; "
            "save a model file with those settings"
        )
    twin = SentencePiece(vocabulary.sentencepiece_model_file, vocabulary.extra_ids)
    if vocabulary.extra_ids and not twin.sentinels_were_added:
        raise InputError(
            f"extra_ids = {vocabulary.extra_ids}: {twin.model_file} already has "
            f"{twin.num_sentinels} sentinels, which SeqIO would define twice; open it with "
            "SentencePieceVocabulary(..., extra_ids=0)",
            field="extra_ids",
        )
    return twin
