"""Vocabularies of the `tokenizers` library: any `tokenizer.json`, and BERT's `vocab.txt`.

Ids are those of the file, plus `offset`; sentinels follow them, as everywhere in t5lite. Id 0
may be a token of the text: batches then say by segment ids which places hold tokens. In SeqIO tasks
these vocabularies run through `tf.numpy_function`: as exact as any, in graphs and from caches.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from t5lite.data.paths import as_path, read_file, write_whole
from t5lite.data.vocabularies.base import (
    PADDING,
    Vocabulary,
    fingerprint_of,
    own_sentinels,
    text_ids,
    write_description,
)
from t5lite.errors import InputError, unknown
from t5lite.framing import Frame

_EOS = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "[EOS]", "[SEP]")
_MASKS = ("[MASK]", "<mask>")
_STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]")
_PADS = ("<pad>", "[PAD]", "<|padding|>", "<|pad|>")
_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Pair(NamedTuple):
    """Two texts as a model reads them in one row.

    Attributes:
      ids: of both, with the special tokens around them.
      types: a token type for each id: 0 for the first text, in BERT 1 for the second.
      start: the second text's first id.
      offsets: the first character of each of its tokens, and the one after it, in it.
      num_cut: tokens that it lost.
    """

    ids: list[int]
    types: list[int]
    start: int
    offsets: list[tuple[int, int]]
    num_cut: int


class _Tokenizer(Vocabulary):
    """What all of the library's tokenizers share.

    Attributes:
      offset: by how much ids are above the file's.
    """

    def __init__(
        self,
        tokenizer: Any,
        file: str | os.PathLike,
        content: bytes,
        *,
        num_sentinels: int,
        offset: int,
        eos: str | None,
        bos: str | None = None,
        mask: str | None = None,
        pad: str | None = None,
        cleans_up: bool = False,
        **options: Any,
    ):
        if offset not in (0, 1):
            raise InputError(f"offset={offset} must be 0 or 1", field="offset")
        self.file, self._content, self._tokenizer = str(file), content, tokenizer
        named = {"bos": bos, "mask": mask, "pad": pad}
        # What is not given is left out: fingerprints are what they were before there were any.
        named = {name: token for name, token in named.items() if token is not None}
        options |= {"cleans_up": True} if cleans_up else {}
        self._options = {"offset": offset, "eos": eos, **named, **options}
        self.cleans_up = cleans_up
        tokenizer.no_padding()
        tokenizer.no_truncation()
        piece, num_tokens = tokenizer.id_to_token, max(tokenizer.get_vocab().values()) + 1
        # mT5's begin with a mark of white space.
        own = own_sentinels(piece, num_tokens, ("", "▁"), wanted=num_sentinels, name=str(file))
        self.offset, self.num_sentinels = offset, own or num_sentinels
        self.size = num_tokens + offset + (0 if own else num_sentinels)
        if not own:
            _add_sentinels(tokenizer, num_sentinels, first_id=num_tokens)
        self.eos_id = self._eos(eos)
        before, has_template = self.frame.before, tokenizer.post_processor is not None
        self.bos_id = self._first_of(_STARTS if bos is None else [bos])
        if bos is None and has_template and self.frame.size:
            self.bos_id = before[0] if before else None
        self.mask_id = self._first_of(_MASKS if mask is None else [mask])
        unk = getattr(tokenizer.model, "unk_token", None)
        unk_id = None if unk is None else self._first_of([unk])
        if type(tokenizer.model).__name__ == "Unigram":  # which does not show it
            unk_id = json.loads(tokenizer.to_str())["model"]["unk_id"]
            unk_id = None if unk_id is None else unk_id + offset
        self.unk_id = -1 if unk_id is None else unk_id
        pad_id = self._first_of(_PADS if pad is None else [pad])
        if pad_id in (self.eos_id, self.bos_id, self.unk_id):
            pad_id = None  # a token that texts have too cannot be told from it
        first = None if offset else tokenizer.id_to_token(0)
        zero_is_padding = first is None or pad_id == 0 or PADDING.fullmatch(first)
        self.pad_id = 0 if zero_is_padding else -1 if pad_id is None else pad_id
        described = json.dumps(self._options, sort_keys=True).encode()
        kind = type(self).__name__
        self.fingerprint = fingerprint_of(kind, self.num_sentinels, described + content)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.file!r}, num_sentinels={self.num_sentinels})"

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [token + self.offset for token in ids] if self.offset else ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[token + self.offset for token in each.ids] for each in found]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return [token + self.offset for token in found.ids], list(found.offsets)

    def encode_pair(self, first: str, second: str, room: int | None = None) -> Pair:
        """Returns two texts as one row of ids; see `Pair`.

        Args:
          room: most ids, the second text losing its end; None for any number.

        Raises:
          InputError: if nothing of the second text fits.
        """
        both = self._tokenizer.encode(first, second)
        places = [at for at, text in enumerate(both.sequence_ids) if text == 1]
        cut = 0 if room is None else max(len(both.ids) - room, 0)
        if cut and cut >= len(places):
            raise InputError(
                f"a pair of {len(both.ids)} tokens: the model takes {room}, and the first text "
                "leaves no room for the second; shorten it"
            )
        left_out = set(places[len(places) - cut :])
        kept = [at for at in range(len(both.ids)) if at not in left_out]
        offsets = [both.offsets[at] for at in kept if both.sequence_ids[at] == 1]
        return Pair(
            [both.ids[at] + self.offset for at in kept],
            [both.type_ids[at] for at in kept],
            places[0] if places else 0,
            offsets,
            cut,
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
        known = [
            token - self.offset
            for token in text_ids(self, ids)
            if 0 <= token < self.size and token != self.pad_id
        ]
        text = self._tokenizer.decode(known, skip_special_tokens=False)
        return _cleaned(text) if self.cleans_up else text

    def piece(self, token_id: int) -> str:
        token = int(token_id) - self.offset
        if token == -1 and self.offset:
            return "<pad>"
        piece = self._tokenizer.id_to_token(token) if token >= 0 else None
        return f"<id_{int(token_id)}>" if piece is None else piece

    def id_of(self, piece: str) -> int | None:
        return 0 if self.offset and piece == "<pad>" else self._first_of([piece])

    def as_seqio(self) -> Any:
        from t5lite.data.vocabularies.seqio_class import seqio_class

        return seqio_class()(self)

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
        return next((found + self.offset for found in ids if found is not None), None)

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

    @property
    def added(self) -> set[int]:
        """Ids of tokens that are tokens also where a text spells them."""
        return {token + self.offset for token in self._tokenizer.get_added_tokens_decoder()}

    def to_json(self) -> str:
        """Returns the `tokenizer.json` of all tokens, sentinels included, without `offset`."""
        return self._tokenizer.to_str()


class HuggingFaceTokenizer(_Tokenizer):
    """A `tokenizer.json` file, whose template of special tokens only `frame` adds.

    Args:
      file: local or remote path.
      num_sentinels: how many sentinels to add after the file's ids; a file that ends with its own,
        as T5's does, keeps those.
      offset: 1 raises all ids by one, so that 0 is padding also where the file's id 0 is not
        (GPT-2's is `!`); a model that was trained without then needs its embeddings moved down.
      eos: the end-of-sequence token; None: the first of `</s>`, `<|endoftext|>`, `<eos>`,
        `<|end_of_text|>`, `[EOS]`, `[SEP]` that there is.
      bos: the token that texts start with; None: the one that the file's template starts with, or
        without a template the first of `<s>`, `<bos>`, `<|begin_of_text|>`, `[CLS]` that there is.
      mask: the token that masks; None: `[MASK]` or `<mask>`.
      pad: the padding token; None: `<pad>`, `[PAD]`, `<|padding|>` or `<|pad|>`.
      cleans_up: whether decoded texts lose the spaces before punctuation and English contractions,
        as where a folder of transformers has `clean_up_tokenization_spaces`.

    Raises:
      InputError: if the file is missing or damaged, or has no EOS.
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
    ):
        self._open(
            file,
            read_file(as_path(file), "tokenizer file"),
            num_sentinels=num_sentinels,
            offset=offset,
            eos=eos,
            bos=bos,
            mask=mask,
            pad=pad,
            cleans_up=cleans_up,
        )

    @classmethod
    def from_json(
        cls,
        content: str,
        name: str,
        *,
        num_sentinels: int = 0,
        offset: int = 0,
        cleans_up: bool = False,
        **tokens: str | None,
    ) -> "HuggingFaceTokenizer":
        """Returns the vocabulary of what would stand in a `tokenizer.json`.

        Args:
          content: the JSON.
          name: for messages, in place of a path.
          num_sentinels: as for the class.
          offset: as for the class.
          cleans_up: as for the class.
          **tokens: `eos`, `bos`, `mask`, `pad`, as for the class.
        """
        made = cls.__new__(cls)
        tokens.setdefault("eos", None)
        options: dict[str, Any] = {"num_sentinels": num_sentinels, "offset": offset}
        made._open(name, content.encode(), cleans_up=cleans_up, **options, **tokens)
        return made

    def _open(self, file: str | os.PathLike, content: bytes, **options: Any) -> None:
        try:
            tokenizer = import_tokenizers().Tokenizer.from_buffer(content)
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(
                f"{file} is not a tokenizer.json, or is damaged: {error}; restore it"
            ) from error
        super().__init__(tokenizer, file, content, **options)


class WordPiece(_Tokenizer):
    """BERT's `vocab.txt`: a piece a line, `##` on those that continue a word.

    Args:
      file: local or remote path.
      num_sentinels: how many sentinels to add after the file's ids.
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
        if "[CLS]" in pieces and "[SEP]" in pieces:
            ends = [(token, pieces[token]) for token in ("[CLS]", "[SEP]")]
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                special_tokens=ends,
            )
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


def _cleaned(text: str) -> str:
    """Returns a text without spaces before punctuation, as transformers cleans it."""
    for written in (".", "?", "!", ","):
        text = text.replace(f" {written}", written)
    text = text.replace(" ' ", "'")
    for written in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {written}", written)
    return text


def _add_sentinels(tokenizer: Any, count: int, *, first_id: int) -> None:
    token = import_tokenizers().AddedToken
    names = [f"<extra_id_{index}>" for index in reversed(range(count))]
    tokenizer.add_tokens([token(name, normalized=False) for name in names])
    found = [tokenizer.token_to_id(name) for name in names]
    if found != list(range(first_id, first_id + count)):
        raise InputError(
            f"num_sentinels={count}: the tokenizer's ids have gaps, or some sentinels are among "
            "them already; add all of them to the file itself",
            field="num_sentinels",
        )
