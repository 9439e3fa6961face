"""Vocabularies of the `tokenizers` library: any `tokenizer.json`, and BERT's `vocab.txt`.

Ids are the file's plus `offset`, followed by the sentinels. Id 0 may be a regular token: segment
ids mark padding. In SeqIO tasks these vocabularies run through `tf.numpy_function`.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from t5lite.data.paths import as_path, read_file
from t5lite.data.vocabularies.base import (
    PADDING,
    FileVocabulary,
    fingerprint_of,
    own_sentinels,
    text_ids,
)
from t5lite.errors import InputError, unknown
from t5lite.framing import Frame

_EOS = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "[EOS]", "[SEP]")
_MASKS = ("[MASK]", "<mask>")
_STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]")
_PADS = ("<pad>", "[PAD]", "<|padding|>", "<|pad|>")
_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Pair(NamedTuple):
    """Two texts framed as one row."""

    ids: list[int]  # of both, with the special tokens around them
    types: list[int]  # token types: 0 for the first text, in BERT 1 for the second
    start: int  # position of the second text's first token
    offsets: list[tuple[int, int]]  # character spans of the second text's tokens, in it
    num_cut: int  # tokens by which the second text was truncated


class _Tokenizer(FileVocabulary):
    def __init__(
        self,
        tokenizer: Any,
        file: str | os.PathLike,
        content: bytes,
        *,
        num_sentinels: int,
        offset: int,
        cleans_up: bool = False,
        **options: Any,
    ):
        if offset not in (0, 1):
            raise InputError(f"offset={offset} must be 0 or 1", field="offset")
        self.file, self.content, self._tokenizer = str(file), content, tokenizer
        self.offset, self.cleans_up = offset, cleans_up
        # Options at their default stay out, so that fingerprints of earlier versions hold.
        optional = {"bos", "mask", "pad"}
        self.options = {"offset": offset} | {
            name: value
            for name, value in options.items()
            if name not in optional or value is not None
        }
        self.options |= {"cleans_up": True} if cleans_up else {}
        tokenizer.no_padding()
        tokenizer.no_truncation()
        piece, num_tokens = tokenizer.id_to_token, max(tokenizer.get_vocab().values()) + 1
        # mT5's begin with a mark of white space.
        own = own_sentinels(piece, num_tokens, ("", "▁"), expected=num_sentinels, name=self.file)
        self.num_sentinels = own or num_sentinels
        self.size = num_tokens + offset + (0 if own else num_sentinels)
        if not own:
            _add_sentinels(tokenizer, num_sentinels, first_id=num_tokens)
        self._set_special_ids(**{name: options.get(name) for name in ("eos", *optional)})
        described = json.dumps(self.options, sort_keys=True).encode()
        kind = type(self).__name__
        self.fingerprint = fingerprint_of(kind, self.num_sentinels, described + content)

    def _set_special_ids(
        self, *, eos: str | None, bos: str | None, mask: str | None, pad: str | None
    ) -> None:
        eos_id = self._first_of(_EOS if eos is None else [eos])
        if eos_id is None and eos is not None:
            kind, tokens = f"eos token of {self.file}", self._tokenizer.get_vocab()
            raise unknown(kind, eos, tokens, field="eos")
        if eos_id is None:
            raise InputError(
                f"{self.file} has none of the end-of-sequence tokens {', '.join(_EOS)}; "
                "name the one that it has: eos='...'",
                field="eos",
            )
        self.eos_id = eos_id
        self.bos_id = self._first_of(_STARTS if bos is None else [bos])
        if bos is None and self._tokenizer.post_processor is not None and self.frame.size:
            self.bos_id = next(iter(self.frame.before), None)
        self.mask_id = self._first_of(_MASKS if mask is None else [mask])
        model = self._tokenizer.model
        unk = getattr(model, "unk_token", None)
        unk_id = None if unk is None else self._first_of([unk])
        if type(model).__name__ == "Unigram":  # which does not expose it
            unk_id = json.loads(self._tokenizer.to_str())["model"]["unk_id"]
            unk_id = None if unk_id is None else unk_id + self.offset
        self.unk_id = -1 if unk_id is None else unk_id
        pad_id = self._first_of(_PADS if pad is None else [pad])
        if pad_id in (self.eos_id, self.bos_id, self.unk_id):
            pad_id = None  # texts contain that token too
        first = None if self.offset else self._tokenizer.id_to_token(0)
        zero_is_padding = first is None or pad_id == 0 or PADDING.fullmatch(first)
        self.pad_id = 0 if zero_is_padding else -1 if pad_id is None else pad_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.file!r}, num_sentinels={self.num_sentinels})"

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [token + self.offset for token in ids] if self.offset else ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[token + self.offset for token in encoding.ids] for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [token + self.offset for token in encoding.ids], list(encoding.offsets)

    def encode_pair(self, first: str, second: str, room: int | None = None) -> Pair:
        """Returns two texts framed as one row, the second truncated to `room` ids in all."""
        both = self._tokenizer.encode(first, second)
        seconds = [at for at, text in enumerate(both.sequence_ids) if text == 1]
        num_cut = 0 if room is None else max(len(both.ids) - room, 0)
        if num_cut and num_cut >= len(seconds):
            raise InputError(
                f"a pair of {len(both.ids)} tokens: the model takes {room}, and the first text "
                "leaves no room for the second; shorten it"
            )
        cut = set(seconds[len(seconds) - num_cut :])
        positions = [at for at in range(len(both.ids)) if at not in cut]
        return Pair(
            [both.ids[at] + self.offset for at in positions],
            [both.type_ids[at] for at in positions],
            seconds[0] if seconds else 0,
            [both.offsets[at] for at in positions if both.sequence_ids[at] == 1],
            num_cut,
        )

    @functools.cached_property
    def frame(self) -> Frame:
        """The special tokens of the file's template; of a file without one, EOS after a text."""
        if self._tokenizer.post_processor is None:
            return Frame(after=(self.eos_id,))
        pieces = (self._tokenizer.decode([token]) for token in range(self.size))
        for text in itertools.chain(["a", "0"], pieces):
            if inside := self._tokenizer.encode(text, add_special_tokens=False).ids:
                break
        framed = self._tokenizer.encode(text).ids
        (start, *_) = (at for at in range(len(framed)) if framed[at : at + len(inside)] == inside)
        shifted = tuple(token + self.offset for token in framed)
        return Frame(shifted[:start], shifted[start + len(inside) :])

    def decode(self, ids: Iterable[int]) -> str:
        tokens = [
            token - self.offset
            for token in text_ids(self, ids)
            if 0 <= token < self.size and token != self.pad_id
        ]
        text = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return _cleaned(text) if self.cleans_up else text

    def piece(self, token_id: int) -> str:
        token = int(token_id) - self.offset
        if token == -1 and self.offset:
            return "<pad>"
        piece = self._tokenizer.id_to_token(token) if token >= 0 else None
        return f"<id_{int(token_id)}>" if piece is None else piece

    def id_of(self, piece: str) -> int | None:
        return 0 if self.offset and piece == "<pad>" else self._first_of([piece])

    def _first_of(self, tokens: Sequence[str]) -> int | None:
        """Returns the id of the first token that exists."""
        ids = (self._tokenizer.token_to_id(token) for token in tokens)
        return next((token + self.offset for token in ids if token is not None), None)

    @property
    def added(self) -> set[int]:
        """Ids of the special tokens, which are recognised where a text spells them."""
        return {token + self.offset for token in self._tokenizer.get_added_tokens_decoder()}

    def to_json(self) -> str:
        """Returns the `tokenizer.json` of all tokens, sentinels included, without `offset`."""
        return self._tokenizer.to_str()


