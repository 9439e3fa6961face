"""Tokenizers as transformers 5 makes them: parts of files, special tokens, templates.

Source: transformers 5, `TokenizersBackend` and `PreTrainedTokenizerBase`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from t5lite.data.vocabularies.tokenizer_files import import_tokenizers
from t5lite.errors import InputError
from t5lite.interop.huggingface.tokenizer_settings import NAMED, Settings, Token


@dataclasses.dataclass
class Parts:
    """The parts of a tokenizer in a folder's files.

    Attributes:
      vocab: the ids of pieces, or of a unigram model pairs of piece and score, in order.
      merges: of BPE, in order.
      charsmap: SentencePiece's precompiled normalization; None for none.
      post_processor: that of a `tokenizer.json`; None without one.
      whole: whether they come from a `tokenizer.json`.
      additional: more special tokens, of a SentencePiece model or a `special_tokens_map.json`.
    """

    vocab: Any
    merges: Sequence[tuple[str, str]] = ()
    charsmap: bytes | None = None
    post_processor: Any = None
    whole: bool = False
    additional: list[Token] | None = None

    @property
    def ids(self) -> dict[str, int]:
        if isinstance(self.vocab, Mapping):
            return dict(self.vocab)
        return {piece: number for number, (piece, _) in enumerate(self.vocab)}

    @property
    def scores(self) -> list[tuple[str, float]]:
        """Pieces with their scores, by id."""
        if isinstance(self.vocab, Mapping):
            raise InputError("its vocabulary has no scores, which the class needs")
        return [(str(piece), float(score)) for piece, score in self.vocab]


@dataclasses.dataclass
class Draft:
    """A tokenizer as its class makes it, before special tokens are added.

    Attributes:
      tokenizer: of the `tokenizers` library.
      tokens: the class's special tokens by name, where no file names them.
      additional: more special tokens, where `extra_special_tokens` lists none.
      processor: makes the class's own template, of the tokenizer and its special tokens; None for
        one by `add_bos_token` and `add_eos_token`, if there is no post-processor yet.
      adds_bos: `add_bos_token` where no file says; None also leaves a post-processor alone.
    """

    tokenizer: Any
    tokens: Mapping[str, Any]
    additional: Sequence[Any] | None = None
    processor: Callable[[Any, Mapping[str, str]], Any] | None = None
    adds_bos: bool | None = None


class Made(NamedTuple):
    """A tokenizer of the `tokenizers` library, with its special tokens by name: `eos`, `mask`, …"""

    tokenizer: Any
    tokens: dict[str, str]


def finish(draft: Draft, parts: Parts, settings: Settings) -> Made:
    """Returns a class's tokenizer with its special tokens and template."""
    tokenizer, tokens = draft.tokenizer, _special_tokens(draft, settings)
    additional = parts.additional if draft.additional is None else draft.additional
    extra = additional if settings.extra is None else settings.extra
    _add(tokenizer, settings, list(tokens.values()), list(map(as_token, extra or ())))
    texts = {name: token["content"] for name, token in tokens.items()}
    if draft.processor is not None:
        tokenizer.post_processor = draft.processor(tokenizer, texts)
        return Made(tokenizer, texts)
    if parts.post_processor is not None:
        tokenizer.post_processor = parts.post_processor
    # The template of a tokenizer.json overrules these two.
    named = {} if parts.whole else settings.options
    configured = {"add_bos_token", "add_eos_token"} & {*named} or draft.adds_bos is not None
    if configured or tokenizer.post_processor is None:
        begins = named.get("add_bos_token", bool(draft.adds_bos)) and "bos" in texts
        ends = named.get("add_eos_token", False) and "eos" in texts
        tokenizer.post_processor = template(
            tokenizer, [texts["bos"]] if begins else [], [texts["eos"]] if ends else []
        )
    return Made(tokenizer, texts)


def template(tokenizer: Any, before: Sequence[str], after: Sequence[str]) -> Any:
    ids = {token: tokenizer.token_to_id(token) for token in (*before, *after)}
    if missing := [token for token, number in ids.items() if number is None]:
        raise InputError(f"the vocabulary lacks {', '.join(missing)}; add them")
    single = " ".join([*before, "$A", *after])
    return import_tokenizers().processors.TemplateProcessing(
        # Pairs are never read, but the library wants a template of them.
        single=single,
        pair=f"{single} {' '.join([*before, '$B:1', *after])}",
        special_tokens=list(ids.items()),
    )


def as_token(token: Any) -> Token:
    """Returns a special token as an argument of `AddedToken`."""
    return {"content": token, "special": True} if isinstance(token, str) else token


def _special_tokens(draft: Draft, settings: Settings) -> dict[str, Token]:
    """Returns the special tokens by name: the folder's, else the class's."""
    tokens = {name: as_token(token) for name, token in draft.tokens.items()} | {**settings.tokens}
    ordered = {name: tokens.get(name) for name in NAMED} | tokens
    return {name: token for name, token in ordered.items() if token is not None}


def _add(
    tokenizer: Any, settings: Settings, named: Sequence[Token], extra: Sequence[Token]
) -> None:
    """Adds tokens in transformers' order: by id, named ones, others.

    Tokens of the class alone are left out where the model has no embedding for them.
    """
    candidates = [token for _, token in sorted(settings.added.items())]
    texts = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    texts |= {token["content"] for token in candidates}
    for token in (*named, *extra):
        if token["content"] not in texts and token not in candidates:
            candidates.append(token)
    listed = [*settings.added.values(), *settings.tokens.values(), *(settings.extra or ())]
    listed_texts = {token["content"] for token in listed if token is not None}
    names = {token["content"] for token in named}
    tokens, size = [], max([tokenizer.get_vocab_size() - 1, *settings.added]) + 1
    for token in candidates:
        text = token["content"]
        if tokenizer.token_to_id(text) is None and text not in listed_texts:
            if settings.num_embeddings is not None and size >= settings.num_embeddings:
                continue
            size += 1
        tokens.append(import_tokenizers().AddedToken(**token))
        tokens[-1].special = tokens[-1].special or text in names
    if tokens:
        tokenizer.add_tokens(tokens)


def byte_pair_merges(ranks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the merges of a SentencePiece BPE model by rank: the lower, the earlier merged."""
    merges = [
        (rank, at, piece[:at], piece[at:])
        for piece, rank in ranks.items()
        for at in range(1, len(piece))
        if piece[:at] in ranks and piece[at:] in ranks
    ]
    return [(left, right) for _, _, left, right in sorted(merges, key=lambda merge: merge[:2])]
