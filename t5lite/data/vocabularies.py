"""Text to token ids and back: SentencePiece and bytes, free of TensorFlow, with T5's sentinels."""

import functools
import hashlib
import importlib
import io
import json
import os
import re
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from t5lite.data import files
from t5lite.data.files import as_path, decode_text, write_whole
from t5lite.data.importing import import_seqio
from t5lite.errors import InputError, unknown
from t5lite.framing import Frame

_FORMAT = 1
_DESCRIPTION, _MODEL = "vocabulary.json", "sentencepiece.model"
# What a padding token is called: "<pad>", "[PAD]", "<|padding|>".
PADDING = re.compile(r"\W*pad(ding)?\W*", re.IGNORECASE)


@runtime_checkable
class Vocabulary(Protocol):
    """What the rest of the house asks of a vocabulary.

    Attributes:
      size: number of ids, sentinels included.
      num_sentinels: how many of the last ids are sentinels.
      pad_id: what stands for no token: 0, as everywhere in SeqIO, or where `zero_is_token` the
        file's own, -1 if it has none.
      zero_is_token: whether id 0 is a token like any other. Rows are filled up with 0 all the same,
        so that only their segment ids say which places hold tokens.
      eos_id: end of sequence.
      unk_id: what the vocabulary cannot express; -1 where it expresses everything.
      bos_id: begin of sequence; None if there is none.
      mask_id: the mask token; None if there is none.
      fingerprint: hex sha256 of the content: equal fingerprints give equal ids.
    """

    size: int
    num_sentinels: int
    pad_id: int
    eos_id: int
    unk_id: int
    fingerprint: str
    zero_is_token: bool = False
    bos_id: int | None = None
    mask_id: int | None = None

    @property
    def targets(self) -> "Vocabulary":
        """The vocabulary of the same ids that encodes texts to be written; by default this one."""
        return self

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without EOS."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts, which can be faster than one by one."""
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of `text` and, for each, its first character and the one behind it.

        Raises:
          InputError: if the vocabulary cannot tell.
        """
        raise InputError(
            f"{type(self).__name__} does not say which characters a token stands for, which spans "
            "need; give it encode_with_offsets, or use another vocabulary"
        )

    @functools.cached_property
    def frame(self) -> Frame:
        """The special tokens around a text that a model reads; by default EOS after it.

        `frame(ids)` is a text as a model reads it, in training as in inference.
        """
        return Frame(after=(self.eos_id,))

    @functools.cached_property
    def target_frame(self) -> Frame:
        """The special tokens around a text that a decoder learns to write, which EOS ends."""
        return Frame(self.frame.before, (self.eos_id,))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text, without the special tokens in front of it and up to EOS.

        Padding vanishes, sentinels show as `<extra_id_N>`.
        """
        ...

    def piece(self, token_id: int) -> str:
        """Returns one id in readable form."""
        ...

    def as_seqio(self) -> Any:
        """Returns SeqIO's vocabulary with the same ids (imports TensorFlow)."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load_vocabulary` reads."""
        ...

    def sentinel(self, index: int) -> int:
        """Returns the id of the sentinel of the `index`-th span: `size - 1 - index`.

        Raises:
          InputError: if there is no such sentinel.

        Source: Raffel et al. 2020, arXiv:1910.10683, §3.1.4, and the order of T5's released code.
        """
        if not 0 <= index < self.num_sentinels:
            raise InputError(
                f"sentinel {index} does not exist: the vocabulary has {self.num_sentinels}; "
                "use a larger num_sentinels, or shorter sequences or longer spans"
            )
        return self.size - 1 - index


