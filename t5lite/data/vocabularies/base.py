"""A vocabulary: text to token ids and back, special tokens around a text, T5's sentinels."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from t5lite.data.paths import as_path, write_whole
from t5lite.errors import InputError, require_integer
from t5lite.framing import Frame

FORMAT = 1
DESCRIPTION = "vocabulary.json"

# Names of padding tokens: "<pad>", "[PAD]", "<|padding|>".
PADDING = re.compile(r"\W*pad(ding)?\W*", re.IGNORECASE)


@runtime_checkable
class Vocabulary(Protocol):
    """Base of all vocabularies.

    Attributes:
      size: number of ids, sentinels included.
      num_sentinels: the number of sentinels, which are the last ids.
      pad_id: the padding token: 0, as in SeqIO; where id 0 is a regular token, the file's own, or
        -1 if it has none. Batches are padded with 0 in any case and marked by segment ids.
      eos_id: end of sequence.
      unk_id: the unknown token; -1 where every text can be encoded.
      bos_id: begin of sequence, or None.
      mask_id: the mask token, or None.
      fingerprint: hex sha256 of the content: equal fingerprints give equal ids.
    """

    size: int
    num_sentinels: int
    pad_id: int
    eos_id: int
    unk_id: int
    fingerprint: str
    bos_id: int | None = None
    mask_id: int | None = None

    @property
    def targets(self) -> "Vocabulary":
        """The vocabulary of the same ids that encodes target texts; by default this one."""
        return self

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without EOS."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts, which can be faster than one by one."""
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of `text` and each one's character span `(start, end)`, if tracked."""
        raise InputError(
            f"{type(self).__name__} does not say which characters a token stands for, which spans "
            "need; give it encode_with_offsets, or use another vocabulary"
        )

    @functools.cached_property
    def frame(self) -> Frame:
        """The special tokens around a model's input, in training and inference; by default EOS."""
        return Frame(after=(self.eos_id,))

    @functools.cached_property
    def target_frame(self) -> Frame:
        """The special tokens around a decoder's text, which ends with EOS."""
        return Frame(self.frame.before, (self.eos_id,))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to EOS, without padding and the special tokens in front of it.

        Sentinels show as `<extra_id_N>`.
        """
        ...

    def piece(self, token_id: int) -> str:
        """Returns one id in readable form."""
        ...

    def id_of(self, piece: str) -> int | None:
        """Returns the id of a `piece`, the inverse of `piece()`; None if it has none."""
        return next((token for token in range(self.size) if self.piece(token) == piece), None)

    def as_seqio(self) -> Any:
        """Returns SeqIO's vocabulary with the same ids (imports TensorFlow)."""
        from t5lite.data.vocabularies.seqio_class import seqio_class

        return seqio_class()(self)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files that `load_vocabulary` reads."""
        ...

    def sentinel(self, index: int) -> int:
        """Returns the id of the sentinel of the `index`-th span: `size - 1 - index`.

        Raises: InputError if it does not exist.
        Source: Raffel et al. 2020, arXiv:1910.10683, §3.1.4, and the order of T5's released code.
        """
        if not 0 <= index < self.num_sentinels:
            raise InputError(
                f"sentinel {index} does not exist: the vocabulary has {self.num_sentinels}; "
                "use a larger num_sentinels, or shorter sequences or longer spans"
            )
        return self.size - 1 - index


class FileVocabulary(Vocabulary):
    """A vocabulary that one file and its constructor's options describe."""

    file_name: ClassVar[str]  # in a saved folder
    content: bytes  # of the file
    options: dict[str, Any]  # keyword arguments of the constructor

    def save(self, folder: str | os.PathLike) -> None:
        write_whole(as_path(folder) / self.file_name, self.content)
        write_description(self, folder, **self.options)

    @classmethod
    def load(cls, folder: Any, num_sentinels: int, **options: Any) -> Self:
        """Returns the vocabulary that `save` wrote, with the options of its description."""
        return cls(folder / cls.file_name, num_sentinels, **options)  # type: ignore[call-arg]


def own_sentinels(
    piece: Callable[[int], str | None],
    size: int,
    prefixes: Sequence[str],
    *,
    expected: int,
    name: str,
) -> int:
    """Returns the number of sentinels, in T5's order, that a file's `size` ids end with.

    Sentinels may begin with one of the prefixes. A file with some, but fewer than `expected`, is
    refused.
    """
    require_integer("num_sentinels", expected, least=0)
    count = 0
    while count < size and piece(size - 1 - count) in {f"{p}<extra_id_{count}>" for p in prefixes}:
        count += 1
    if count and expected > count:
        raise InputError(
            f"num_sentinels={expected}: {name} already has {count} sentinels; use at most {count}",
            field="num_sentinels",
        )
    return count


def text_ids(vocabulary: Vocabulary, ids: Iterable[int]) -> list[int]:
    """Returns the ids of the text itself: up to EOS, without the frame's first tokens."""
    tokens = np.asarray(ids if hasattr(ids, "__array__") else list(ids), dtype=np.int64).tolist()
    for token in vocabulary.frame.before:
        if tokens[:1] == [token]:
            del tokens[0]
    return tokens[: tokens.index(vocabulary.eos_id)] if vocabulary.eos_id in tokens else tokens


def fingerprint_of(kind: str, num_sentinels: int, content: bytes) -> str:
    """Returns the hex sha256 of everything that decides the ids."""
    return hashlib.sha256(f"{kind} {num_sentinels} ".encode() + content).hexdigest()


def write_description(vocabulary: Vocabulary, folder: str | os.PathLike, **options: Any) -> None:
    """Writes `vocabulary.json`: the class, its options and the fingerprint."""
    description = {
        "format": FORMAT,
        "kind": type(vocabulary).__name__,
        "num_sentinels": vocabulary.num_sentinels,
        "size": vocabulary.size,
        "fingerprint": vocabulary.fingerprint,
    } | ({"options": options} if options else {})
    text = json.dumps(description, indent=2) + "\n"
    write_whole(as_path(folder) / DESCRIPTION, text.encode())
