"""ByT5's vocabulary: bytes."""

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from t5lite.data.importing import import_seqio
from t5lite.data.vocabularies.base import Vocabulary, fingerprint_of, text_ids, write_description
from t5lite.errors import require_integer

_SPECIAL = ("<pad>", "</s>", "<unk>")
_SPELLED = re.compile(r"\s*(<pad>|</s>|<unk>)\s*|<extra_id_(0|[1-9][0-9]*)>")


class Bytes(Vocabulary):
    """ByT5's vocabulary: the UTF-8 bytes of the text, each plus 3, then the sentinels.

    The ids are those of `seqio.ByteVocabulary(extra_ids=num_sentinels)`, sentinels last and
    descending as in T5. (The published ByT5 models were pre-trained with the last byte ids,
    258, 257, ..., as their sentinels; the ids from 259 on are unused there.)

    Args:
      num_sentinels: number of sentinels; 125 gives the 384 ids of the published models.
      spelled: whether special tokens and sentinels are recognised where a text spells them, `</s>`
        with the white space around it, as in transformers' ByT5Tokenizer.
      ascending: whether sentinels ascend from 259, as there.
    Source: Xue et al. 2021, arXiv:2105.13626, §3.
    """

    def __init__(self, num_sentinels: int = 125, *, spelled: bool = False, ascending: bool = False):
        require_integer("num_sentinels", num_sentinels, least=0)
        self.num_sentinels, self._spelled, self._ascending = num_sentinels, spelled, ascending
        self.size = 3 + 256 + num_sentinels
        self.pad_id, self.eos_id, self.unk_id = 0, 1, 2
        options = {"spelled": spelled, "ascending": ascending}
        self._options = {name: True for name, value in options.items() if value}
        content = json.dumps(self._options).encode() if self._options else b""
        self.fingerprint = fingerprint_of("Bytes", num_sentinels, content)

    def __repr__(self) -> str:
        return f"Bytes(num_sentinels={self.num_sentinels})"

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0] if self._options else _bytes(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets, start = list[int](), list[tuple[int, int]](), 0
        for match in [*(_SPELLED.finditer(text) if self._spelled else ()), None]:
            end = len(text) if match is None else match.start()
            ids += _bytes(text[start:end])
            offsets += [(at, at + 1) for at in range(start, end) for _ in text[at].encode()]
            start = end
            if match is not None and (token := self._special(match)) is not None:
                start = match.end()
                ids.append(token)
                offsets.append((end, start))
        return ids, offsets

    def _special(self, match: re.Match[str]) -> int | None:
        """Returns the id of a spelled token; None where the sentinel does not exist."""
        name, number = match.groups()
        if name:
            return _SPECIAL.index(name)
        return self.sentinel(int(number)) if int(number) < self.num_sentinels else None

    def sentinel(self, index: int) -> int:
        descending = super().sentinel(index)
        return 259 + index if self._ascending else descending

    def decode(self, ids: Iterable[int]) -> str:
        text = bytearray()
        for token in text_ids(self, ids):
            if 3 <= token < 259:
                text.append(token - 3)
            elif 259 <= token < self.size or (token == self.unk_id and self._spelled):
                text += self.piece(token).encode()
        return text.decode("utf-8", errors="ignore")

    def piece(self, token_id: int) -> str:
        token = int(token_id)
        if 0 <= token < 3:
            return _SPECIAL[token]
        if 3 <= token < 259:
            return chr(token - 3) if 32 <= token - 3 < 127 else f"\\x{token - 3:02x}"
        index = token - 259 if self._ascending else self.size - 1 - token
        return f"<extra_id_{index}>" if 0 <= token < self.size else f"<id_{token}>"

    def as_seqio(self) -> Any:
        if self._options:
            return super().as_seqio()
        return import_seqio().ByteVocabulary(extra_ids=self.num_sentinels)

    def save(self, folder: str | os.PathLike) -> None:
        write_description(self, folder, **self._options)


def _bytes(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode("utf-8")]
