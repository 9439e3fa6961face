"""SentencePiece models, free of TensorFlow, with T5's sentinels."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from t5lite.data.importing import import_seqio
from t5lite.data.paths import as_path, read_file
from t5lite.data.vocabularies.base import (
    PADDING,
    FileVocabulary,
    fingerprint_of,
    own_sentinels,
    text_ids,
)
from t5lite.errors import InputError


class SentencePiece(FileVocabulary):
    """A SentencePiece model file with T5's sentinels after its pieces.

    The ids, also those of sentinels written out in the text, are those of
    `seqio.SentencePieceVocabulary`.

    Args:
      model_file: local or remote (`gs://`) path.
      num_sentinels: number of sentinels to add; a file that ends with sentinels, such as mT5's,
        keeps those.

    Attributes:
      sentinels_were_added: whether the sentinels follow the model file's own pieces.

    Raises:
      InputError: if the file is missing, is not a SentencePiece model, or has no EOS.
    """

    file_name = "sentencepiece.model"

    def __init__(self, model_file: str | os.PathLike, num_sentinels: int = 100):
        self.model_file, self.options = str(as_path(model_file)), {}
        self.content = read_file(as_path(model_file), "SentencePiece model file")
        self._processor = open_sentencepiece(self.content, self.model_file)
        piece, size = self._processor.id_to_piece, self._processor.get_piece_size()
        own = own_sentinels(piece, size, ("▁",), expected=num_sentinels, name=self.model_file)
        self.num_sentinels = own or num_sentinels
        self.sentinels_were_added = self.num_sentinels > own
        if self.sentinels_were_added:
            extended = self.content + _sentinel_pieces(num_sentinels)
            self._processor = open_sentencepiece(extended, self.model_file)
        self.size = self._processor.get_piece_size()
        first = self._processor.id_to_piece(0)
        self.pad_id = 0 if PADDING.fullmatch(first) else self._processor.pad_id()
        self.eos_id, self.unk_id = self._processor.eos_id(), self._processor.unk_id()
        if self.eos_id < 0:
            raise InputError(f"{self.model_file} has no end-of-sequence piece; train it with one")
        self.fingerprint = fingerprint_of("SentencePiece", self.num_sentinels, self.content)

    def __repr__(self) -> str:
        return f"SentencePiece({self.model_file!r}, num_sentinels={self.num_sentinels})"

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        pieces, offsets = pieces_with_offsets(self._processor, text)
        return [piece.id for piece in pieces], offsets

    def decode(self, ids: Iterable[int]) -> str:
        valid = (token if 0 <= token < self.size else self.unk_id for token in text_ids(self, ids))
        return self._processor.decode([token for token in valid if token != self.pad_id])

    def piece(self, token_id: int) -> str:
        token = int(token_id)
        return self._processor.id_to_piece(token) if 0 <= token < self.size else f"<id_{token}>"

    def id_of(self, piece: str) -> int | None:
        token = self._processor.piece_to_id(piece)  # the unknown token if there is none
        return token if self.piece(token) == piece else None

    def as_seqio(self) -> Any:
        extra_ids = self.num_sentinels if self.sentinels_were_added else 0
        return import_seqio().SentencePieceVocabulary(self.model_file, extra_ids=extra_ids)


def _sentinel_pieces(count: int) -> bytes:
    """Returns the sentinels as serialised pieces, to be appended to a serialised model.

    Appending to a protocol buffer adds to its repeated fields, so neither the protobuf library
    nor its generated code is needed. Field 1 of a model is a piece: text (1), score (2), type (3).
    """
    pieces = b""
    for index in reversed(range(count)):
        text = f"▁<extra_id_{index}>".encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\0\0\x18\x04"  # 4: user defined
        pieces += b"\x0a" + bytes([len(body)]) + body
    return pieces


def open_sentencepiece(model: bytes, name: str) -> Any:
    """Returns SentencePiece's processor for a serialised model."""
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{name} is not a SentencePiece model, or is damaged; restore it"
        ) from error
    return processor


def pieces_with_offsets(processor: Any, text: str) -> tuple[list[Any], list[tuple[int, int]]]:
    """Returns SentencePiece's pieces of a text and their character spans `(start, end)`."""
    # SentencePiece 0.2.2 renamed this, and counts bytes where it counted characters.
    encode = getattr(processor, "encode_as_proto", None) or processor.encode_as_immutable_proto
    pieces, offsets, end = encode(text).pieces, [], 0
    for piece in pieces:
        start = text.find(piece.surface, end)
        end = start + len(piece.surface)
        offsets.append((start, end))
    return list(pieces), offsets