class SentencePiece(Vocabulary):
    """An existing SentencePiece model file with T5's sentinels after its pieces.

    The ids, also those of sentinels written out in the text, are those of
    `seqio.SentencePieceVocabulary`.

    Args:
      model_file: local or remote (`gs://`) path.
      num_sentinels: how many sentinels; nothing is added to a file that already ends with its own
        (mT5's does). Its own then count.

    Raises:
      InputError: if the file is missing, is no SentencePiece model, or has no EOS.
    """

    def __init__(self, model_file: str | os.PathLike, num_sentinels: int = 100):
        self.model_file = str(as_path(model_file))
        self._model = read_file(as_path(model_file), "SentencePiece model file")
        if num_sentinels < 0:
            raise InputError(f"num_sentinels={num_sentinels} must be at least 0")
        self._processor = open_sentencepiece(self._model, self.model_file)
        own = _count_sentinels(self._processor)
        self._num_added = 0 if own else num_sentinels
        if own and num_sentinels > own:
            raise InputError(
                f"{self.model_file} has {own} sentinels of its own, num_sentinels={num_sentinels} "
                f"asks for more; use at most {own}"
            )
        if self._num_added:
            self._processor = open_sentencepiece(
                self._model + _sentinel_pieces(num_sentinels), self.model_file
            )
        self.num_sentinels = own or num_sentinels
        self.size = self._processor.get_piece_size()
        first = self._processor.id_to_piece(0)
        self.zero_is_token = self._processor.pad_id() != 0 and not PADDING.fullmatch(first)
        self.pad_id = self._processor.pad_id() if self.zero_is_token else 0
        self.eos_id, self.unk_id = self._processor.eos_id(), self._processor.unk_id()
        if self.eos_id < 0:
            raise InputError(f"{self.model_file} has no end-of-sequence piece; train it with one")
        self.fingerprint = fingerprint_of("SentencePiece", self.num_sentinels, self._model)

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
        known = (token if 0 <= token < self.size else self.unk_id for token in text_ids(self, ids))
        return self._processor.decode([token for token in known if token != self.pad_id])

    def piece(self, token_id: int) -> str:
        token = int(token_id)
        return self._processor.id_to_piece(token) if 0 <= token < self.size else f"<id_{token}>"

    def as_seqio(self) -> Any:
        return import_seqio().SentencePieceVocabulary(self.model_file, extra_ids=self._num_added)

    @property
    def sentinels_were_added(self) -> bool:
        """Whether the sentinels stand behind the model file's own pieces."""
        return self._num_added > 0

    @property
    def model(self) -> bytes:
        """The model file, without the sentinels that were added to its pieces."""
        return self._model

    def save(self, folder: str | os.PathLike) -> None:
        write_whole(as_path(folder) / _MODEL, self._model)
        write_description(self, folder)