class HuggingFaceTokenizer(_Tokenizer):
    """A `tokenizer.json` file; the special tokens of its template are added by `frame` alone.

    Args:
      file: local or remote path.
      num_sentinels: number of sentinels to add; a file that ends with sentinels, such as T5's,
        keeps those.
      offset: 1 raises all ids by one, so that 0 is padding also where the file's id 0 is not
        (GPT-2's is `!`); a model that was trained without it needs its embeddings moved by one row.
      eos: the end-of-sequence token; None: the first of `</s>`, `<|endoftext|>`, `<eos>`,
        `<|end_of_text|>`, `[EOS]`, `[SEP]` in the file.
      bos: the token that texts start with; None: the first token of the file's template, or without
        a template the first of `<s>`, `<bos>`, `<|begin_of_text|>`, `[CLS]` in the file.
      mask: the mask token; None: `[MASK]` or `<mask>`.
      pad: the padding token; None: `<pad>`, `[PAD]`, `<|padding|>` or `<|pad|>`.
      cleans_up: whether decoded texts lose the spaces before punctuation and English contractions,
        as with transformers' `clean_up_tokenization_spaces`.
      content: of the file, if it is read already; `file` is then a name for messages.
    Raises: InputError if the file is missing or damaged, or has no EOS.
    """

    file_name = "tokenizer.json"

    def __init__(
        self,
        file: str | os.PathLike,
        num_sentinels: int = 0,
        *,
        offset: int = 0,
        eos: str | None = None,
        bos: str | None = None,
        mask: str | None = None,
        pad: str | None = None,
        cleans_up: bool = False,
        content: bytes | None = None,
    ):
        content = read_file(as_path(file), "tokenizer file") if content is None else content
        library = import_tokenizers()
        try:
            tokenizer = library.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(
                f"{file} is not a tokenizer.json, or is damaged: {error}; restore it"
            ) from error
        options: dict[str, Any] = {"offset": offset, "eos": eos, "bos": bos, "mask": mask}
        options |= {"pad": pad, "num_sentinels": num_sentinels, "cleans_up": cleans_up}
        super().__init__(tokenizer, file, content, **options)

    @classmethod
    def from_json(cls, content: str, name: str, **options: Any) -> "HuggingFaceTokenizer":
        return cls(name, content=content.encode(), **options)


