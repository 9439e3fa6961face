"""SentencePiece models whose pieces have other ids than the model file's: XLM-R's, Marian's …"""

import copy
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5lite.data.paths import as_path, read_file, write_whole
from t5lite.data.vocabularies.base import Vocabulary, fingerprint_of, text_ids, write_description
from t5lite.data.vocabularies.sentence_pieces import open_sentencepiece, pieces_with_offsets
from t5lite.errors import InputError
from t5lite.framing import Frame

_MODEL, _TARGET_MODEL, _IDS = "sentencepiece.model", "target.model", "ids.json"


class MappedSentencePiece(Vocabulary):
    """The pieces of a SentencePiece model, under ids of their own.

    A text may begin with a language code such as `>>fra<<`, if that is among the ids.

    Args:
      model_file: local or remote path.
      ids: the id of each piece and special token; what is in none of them is unknown.
      tokens: the names of `eos` and `unk`, perhaps also of `pad`, `bos` and `mask`.
      before: tokens that stand before a text that a model reads as input.
      after: tokens that follow it.
      target_file: the model that `targets` is encoded, and everything decoded with; None: the same.
      origin: what other programs call a vocabulary of this kind.
      whole: tokens that are tokens also where a text spells them; spellings of others are text.

    Attributes:
      targets: the vocabulary of the same ids that texts to be written are encoded with.
      tokens: as given.
      models: the model files, that for targets last.

    Raises:
      InputError: if a file is missing or damaged, or a token has no id.
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
        self._options = {"tokens": dict(tokens), "before": list(before), "after": list(after)}
        self._options |= {"origin": origin} if origin else {}
        self._options |= {"whole": list(whole)} if whole else {}
        longest = sorted(map(re.escape, whole), key=len, reverse=True)
        self._whole = re.compile(f"({'|'.join(longest)})") if whole else None
        missing = [name for name in (*tokens.values(), *before, *after, *whole) if name not in ids]
        if missing:
            raise InputError(f"the ids of {model_file} lack {', '.join(missing)}; add them")
        files = [model_file] if target_file is None else [model_file, target_file]
        self.models = [read_file(as_path(file), "SentencePiece model file") for file in files]
        self._processors = [
            open_sentencepiece(model, str(file))
            for model, file in zip(self.models, files, strict=True)
        ]
        self._encoder = self._processors[0]
        self._pieces = {number: piece for piece, number in self.ids.items()}
        self.size = max(self._pieces) + 1
        self.tokens = dict(tokens)
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
        found = []
        for part, is_token in self._parts(text):
            if is_token:
                found.append(self.ids[part])
                continue
            code, part = self._language_code(part)
            found += code + self._ids_of(self._encoder.encode(part, out_type=str))
        return found

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        found: list[tuple[int, int]] = []
        at = 0
        for part, is_token in self._parts(text):
            end = at + len(part)
            code, rest = ([self.ids[part]], "") if is_token else self._language_code(part)
            pieces, offsets = pieces_with_offsets(self._encoder, rest)
            ids += code + self._ids_of([piece.piece for piece in pieces])
            found += [(at, end - len(rest))] * len(code)
            found += [(end - len(rest) + first, end - len(rest) + last) for first, last in offsets]
            at = end
        return ids, found

    def _parts(self, text: str) -> list[tuple[str, bool]]:
        """Returns a text in parts, and of each whether it is a token as it is."""
        if self._whole is None:
            return [(text, False)]
        parts = enumerate(self._whole.split(text))
        return [(part, number % 2 == 1) for number, part in parts if part]

    @functools.cached_property
    def frame(self) -> Frame:
        return Frame(
            *(
                tuple(self.ids[token] for token in self._options[side])
                for side in ("before", "after")
            )
        )

    def decode(self, ids: Iterable[int]) -> str:
        unknown = self._pieces[self.unk_id]
        kept = (token for token in text_ids(self, ids) if token != self.pad_id)
        pieces = [self._pieces.get(token, unknown) for token in kept]
        if self._whole is not None:
            return self._text(pieces)
        # Pieces that only the other model has come back as they are, with their mark of a space.
        return self._processors[-1].decode_pieces(pieces).removeprefix("▁").replace("▁", " ")

    def _text(self, pieces: Sequence[str]) -> str:
        """Returns the text of pieces of which some are tokens as they are."""
        text, part = "", list[str]()
        for piece in [*pieces, ""]:
            if piece and piece not in self._options["whole"]:
                part.append(piece)
                continue
            text += self._processors[-1].decode_pieces(part) + (f"{piece} " if piece else "")
            part = []
        return text.replace("▁", " ").strip()

    def piece(self, token_id: int) -> str:
        return self._pieces.get(int(token_id), f"<id_{int(token_id)}>")

    def id_of(self, piece: str) -> int | None:
        return self.ids.get(piece)

    def as_seqio(self) -> Any:
        from t5lite.data.vocabularies.seqio_class import seqio_class

        return seqio_class()(self)

    def save(self, folder: str | os.PathLike) -> None:
        root = as_path(folder)
        for name, model in zip((_MODEL, _TARGET_MODEL), self.models, strict=False):
            write_whole(root / name, model)
        write_whole(root / _IDS, json.dumps(self.ids, ensure_ascii=False).encode())
        write_description(self, folder, **self._options)

    @classmethod
    def load(cls, folder: Any, num_sentinels: int, **options: Any) -> "MappedSentencePiece":
        """Returns what `save` wrote into a folder, given what the description says."""
        del num_sentinels
        content = read_file(folder / _IDS, "ids")
        try:
            ids = {str(piece): int(number) for piece, number in json.loads(content).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{folder / _IDS} is damaged: {error}; restore it") from error
        target = folder / _TARGET_MODEL
        return cls(folder / _MODEL, ids, target_file=target if target.exists() else None, **options)

    def _language_code(self, text: str) -> tuple[list[int], str]:
        """Returns the id of the code that a text begins with, if any, and the rest of the text."""
        end = text.find("<<") + 2
        if text.startswith(">>") and end > 2 and text[:end] in self.ids:
            return [self.ids[text[:end]]], text[end:]
        return [], text

    def _ids_of(self, pieces: Sequence[str]) -> list[int]:
        return [self.ids.get(piece, self.unk_id) for piece in pieces]