class Bytes(Vocabulary):
    """ByT5's vocabulary: the UTF-8 bytes of the text, each plus 3, then the sentinels.

    The ids are those of `seqio.ByteVocabulary(extra_ids=num_sentinels)`, sentinels last and
    descending as in T5. (The published ByT5 models were pre-trained with the last byte ids,
    258, 257, ..., as their sentinels; the ids from 259 on are unused there.)

    Args:
      num_sentinels: how many sentinels; 125 gives the 384 ids of the published models.
      spelled: whether special tokens and sentinels are tokens where a text spells them, `</s>` with
        the white space around it, as in transformers' ByT5Tokenizer.
      ascending: whether sentinels ascend from 259, as there.

    Source: Xue et al. 2021, arXiv:2105.13626, §3.
    """

    def __init__(self, num_sentinels: int = 125, *, spelled: bool = False, ascending: bool = False):
        if num_sentinels < 0:
            raise InputError(f"num_sentinels={num_sentinels} must be at least 0")
        self.num_sentinels = num_sentinels
        self.size = 3 + 256 + num_sentinels
        self.pad_id, self.eos_id, self.unk_id = 0, 1, 2
        self._options = {"spelled": True} if spelled else {}
        self._options |= {"ascending": True} if ascending else {}
        content = json.dumps(self._options).encode() if self._options else b""
        self.fingerprint = fingerprint_of("Bytes", num_sentinels, content)

    def __repr__(self) -> str:
        return f"Bytes(num_sentinels={self.num_sentinels})"

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0] if self._options else _bytes(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets, at = list[int](), list[tuple[int, int]](), 0
        found = _SPELLED.finditer(text) if "spelled" in self._options else ()
        for token in [*found, None]:
            end = len(text) if token is None else token.start()
            ids += _bytes(text[at:end])
            offsets += [(at, at + 1) for at in range(at, end) for _ in text[at].encode()]
            if token is None:
                break
            name, number = token.group(1), token.group(2)
            special = ("<pad>", "</s>", "<unk>").index(name) if number is None else None
            if special is None and int(number) >= self.num_sentinels:
                at = end  # as it is: there is no such sentinel
                continue
            at = token.end()
            ids.append(self.sentinel(int(number)) if special is None else special)
            offsets.append((end, at))
        return ids, offsets

    def sentinel(self, index: int) -> int:
        descending = super().sentinel(index)
        return 259 + index if "ascending" in self._options else descending

    def decode(self, ids: Iterable[int]) -> str:
        text = bytearray()
        for token in text_ids(self, ids):
            if 3 <= token < 259:
                text.append(token - 3)
            elif 259 <= token < self.size or (token == self.unk_id and "spelled" in self._options):
                text += self.piece(token).encode()
        return text.decode("utf-8", errors="ignore")

    def piece(self, token_id: int) -> str:
        token = int(token_id)
        if 0 <= token < 3:
            return ("<pad>", "</s>", "<unk>")[token]
        if 3 <= token < 259:
            return chr(token - 3) if 32 <= token - 3 < 127 else f"\\x{token - 3:02x}"
        index = token - 259 if "ascending" in self._options else self.size - 1 - token
        return f"<extra_id_{index}>" if 0 <= token < self.size else f"<id_{token}>"

    def as_seqio(self) -> Any:
        if self._options:
            from t5lite.data.seqio_vocabulary import seqio_class

            return seqio_class()(self)
        return import_seqio().ByteVocabulary(extra_ids=self.num_sentinels)

    def save(self, folder: str | os.PathLike) -> None:
        write_description(self, folder, **self._options)


_SPELLED = re.compile(r"\s*(<pad>|</s>|<unk>)\s*|<extra_id_(0|[1-9][0-9]*)>")


def _bytes(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode("utf-8")]


def _load(module: str, kind: str, folder: Any, num_sentinels: int, **options: Any) -> Vocabulary:
    found = getattr(importlib.import_module(f"t5lite.data.{module}"), kind)
    return found.load(folder, num_sentinels, **options)


# A description names one of these; nothing else is ever instantiated from a file.
_LOADERS: dict[str, Callable[..., Vocabulary]] = {
    "SentencePiece": lambda folder, num_sentinels: SentencePiece(folder / _MODEL, num_sentinels),
    "Bytes": lambda folder, num_sentinels, **options: Bytes(num_sentinels, **options),
    **{
        kind: functools.partial(_load, module, kind)
        for kind, module in (
            ("HuggingFaceTokenizer", "tokenizers_vocabularies"),
            ("WordPiece", "tokenizers_vocabularies"),
            ("MappedSentencePiece", "mapped_sentencepiece"),
        )
    },
}


def open_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """Returns the vocabulary of a folder that `save` wrote, or of a file, by its name's end.

    Args:
      path: a folder; or a `tokenizer.json`, a `vocab.txt` (WordPiece) or a SentencePiece model.

    Raises:
      InputError: if it is missing, damaged, or lacks what a vocabulary needs.
    """
    place = as_path(path)
    if place.is_dir():
        return load_vocabulary(place)
    if place.suffix in (".json", ".txt"):
        from t5lite.data import tokenizers_vocabularies

        kind = "HuggingFaceTokenizer" if place.suffix == ".json" else "WordPiece"
        return getattr(tokenizers_vocabularies, kind)(place)
    return SentencePiece(place)


def load_vocabulary(folder: str | os.PathLike) -> Vocabulary:
    """Returns the vocabulary that `save` wrote into `folder`.

    Raises:
      InputError: if it is missing, damaged, or of a kind this version does not know.
    """
    root = as_path(folder)
    path = root / _DESCRIPTION
    content = read_file(path, "vocabulary")
    try:
        description = json.loads(content)
        kind, num_sentinels = description["kind"], int(description["num_sentinels"])
        version, fingerprint = description["format"], description["fingerprint"]
        options = dict(description.get("options", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; restore the file") from error
    if version != _FORMAT:
        raise InputError(
            f"{path} has format {version!r}, this version reads {_FORMAT}; upgrade t5lite"
        )
    if kind not in _LOADERS:
        raise unknown("vocabulary kind", kind, _LOADERS)
    try:
        vocabulary = _LOADERS[kind](root, num_sentinels, **options)
    except TypeError as error:
        raise InputError(f"{path} is damaged: {error}; restore the file") from error
    if vocabulary.fingerprint != fingerprint:
        raise InputError(
            f"{root} is damaged: the vocabulary in it is not the one that {_DESCRIPTION} describes"
        )
    return vocabulary


def from_seqio(vocabulary: Any) -> Vocabulary | None:
    """Returns the TensorFlow-free twin of a SeqIO vocabulary, with the same ids.

    Args:
      vocabulary: a SeqIO SentencePieceVocabulary, ByteVocabulary or PassThroughVocabulary, or what
        `as_seqio` returned.

    Returns:
      The twin; None for PassThroughVocabulary, whose examples are ids already and have no text.

    Raises:
      InputError: for any other vocabulary or one with options that change the ids.
    """
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
            f"extra_ids = {vocabulary.extra_ids}: {twin.model_file} has {twin.num_sentinels} "
            "sentinels of its own, which SeqIO would define twice; open it with "
            "SentencePieceVocabulary(..., extra_ids=0)"
        )
    return twin


def train_sentencepiece(
    texts: Iterable[str | bytes],
    size: int,
    *,
    num_sentinels: int = 100,
    cache_folder: str | os.PathLike | None = None,
) -> SentencePiece:
    """Trains a unigram vocabulary with T5's conventions, once: the same text gives the cached one.

    Padding is 0, EOS 1, unknown 2, there is no BOS; text is NFKC-normalised and runs of white
    space, newlines included, become one space, as in T5's own vocabulary.

    Args:
      texts: documents; bytes must be UTF-8. All are held in memory.
      size: number of ids in all, sentinels included.
      num_sentinels: how many of them are sentinels.
      cache_folder: where to keep it; by default `t5lite.data.files.cache_folder()`.

    Returns:
      The vocabulary, its model file in the cache folder.

    Raises:
      InputError: if the text is empty, not UTF-8 or too little for `size`, or the cache cannot be
        written.

    Source: Kudo 2018, arXiv:1804.10959; Raffel et al. 2020, arXiv:1910.10683, §2.2.
    """
    documents = [
        decode_text(text, where=f"text {index} for the vocabulary")
        if isinstance(text, bytes)
        else text
        for index, text in enumerate(texts)
    ]
    # Every option that shapes the result is in the key; so is the thread count, a constant since
    # sums are taken per thread.
    options = {
        "vocab_size": size - num_sentinels,
        "model_type": "unigram",
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "character_coverage": 0.9999,
        "required_chars": string.ascii_letters + string.digits + string.punctuation,
        "max_sentence_length": 1 << 20,
        "num_threads": 4,
    }
    digest = hashlib.sha256(json.dumps([_FORMAT, options], sort_keys=True).encode())
    for document in documents:
        encoded = document.encode("utf-8", errors="replace")
        digest.update(b"%d:" % len(encoded) + encoded)
    folder = files.cache_folder() if cache_folder is None else Path(cache_folder)
    path = folder / "vocabularies" / f"unigram_{size}_{digest.hexdigest()[:24]}.model"
    if not path.exists():
        # Two processes may both train; the results are the same and each lands whole.
        write_whole(path, _train(documents, options, num_sentinels))
    return SentencePiece(path, num_sentinels)


def _train(documents: list[str], options: dict[str, Any], num_sentinels: int) -> bytes:
    """Returns a newly trained SentencePiece model."""
    import sentencepiece

    if options["vocab_size"] < 4:
        raise InputError(
            f"size={options['vocab_size'] + num_sentinels} leaves no pieces beside "
            f"{num_sentinels} sentinels; use a larger size"
        )
    lines = [line for document in documents for line in document.splitlines() if line.strip()]
    if not lines:
        raise InputError("there is no text to train a vocabulary on; the split is empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **options
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"cannot train a vocabulary of size={options['vocab_size'] + num_sentinels} "
            f"({num_sentinels} sentinels included) on {sum(map(len, lines))} characters: "
            f"{str(error).rpartition('] ')[2].splitlines()[0][:200]}"
        ) from error
    return model.getvalue()


def _sentinel_pieces(count: int) -> bytes:
    """Returns the sentinels as serialised pieces, to be appended to a serialised model.

    Appending to a protocol buffer adds to its repeated fields, so neither the protobuf library
    nor its generated code is needed. Field 1 of a model is a piece: text (1), score (2), type (3).
    """
    pieces = b""
    for index in reversed(range(count)):
        text = f"▁<extra_id_{index}>".encode()
        body = (
            b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\0\0" + b"\x18\x04"
        )  # 4: user defined
        pieces += b"\x0a" + bytes([len(body)]) + body
    return pieces


def _count_sentinels(processor: Any) -> int:
    """Returns how many sentinels, in T5's order, the model ends with."""
    size, count = processor.get_piece_size(), 0
    while count < size and processor.id_to_piece(size - 1 - count) == f"▁<extra_id_{count}>":
        count += 1
    return count


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
    """Returns SentencePiece's pieces of a text, and the first and last character of each."""
    # SentencePiece 0.2.2 renamed this, and counts bytes where it counted characters.
    new = hasattr(processor, "encode_as_proto")
    name = "encode_as_proto" if new else "encode_as_immutable_proto"
    pieces, offsets, at = getattr(processor, name)(text).pieces, [], 0
    for piece in pieces:
        begin = text.find(piece.surface, at)
        at = begin + len(piece.surface)
        offsets.append((begin, at))
    return list(pieces), offsets


def read_file(path: Any, what: str) -> bytes:
    """Returns a file's bytes."""
    try:
        return path.read_bytes()
    except Exception as error:  # remote file systems raise errors of their own
        raise InputError(f"cannot read the {what} {path}: {error}") from error


def text_ids(vocabulary: Vocabulary, ids: Iterable[int]) -> list[int]:
    """Returns the ids of the text itself: without its frame's first tokens, and up to EOS."""
    tokens = np.asarray(ids if hasattr(ids, "__array__") else list(ids), dtype=np.int64).tolist()
    for token in vocabulary.frame.before:
        if tokens[:1] == [token]:
            del tokens[0]
    return tokens[: tokens.index(vocabulary.eos_id)] if vocabulary.eos_id in tokens else tokens


def fingerprint_of(kind: str, num_sentinels: int, content: bytes) -> str:
    """Returns the hex sha256 of what decides the ids."""
    return hashlib.sha256(f"{kind} {num_sentinels} ".encode() + content).hexdigest()


def write_description(vocabulary: Vocabulary, folder: str | os.PathLike, **options: Any) -> None:
    """Writes what `load_vocabulary` needs to know beside the files, with the loader's options."""
    description = {
        "format": _FORMAT,
        "kind": type(vocabulary).__name__,
        "num_sentinels": vocabulary.num_sentinels,
        "size": vocabulary.size,
        "fingerprint": vocabulary.fingerprint,
    } | ({"options": options} if options else {})
    text = json.dumps(description, indent=2) + "\n"
    write_whole(as_path(folder) / _DESCRIPTION, text.encode())