class WordPiece(_Tokenizer):
    """BERT's `vocab.txt`: a piece a line, `##` in front of continuations of a word.

    Args:
      file: local or remote path.
      num_sentinels: number of sentinels to add after the file's ids.
      lowercase: whether text is lower-cased and loses its accents, as for "uncased" models.
      offset: see `HuggingFaceTokenizer`; BERT's own id 0 is padding.
      eos: the end-of-sequence token.
    Raises: InputError if the file is missing or damaged, or lacks `[UNK]` or EOS.
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
        if "[CLS]" in pieces and "[SEP]" in pieces:
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                special_tokens=[(token, pieces[token]) for token in ("[CLS]", "[SEP]")],
            )
        tokenizer.add_special_tokens([token for token in _BERT_TOKENS if token in pieces])
        options: dict[str, Any] = {"offset": offset, "eos": eos, "lowercase": lowercase}
        super().__init__(tokenizer, file, content, num_sentinels=num_sentinels, **options)


def import_tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise InputError(
            "tokenizer.json and vocab.txt need the tokenizers library, which is not installed: "
            'pip install "tokenizers>=0.21"'
        ) from error
    return tokenizers


def _cleaned(text: str) -> str:
    """Returns a text without spaces before punctuation, as transformers cleans it."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def _add_sentinels(tokenizer: Any, count: int, *, first_id: int) -> None:
    token = import_tokenizers().AddedToken
    names = [f"<extra_id_{index}>" for index in reversed(range(count))]
    tokenizer.add_tokens([token(name, normalized=False) for name in names])
    if [*map(tokenizer.token_to_id, names)] != [*range(first_id, first_id + count)]:
        raise InputError(
            f"num_sentinels={count}: the tokenizer's ids have gaps, or some sentinels are among "
            "them already; add all of them to the file itself",
            field="num_sentinels",
        )
