"""The content of a SentencePiece model file, read without the protobuf library."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from t5lite.errors import InputError


class Piece(NamedTuple):
    """A piece of a SentencePiece model.

    Attributes:
      text: with `▁` for a space.
      score: log-probability of a unigram, or minus the rank of a merge.
      kind: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    """

    text: str
    score: float = 0.0
    kind: int = 1

    @property
    def is_control(self) -> bool:
        """Whether the piece stands for no text: `<s>`, `</s>`."""
        return self.kind == 3

    @property
    def is_user_defined(self) -> bool:
        """Whether the piece is always taken whole."""
        return self.kind == 4

    @property
    def is_normal(self) -> bool:
        """Whether the piece was learned from text."""
        return self.kind == 1


class SentencePieceFile(NamedTuple):
    """A SentencePiece model.

    Attributes:
      pieces: by id.
      is_unigram: whether the model is a unigram model rather than BPE.
      byte_fallback: whether unknown characters become bytes.
      unk_id, bos_id, eos_id: -1 where there is none.
      unk_piece, bos_piece, eos_piece: their texts.
      charsmap: the precompiled normalization; b"" for none.
      adds_prefix, removes_spaces, escapes_spaces: the other switches of the normalization.
    """

    pieces: list[Piece]
    is_unigram: bool
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    unk_piece: str
    bos_piece: str
    eos_piece: str
    charsmap: bytes
    adds_prefix: bool
    removes_spaces: bool
    escapes_spaces: bool


def read_sentencepiece_file(content: bytes, path: Any) -> SentencePieceFile:
    """Returns what a SentencePiece model file says.

    Args:
      content: of the file.
      path: of the file, for messages.

    Raises:
      InputError: if the file is damaged, or is a model of words or characters.

    Source: `sentencepiece_model.proto` of SentencePiece.
    """
    try:
        pieces, trainer, normalizer = [], {}, {}
        for field, value in _fields(content):
            if field == 1:
                parts = dict(_fields(value))
                (score,) = struct.unpack("<f", parts.get(2, bytes(4)))
                pieces.append(Piece(parts[1].decode(), score, parts.get(3, 1)))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
        kind = trainer.get(3, 1)
        read = SentencePieceFile(
            pieces,
            is_unigram=kind == 1,
            byte_fallback=bool(trainer.get(35, False)),
            unk_id=_signed(trainer.get(40, 0)),
            bos_id=_signed(trainer.get(41, 1)),
            eos_id=_signed(trainer.get(42, 2)),
            unk_piece=trainer.get(45, b"<unk>").decode(),
            bos_piece=trainer.get(46, b"<s>").decode(),
            eos_piece=trainer.get(47, b"</s>").decode(),
            charsmap=normalizer.get(2, b""),
            adds_prefix=bool(normalizer.get(3, True)),
            removes_spaces=bool(normalizer.get(4, True)),
            escapes_spaces=bool(normalizer.get(5, True)),
        )
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise InputError(
            f"{path} is not a SentencePiece model, or is damaged; restore it"
        ) from error
    if not pieces:
        raise InputError(f"{path} is not a SentencePiece model, or is damaged; restore it")
    if kind not in (1, 2):
        raise InputError(f"{path} is a SentencePiece model of words or characters: use another")
    return read


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the number and value of each field of a serialised protocol buffer."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield field, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(content, at)
        if size is None or at + size > len(content):
            raise ValueError(f"wire type {wire} at {at}")
        yield field, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
