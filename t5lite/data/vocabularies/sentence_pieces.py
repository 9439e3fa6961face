"""SentencePiece models, free of TensorFlow: with T5's sentinels, or under other ids."""

import copy
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5lite.data.importing import import_seqio
from t5lite.data.paths import as_path, read_file, write_whole
from t5lite.data.vocabularies.base import (
    PADDING,
    FileVocabulary,
    Vocabulary,
    fingerprint_of,
    own_sentinels,
    text_ids,
    write_description,
)
from t5lite.errors import InputError
from t5lite.framing import Frame

_MODEL, _TARGET_MODEL, _IDS = "sentencepiece.model", "target.model", "ids.json"


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
    Raises: InputError if the file is missing, is not a SentencePiece model, or has no EOS.
    """

    file_name = _MODEL

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
        token = self._processor.piece_to_id(piece)  # the unknown token for unknown pieces
        return token if self.piece(token) == piece else None

    def as_seqio(self) -> Any:
        extra_ids = self.num_sentinels if self.sentinels_were_added else 0
        return import_seqio().SentencePieceVocabulary(self.model_file, extra_ids=extra_ids)


class MappedSentencePiece(Vocabulary):
    """The pieces of a SentencePiece model under other ids than the file's: XLM-R's, Marian's …

    A text may begin with a language code such as `>>fra<<`, if that is among the ids.

    Args:
      model_file: local or remote path.
      ids: the id of each piece and special token; pieces without one are unknown.
      tokens: the names of `eos` and `unk`, perhaps also of `pad`, `bos` and `mask`.
      before: special tokens in front of a model's input.
      after: special tokens after it.
      target_file: the model that encodes target texts and decodes all; None: the same.
      origin: the name of this kind of vocabulary in other programs.
      whole: special tokens that are recognised where a text spells them; others are text.
    Attributes:
      targets: the vocabulary of the same ids that encodes target texts.
      tokens: the argument.
      models: the model files' contents, that for targets last.
    Raises: InputError if a file is missing or damaged, or a token has no id.
    """

    num_sentinels = 0

    def __init__(
        self,
        model_file: str | os.PathLike,
        ids: Mapping[str, int],
        *,
        tokens: Mapping[str, str],
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        target_file: str | os.PathLike | None = None,
        origin: str = "",
        whole: Sequence[str] = (),
    ):
        self.model_file, self.ids, self.origin = str(model_file), dict(ids), origin
        self.tokens = dict(tokens)
        self._options = {"tokens": self.tokens, "before": list(before), "after": list(after)}
        self._options |= {"origin": origin} if origin else {}
        self._options |= {"whole": list(whole)} if whole else {}
        longest = sorted(map(re.escape, whole), key=len, reverse=True)
        self._whole = re.compile(f"({'|'.join(longest)})") if whole else None
        missing = [name for name in (*tokens.values(), *before, *after, *whole) if name not in ids]
        if missing:
            raise InputError(
                f"ids of {model_file} lack {', '.join(missing)}; add them", field="ids"
            )
        files = [model_file] if target_file is None else [model_file, target_file]
        self.models = [read_file(as_path(file), "SentencePiece model file") for file in files]
        self._processors = [
            open_sentencepiece(model, str(file))
            for model, file in zip(self.models, files, strict=True)
        ]
        self._encoder = self._processors[0]
        self._pieces = {number: piece for piece, number in self.ids.items()}
        self.size = max(self._pieces) + 1
        self.eos_id, self.unk_id = ids[tokens["eos"]], ids[tokens["unk"]]
        self.bos_id, self.mask_id = (
            ids[tokens[name]] if name in tokens else None for name in ("bos", "mask")
        )
        self.pad_id = ids[tokens["pad"]] if "pad" in tokens else -1
        described = json.dumps([self._options, self.ids], sort_keys=True).encode()
        content = b"".join([described, *self.models])
        self.fingerprint = fingerprint_of(type(self).__name__, 0, content)

    def __repr__(self) -> str:
        return f"MappedSentencePiece({self.model_file!r}, {self.size} ids)"

    @property
    def targets(self) -> "MappedSentencePiece":
        twin = copy.copy(self)
        twin._encoder = self._processors[-1]
        return twin

    def encode(self, text: str) -> list[int]:
        ids = list[int]()
        for special, rest, _ in self._segments(text):
            ids += special + self._ids_of(self._encoder.encode(rest, out_type=str))
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets, start = list[int](), list[tuple[int, int]](), 0
        for special, rest, end in self._segments(text):
            pieces, spans = pieces_with_offsets(self._encoder, rest)
            middle = end - len(rest)
            ids += special + self._ids_of([piece.piece for piece in pieces])
            offsets += [(start, middle)] * len(special)
            offsets += [(middle + first, middle + last) for first, last in spans]
            start = end
        return ids, offsets

    def _segments(self, text: str) -> Iterator[tuple[list[int], str, int]]:
        """Yields the id of a special token or language code, the text after it, and its end."""
        end = 0
        for number, part in enumerate([text] if self._whole is None else self._whole.split(text)):
            end += len(part)
            code = part[: part.find("<<") + 2]
            if number % 2:  # a token of `whole`
                yield [self.ids[part]], "", end
            elif code.startswith(">>") and code in self.ids:
                yield [self.ids[code]], part[len(code) :], end
            elif part:
                yield [], part, end

    @functools.cached_property
    def frame(self) -> Frame:
        before, after = (
            tuple(self.ids[token] for token in self._options[side]) for side in ("before", "after")
        )
        return Frame(before, after)

    def decode(self, ids: Iterable[int]) -> str:
        tokens = (token for token in text_ids(self, ids) if token != self.pad_id)
        pieces = [self._pieces.get(token, self._pieces[self.unk_id]) for token in tokens]
        decode = self._processors[-1].decode_pieces
        if self._whole is None:
            # Pieces that only the other model has come back unchanged, with their mark of a space.
            return decode(pieces).removeprefix("▁").replace("▁", " ")
        text, part = "", list[str]()
        for piece in pieces:
            if piece in self._options["whole"]:
                text, part = f"{text}{decode(part)}{piece} ", []
            else:
                part.append(piece)
        return (text + decode(part)).replace("▁", " ").strip()

    def piece(self, token_id: int) -> str:
        return self._pieces.get(int(token_id), f"<id_{int(token_id)}>")

    def id_of(self, piece: str) -> int | None:
        return self.ids.get(piece)

    def save(self, folder: str | os.PathLike) -> None:
        root = as_path(folder)
        for name, model in zip((_MODEL, _TARGET_MODEL), self.models, strict=False):
            write_whole(root / name, model)
        write_whole(root / _IDS, json.dumps(self.ids, ensure_ascii=False).encode())
        write_description(self, folder, **self._options)

    @classmethod
    def load(cls, folder: Any, num_sentinels: int, **options: Any) -> "MappedSentencePiece":
        del num_sentinels
        content = read_file(folder / _IDS, "ids")
        try:
            ids = {str(piece): int(number) for piece, number in json.loads(content).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{folder / _IDS} is damaged: {error}; restore it") from error
        target = folder / _TARGET_MODEL
        return cls(folder / _MODEL, ids, target_file=target if target.exists() else None, **options)

    def _ids_of(self, pieces: Sequence[str]) -> list[int]:
        return [self.ids.get(piece, self.unk_id) for piece in pieces]


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
