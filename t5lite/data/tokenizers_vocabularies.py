"""Vocabularies of the `tokenizers` library: any `tokenizer.json`, and BERT's `vocab.txt`.

Ids are those of the file, plus `offset`; sentinels come behind them, as everywhere in t5lite. In
SeqIO tasks they run through `tf.numpy_function`: as exact as any, in graphs and from caches.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from t5lite.data.files import as_path, write_whole
from t5lite.data.importing import import_seqio
from t5lite.data.vocabularies import (
    Vocabulary,
    fingerprint_of,
    read_file,
    until_eos,
    write_description,
)
from t5lite.errors import InputError, unknown

_EOS = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "[EOS]", "[SEP]")
_MASKS = ("[MASK]", "<mask>")
_STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]")
_PADDING = re.compile(r"\W*pad(ding)?\W*", re.IGNORECASE)
_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class _Tokenizer(Vocabulary):
    """What all of the library's tokenizers share.

    Attributes:
      mask_id: of the mask token; None if there is none.
      bos_id: of the token that texts start with; None if there is none.
    """

    mask_id: int | None
    bos_id: int | None

    def __init__(
        self,
        tokenizer: Any,
        file: str | os.PathLike,
        content: bytes,
        *,
        num_sentinels: int,
        offset: int,
        eos: str | None,
        **options: Any,
    ):
        if num_sentinels < 0:
            raise InputError(f"num_sentinels={num_sentinels} must be at least 0")
        if offset not in (0, 1):
            raise InputError(f"offset={offset} must be 0 or 1")
        self.file, self._content, self._tokenizer = str(file), content, tokenizer
        self._options = {"offset": offset, "eos": eos, **options}
        tokenizer.no_padding()
        tokenizer.no_truncation()
        own, num_tokens = _count_sentinels(tokenizer), max(tokenizer.get_vocab().values()) + 1
        if own and num_sentinels > own:
            raise InputError(
                f"{file} has {own} sentinels of its own, num_sentinels={num_sentinels} asks for "
                f"more; use at most {own}"
            )
        self._offset, self.num_sentinels = offset, own or num_sentinels
        self.size = num_tokens + offset + (0 if own else num_sentinels)
        if not own:
            _add_sentinels(tokenizer, num_sentinels, first_id=num_tokens)
        self._check_padding()
        self.pad_id = 0
        self.eos_id = self._eos(eos)
        self.bos_id, self.mask_id = self._first_of(_STARTS), self._first_of(_MASKS)
        unk = getattr(tokenizer.model, "unk_token", None)
        if unk is None and (unk_id := getattr(tokenizer.model, "unk_id", None)) is not None:
            unk = tokenizer.id_to_token(unk_id)
        self.unk_id = -1 if unk is None else self._first_of([unk]) or -1
        described = json.dumps(self._options, sort_keys=True).encode()
        kind = type(self).__name__
        self.fingerprint = fingerprint_of(kind, self.num_sentinels, described + content)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.file!r}, num_sentinels={self.num_sentinels})"

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [token + self._offset for token in ids] if self._offset else ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[token + self._offset for token in each.ids] for each in found]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return [token + self._offset for token in found.ids], list(found.offsets)

    def decode(self, ids: Iterable[int]) -> str:
        known = [
            token - self._offset
            for token in until_eos(self, ids)
            if 0 <= token < self.size and token != self.pad_id
        ]
        return self._tokenizer.decode(known, skip_special_tokens=False)

    def piece(self, token_id: int) -> str:
        token = int(token_id) - self._offset
        if token == -1 and self._offset:
            return "<pad>"
        piece = self._tokenizer.id_to_token(token) if token >= 0 else None
        return f"<id_{int(token_id)}>" if piece is None else piece

    def as_seqio(self) -> Any:
        return _seqio_class()(self)

    def save(self, folder: str | os.PathLike) -> None:
        write_whole(as_path(folder) / self.file_name, self._content)
        write_description(self, folder, **self._options)

    file_name: str

    @classmethod
    def load(cls, folder: Any, num_sentinels: int, **options: Any) -> "Vocabulary":
        """Returns what `save` wrote into a folder, given what the description says."""
        return cls(folder / cls.file_name, num_sentinels=num_sentinels, **options)  # type: ignore

    def _first_of(self, tokens: Sequence[str]) -> int | None:
        """Returns the id of the first token that exists."""
        ids = (self._tokenizer.token_to_id(token) for token in tokens)
        return next((found + self._offset for found in ids if found is not None), None)

    def _eos(self, eos: str | None) -> int:
        found = self._first_of(_EOS if eos is None else [eos])
        if found is None and eos is not None:
            raise unknown(f"eos token of {self.file}", eos, self._tokenizer.get_vocab())
        if found is None:
            raise InputError(
                f"{self.file} has none of the end-of-sequence tokens {', '.join(_EOS)}; "
                "name the one that it has: eos='...'"
            )
        return found

    def _check_padding(self) -> None:
        """Refuses a file whose id 0 is a token of the text: 0 is padding in every batch."""
        first = self._tokenizer.id_to_token(0)
        if not self._offset and first is not None and not _PADDING.fullmatch(first):
            raise InputError(
                f"id 0 of {self.file} is {first!r}, and 0 is padding in every batch: set offset=1, "
                "which raises all ids by one (a model that was trained without needs its "
                "embeddings moved down a row)"
            )


class HuggingFaceTokenizer(_Tokenizer):
    """A `tokenizer.json` file. Its template of special tokens is left out; objectives add EOS.

    Args:
      file: local or remote path.
      num_sentinels: how many sentinels to add behind the file's ids; a file that ends with its own,
        as T5's does, keeps those.
      offset: 1 raises all ids by one, for files whose id 0 is not padding (GPT-2's is `!`).
      eos: the end-of-sequence token; None: the first of `</s>`, `<|endoftext|>`, `<eos>`,
        `<|end_of_text|>`, `[EOS]`, `[SEP]` that there is.

    Raises:
      InputError: if the file is missing or damaged, its id 0 is not padding, or it has no EOS.
    """

    file_name = "tokenizer.json"

    def __init__(
        self,
        file: str | os.PathLike,
        num_sentinels: int = 0,
        *,
        offset: int = 0,
        eos: str | None = None,
    ):
        content = read_file(as_path(file), "tokenizer file")
        try:
            tokenizer = import_tokenizers().Tokenizer.from_buffer(content)
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(
                f"{file} is not a tokenizer.json, or is damaged: {error}; restore it"
            ) from error
        super().__init__(
            tokenizer, file, content, num_sentinels=num_sentinels, offset=offset, eos=eos
        )


class WordPiece(_Tokenizer):
    """BERT's `vocab.txt`: a piece a line, `##` on those that continue a word.

    Args:
      file: local or remote path.
      num_sentinels: how many sentinels to add behind the file's ids.
      lowercase: whether text is lower-cased and loses its accents, as for "uncased" models.
      offset: see `HuggingFaceTokenizer`; BERT's own id 0 is padding.
      eos: the end-of-sequence token.

    Raises:
      InputError: if the file is missing or damaged, or lacks `[UNK]` or EOS.

    Source: Devlin et al. 2019, arXiv:1810.04805, §3; Wu et al. 2016, arXiv:1609.08144, §4.1.
    """

    file_name = "vocab.txt"

    def __init__(
        self,
        file: str | os.PathLike,
        num_sentinels: int = 0,
        *,
        lowercase: bool = True,
        offset: int = 0,
        eos: str | None = "[SEP]",
    ):
        content = read_file(as_path(file), "vocabulary file")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8: {error}") from error
        # Not splitlines(): some pieces are what it takes for the end of a line, U+2028 say.
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        pieces = {piece: number for number, piece in enumerate(lines)}
        if "[UNK]" not in pieces or len(pieces) < len(lines):
            problem = "has no [UNK]" if "[UNK]" not in pieces else "has the same piece twice"
            raise InputError(f"{file} {problem}: it is not a WordPiece vocabulary, or damaged")
        tokenizers = import_tokenizers()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
        tokenizer.add_special_tokens([token for token in _BERT_TOKENS if token in pieces])
        super().__init__(
            tokenizer,
            file,
            content,
            num_sentinels=num_sentinels,
            offset=offset,
            eos=eos,
            lowercase=lowercase,
        )


def import_tokenizers() -> Any:
    """Returns the `tokenizers` library.

    Raises:
      InputError: if it is not installed.
    """
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise InputError(
            "tokenizer.json and vocab.txt need the tokenizers library, which is not installed: "
            'pip install "tokenizers>=0.21"'
        ) from error
    return tokenizers


def _count_sentinels(tokenizer: Any) -> int:
    """Returns how many sentinels, in T5's order, the ids end with."""
    size, count = max(tokenizer.get_vocab().values()) + 1, 0
    while count < size and tokenizer.id_to_token(size - 1 - count) == f"<extra_id_{count}>":
        count += 1
    return count


def _add_sentinels(tokenizer: Any, count: int, *, first_id: int) -> None:
    token = import_tokenizers().AddedToken
    names = [f"<extra_id_{index}>" for index in reversed(range(count))]
    tokenizer.add_tokens([token(name, normalized=False) for name in names])
    found = [tokenizer.token_to_id(name) for name in names]
    if found != list(range(first_id, first_id + count)):
        raise InputError(
            f"num_sentinels={count}: the tokenizer's ids have gaps, or some sentinels are among "
            "them already; add all of them to the file itself"
        )


@functools.cache
def _seqio_class() -> type:
    """Returns SeqIO's side of these vocabularies; the class it derives from comes late."""
    seqio = import_seqio()
    import tensorflow as tf

    class TokenizersVocabulary(seqio.Vocabulary):  # type: ignore[name-defined]
        """A vocabulary of the `tokenizers` library, in Python and in TensorFlow's graphs."""

        def __init__(self, twin: _Tokenizer):
            self.twin = twin
            super().__init__(extra_ids=twin.num_sentinels)

        bos_id = property(lambda self: self.twin.bos_id)
        eos_id = property(lambda self: self.twin.eos_id)
        unk_id = property(lambda self: None if self.twin.unk_id < 0 else self.twin.unk_id)
        _base_vocab_size = property(lambda self: self.twin.size - self.twin.num_sentinels)

        def __eq__(self, other: object) -> bool:
            twin = getattr(other, "twin", None)
            return getattr(twin, "fingerprint", None) == self.twin.fingerprint

        def __hash__(self) -> int:
            return hash(self.twin.fingerprint)

        def __str__(self) -> str:
            return f"TokenizersVocabulary({self.twin!r})"

        def _encode(self, s: str) -> list[int]:
            return self.twin.encode(s)

        def _decode(self, ids: Iterable[int]) -> str:
            return self.twin.decode(ids)

        def decode(self, ids: Iterable[int]) -> str:
            return self.twin.decode(ids)  # SeqIO's own would turn sentinels into unknowns

        def _encode_tf(self, s: Any) -> Any:
            """Encodes one string as `[length]`, or `[n]` strings as ragged `[n, None]`, int32."""
            if s.shape.rank == 0:
                ids = tf.numpy_function(self._encode_one, [s], tf.int32, stateful=False)
                return tf.ensure_shape(ids, [None])
            values, sizes = tf.numpy_function(
                self._encode_many, [s], (tf.int32, tf.int64), stateful=False
            )
            return tf.RaggedTensor.from_row_lengths(
                tf.ensure_shape(values, [None]), tf.ensure_shape(sizes, [None])
            )

        def _decode_tf(self, ids: Any) -> Any:
            """Decodes `[length]` to a string, or `[n, length]` to `[n]`."""
            texts = tf.numpy_function(self._decode_many, [ids], tf.string, stateful=False)
            return tf.ensure_shape(texts, ids.shape[:-1])

        def decode_tf(self, ids: Any) -> Any:
            return self._decode_tf(ids)

        def _encode_one(self, text: bytes) -> np.ndarray:
            # As SentencePiece: what is not UTF-8 is found where the text is read.
            return np.asarray(self.twin.encode(text.decode(errors="replace")), np.int32)

        def _encode_many(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ids = self.twin.encode_all([text.decode(errors="replace") for text in texts])
            values = [token for each in ids for token in each]
            return np.array(values, np.int32), np.array([len(each) for each in ids], np.int64)

        def _decode_many(self, ids: np.ndarray) -> Any:
            if ids.ndim == 1:
                return self.twin.decode(ids).encode()
            return np.array([self.twin.decode(row).encode() for row in ids], object)

    return TokenizersVocabulary
