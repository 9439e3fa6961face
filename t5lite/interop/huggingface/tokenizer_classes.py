"""Tokenizers as transformers 5 builds them: by class, from the parts of a folder's files.

A class takes vocabulary, merges and precompiled normalization from whichever file has them, even
from a `tokenizer.json`, and makes the rest anew by the switches of `tokenizer_config.json`.

Source: transformers 5, `models/*/tokenization_*.py`, `TokenizersBackend`, `convert_slow_tokenizer`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from t5lite.data.tokenizers_vocabularies import import_tokenizers
from t5lite.errors import InputError
from t5lite.interop.huggingface.sentencepiece_files import SentencePieceFile
from t5lite.interop.huggingface.tokenizer_settings import NAMED, Settings, Token

_MBART_CODES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT "
    "lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MORE_CODES = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF "
    "pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
_MBART = _MBART_CODES.split()
_MBART50 = _MBART + _MORE_CODES.split()


@dataclasses.dataclass
class Parts:
    """What the files of a folder have of a tokenizer.

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
        """The ids of pieces."""
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
      tokens: the class's special tokens by name, for those that no file names.
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
    """A tokenizer as transformers has it.

    Attributes:
      tokenizer: of the `tokenizers` library.
      tokens: the special tokens by name: `eos`, `mask`, …
    """

    tokenizer: Any
    tokens: dict[str, str]


def build(kind: str, parts: Parts, settings: Settings) -> Made:
    """Returns the tokenizer of a class.

    Args:
      kind: one of `CLASSES`.
      parts: of the folder's files.
      settings: what the folder says.

    Raises:
      InputError: if the parts are not those of the class.
    """
    try:
        return finish(CLASSES[kind](parts, settings), parts, settings)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"a {kind}Tokenizer cannot be made of it: {error}; restore it") from error


def finish(draft: Draft, parts: Parts, settings: Settings) -> Made:
    """Adds special tokens and the template to a class's tokenizer, and returns it."""
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
    said = {"add_bos_token", "add_eos_token"} & {*named} or draft.adds_bos is not None
    if said or tokenizer.post_processor is None:
        begins = named.get("add_bos_token", bool(draft.adds_bos)) and "bos" in texts
        ends = named.get("add_eos_token", False) and "eos" in texts
        tokenizer.post_processor = template(
            tokenizer,
            [texts["bos"]] if begins else [],
            [texts["eos"]] if ends else [],
        )
    return Made(tokenizer, texts)


def template(tokenizer: Any, before: Sequence[str], after: Sequence[str]) -> Any:
    """Returns the post-processor that adds tokens around a text."""
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
    """Returns a special token as `AddedToken` takes it."""
    return {"content": token, "special": True} if isinstance(token, str) else token


def _special_tokens(draft: Draft, settings: Settings) -> dict[str, Token]:
    """Returns the special tokens by name: the folder's, else the class's."""
    own = {name: as_token(token) for name, token in draft.tokens.items()}
    named = {name: token for name in NAMED if (token := {**own, **settings.tokens}.get(name))}
    others = {**own, **settings.tokens}
    return named | {name: token for name, token in others.items() if token is not None}


def _add(
    tokenizer: Any, settings: Settings, named: Sequence[Token], extra: Sequence[Token]
) -> None:
    """Adds tokens in transformers' order: by id, then those with names, then the others.

    Tokens of the class alone are left out where the model has no embedding for them.
    """
    due = [token for _, token in sorted(settings.added.items())]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known |= {token["content"] for token in due}
    for token in (*named, *extra):
        if token["content"] not in known and token not in due:
            due.append(token)
    said = [*settings.added.values(), *settings.tokens.values(), *(settings.extra or ())]
    said_texts = {token["content"] for token in said if token is not None}
    names = {token["content"] for token in named}
    tokens, size = [], max([tokenizer.get_vocab_size() - 1, *settings.added]) + 1
    for token in due:
        if tokenizer.token_to_id(token["content"]) is None and token["content"] not in said_texts:
            if settings.num_embeddings is not None and size >= settings.num_embeddings:
                continue
            size += 1
        tokens.append(import_tokenizers().AddedToken(**token))
        tokens[-1].special = tokens[-1].special or tokens[-1].content in names
    if tokens:
        tokenizer.add_tokens(tokens)


def byte_pair_merges(ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns the merges of a SentencePiece BPE model, whose ids are in the order of merging."""
    merges = [
        (number, at, piece[:at], piece[at:])
        for piece, number in ids.items()
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    return [(left, right) for _, _, left, right in sorted(merges, key=lambda merge: merge[:2])]


# The classes, in the order of the alphabet.


def _albert(parts: Parts, settings: Settings) -> Draft:
    library, options = import_tokenizers(), settings.options
    cls, sep = settings.text("cls", "[CLS]"), settings.text("sep", "[SEP]")
    tokenizer = library.Tokenizer(library.models.Unigram(parts.scores, unk_id=1))
    normalizers = library.normalizers
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not options.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if options.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if parts.charsmap:
        steps.append(normalizers.Precompiled(parts.charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    _by_word(tokenizer, prefixed=options.get("add_prefix_space", True))
    tokenizer.post_processor = template(tokenizer, [cls], [sep])
    tokens = {"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "sep": "[SEP]", "pad": "<pad>"}
    return Draft(tokenizer, tokens | {"cls": "[CLS]", "mask": "[MASK]"})


def _bert(parts: Parts, settings: Settings) -> Draft:
    library, options = import_tokenizers(), settings.options
    unk = settings.text("unk", "[UNK]")
    tokenizer = library.Tokenizer(library.models.WordPiece(parts.ids, unk_token=unk))
    tokenizer.normalizer = library.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece(prefix="##")
    tokens = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    return Draft(tokenizer, tokens, processor=_around("cls", "sep"))


def _code_llama(parts: Parts, settings: Settings) -> Draft:
    draft = _llama(parts, settings, unk=True)
    tokens = {"prefix": "▁<PRE>", "middle": "▁<MID>", "suffix": "▁<SUF>", "eot": "▁<EOT>"}
    tokens |= {"fill": "<FILL_ME>"}
    additional = [*(parts.additional or ()), *tokens.values()]
    return dataclasses.replace(
        draft, tokens={**draft.tokens, **tokens}, additional=additional, adds_bos=True
    )


def _gemma(parts: Parts, settings: Settings) -> Draft:
    library = import_tokenizers()
    tokenizer = library.Tokenizer(
        library.models.BPE(
            vocab=parts.ids,
            merges=list(parts.merges),
            fuse_unk=True,
            unk_token=settings.text("unk", "<unk>"),
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = library.normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = _bytes_decoder(strips=False)
    tokens = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    return Draft(tokenizer, tokens)


def _gpt2(parts: Parts, settings: Settings) -> Draft:
    end = "<|endoftext|>"
    return Draft(_byte_level(parts, settings), {"bos": end, "eos": end, "unk": end})


def _gpt_neox(parts: Parts, settings: Settings) -> Draft:
    tokenizer, end = _byte_level(parts, settings), "<|endoftext|>"
    tokenizer.normalizer = import_tokenizers().normalizers.NFC()
    tokens = {"bos": end, "eos": end, "unk": end, "pad": "<|padding|>"}
    return Draft(tokenizer, tokens, adds_bos=False)


def _llama(parts: Parts, settings: Settings, *, unk: bool = False) -> Draft:
    library, options = import_tokenizers(), settings.options
    spaced = options.get("add_prefix_space")
    spaced = True if spaced is None else spaced
    tokenizer = library.Tokenizer(
        library.models.BPE(
            vocab=parts.ids,
            merges=list(parts.merges),
            fuse_unk=True,
            byte_fallback=True,
            **({"unk_token": settings.text("unk", "<unk>")} if unk else {}),
        )
    )
    legacy = options.get("legacy", False) and not unk
    scheme = ("always" if legacy else "first") if spaced else "never"
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme, split=False
    )
    tokenizer.decoder = _bytes_decoder(strips=spaced or unk)
    return Draft(tokenizer, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})


def _mbart(parts: Parts, settings: Settings) -> Draft:
    return _fairseq_languages(parts, settings, _MBART)


def _mbart50(parts: Parts, settings: Settings) -> Draft:
    return _fairseq_languages(parts, settings, _MBART50)


def _fairseq_languages(parts: Parts, settings: Settings, codes: Sequence[str]) -> Draft:
    library, is_50 = import_tokenizers(), codes is _MBART50
    scores = _fairseq(parts, settings, codes)
    tokenizer = library.Tokenizer(library.models.Unigram(scores, unk_id=3))
    if is_50:
        steps = [library.normalizers.Replace(library.Regex(r" {2,}"), " ")]
        if parts.charsmap:
            steps.insert(0, library.normalizers.Precompiled(parts.charsmap))
        tokenizer.normalizer = library.normalizers.Sequence(steps)
        _by_space(tokenizer)
    else:  # whose precompiled normalization transformers leaves out
        _by_word(tokenizer)
    tokens = _XLM_ROBERTA_TOKENS | {"mask": {"content": "<mask>", "lstrip": True, "special": True}}
    if is_50:
        del tokens["bos"]
    language = settings.options.get("src_lang") or "en_XX"
    more = [as_token(token) for token in parts.additional or ()]
    listed = {token["content"] for token in more}
    additional = [*more, *(code for code in codes if code not in listed)]
    if not is_50:
        additional = [*codes, *(token for token in more if token["content"] not in codes)]

    def processor(made: Any, texts: Mapping[str, str]) -> Any:
        if is_50:
            return template(made, [language], [texts["eos"]])
        return template(made, [], [texts["eos"], language])

    return Draft(tokenizer, tokens, additional, processor)


def _pegasus(parts: Parts, settings: Settings) -> Draft:
    library, offset = import_tokenizers(), settings.options.get("offset", 103)
    scores, unk = parts.scores, settings.text("unk", "<unk>")
    sentence = settings.options.get("mask_token_sent")
    if not parts.whole:
        if [piece for piece, _ in scores[:3]] != ["<pad>", "</s>", "<unk>"]:
            first = ", ".join(piece for piece, _ in scores[:3])
            raise InputError(f"it begins with the pieces {first}, not with <pad>, </s>, <unk>")
        # Whichever is named changes places with the other, in transformers too.
        masks = [settings.text("mask", "<mask_1>"), sentence or "<mask_2>"]
        special = [
            settings.text("pad", "<pad>"),
            settings.text("eos", "</s>"),
            *dict.fromkeys(masks),
        ]
        unused = [(f"<unk_{number}>", -100.0) for number in range(2, offset)]
        scores = [*((text, 0.0) for text in special), *unused, *scores[2:]]
    unk_id = [piece for piece, _ in scores].index(unk)
    tokenizer = library.Tokenizer(library.models.Unigram(scores, unk_id=unk_id))
    normalizers, regex = library.normalizers, library.Regex
    first = normalizers.Replace(regex(r"\n"), " ")
    if parts.charsmap:
        first = normalizers.Precompiled(parts.charsmap)
    spaces = normalizers.Replace(regex(r" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([first, spaces])
    _by_space(tokenizer)
    listed = [as_token(token)["content"] for token in parts.additional or ()]
    additional = [] if (sentence or "<mask_1>") in listed else [sentence or "<mask_1>"]
    additional += [f"<unk_{number}>" for number in range(2, offset)]
    tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"}
    return Draft(tokenizer, tokens, additional, _around(None, "eos"))


def _roberta(parts: Parts, settings: Settings) -> Draft:
    spaced = settings.options.get("add_prefix_space", False)
    trims = settings.options.get("trim_offsets", True)

    def processor(made: Any, texts: Mapping[str, str]) -> Any:
        ends = [(texts[name], made.token_to_id(texts[name])) for name in ("sep", "cls")]
        return import_tokenizers().processors.RobertaProcessing(*ends, trims, spaced)

    tokens = _XLM_ROBERTA_TOKENS | {"mask": "<mask>"}
    return Draft(_byte_level(parts, settings), tokens, processor=processor)


def _t5(parts: Parts, settings: Settings) -> Draft:
    library, count = import_tokenizers(), settings.options.get("extra_ids", 100)
    sentinels = [f"<extra_id_{number}>" for number in range(count)]
    scores = parts.scores
    additional: list[Any] = [*(parts.additional or ())]
    if not parts.whole:
        scores = [*scores, *((sentinel, 0.0) for sentinel in reversed(sentinels))]
    listed = [as_token(token)["content"] for token in additional]
    listed = [text for text in listed if "<extra_id_" in text]
    if not listed:
        additional += sentinels
    elif count > 0 and count != len(listed):
        raise InputError(f"extra_ids = {count}, and {len(listed)} sentinels are listed")
    tokenizer = library.Tokenizer(library.models.Unigram(scores, unk_id=2))
    if parts.charsmap:
        tokenizer.normalizer = library.normalizers.Precompiled(parts.charsmap)
    _by_word(tokenizer)
    tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    return Draft(tokenizer, tokens, additional, _around(None, "eos"))


def _xlm_roberta(parts: Parts, settings: Settings) -> Draft:
    library = import_tokenizers()
    scores = _fairseq(parts, settings)
    tokenizer = library.Tokenizer(library.models.Unigram(scores, unk_id=3))
    if parts.charsmap:
        tokenizer.normalizer = library.normalizers.Precompiled(parts.charsmap)
    _by_word(tokenizer, prefixed=settings.options.get("add_prefix_space", True))
    tokens = _XLM_ROBERTA_TOKENS | {"mask": "<mask>"}
    return Draft(tokenizer, tokens, processor=_around("bos", "eos"))


CLASSES: dict[str, Callable[[Parts, Settings], Draft]] = {
    "Albert": _albert,
    "Bert": _bert,
    "CodeLlama": _code_llama,
    "GPT2": _gpt2,
    "GPTNeoX": _gpt_neox,
    "Gemma": _gemma,
    "Llama": _llama,
    "MBart": _mbart,
    "MBart50": _mbart50,
    "Pegasus": _pegasus,
    "Roberta": _roberta,
    "T5": _t5,
    "XLMRoberta": _xlm_roberta,
}
# Classes of transformers that make something of a vocabulary that is not known here.
_UNKNOWN = (
    "Barthez BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot BlenderbotSmall "
    "CLIP CTRL Camembert Canine Clvp Cohere Cpm CpmAnt DPRQuestionEncoder Deberta DebertaV2 Dia "
    "Esm Esmc FSMT Flaubert Funnel GPTNeoXJapanese GPTSw3 Herbert Lasr LayoutLMv2 LayoutLMv3 "
    "LayoutXLM Luke M2M100 MLuke MPNet MarkupLM MyT5 Nllb Nougat OpenAIGPT PLBart Perceiver "
    "Phobert ProphetNet Qwen2 Qwen3_5 Reformer RemBert RoCBert RoFormer SeamlessM4T Siglip "
    "Siglip2 Speech2Text SpeechT5 Splinter Tapas Tipsv2 Udop VideoPrism Whisper XGLM XLM XLNet"
)
UNKNOWN = frozenset(_UNKNOWN.split())
_XLM_ROBERTA_TOKENS: dict[str, Any] = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
}


def _fairseq(
    parts: Parts, settings: Settings, codes: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """Returns pieces by id: fairseq's special tokens, the pieces from the fourth on, a mask."""
    if parts.whole:
        return parts.scores
    if [piece for piece, _ in parts.scores[:3]] != ["<unk>", "<s>", "</s>"]:
        first = ", ".join(piece for piece, _ in parts.scores[:3])
        raise InputError(f"it begins with the pieces {first}, not with <unk>, <s>, </s>")
    names = (("bos", "<s>"), ("pad", "<pad>"), ("eos", "</s>"), ("unk", "<unk>"))
    first_four = [(settings.text(name, default), 0.0) for name, default in names]
    last = [*codes, settings.text("mask", "<mask>")]
    return [*first_four, *parts.scores[3:], *((text, 0.0) for text in last)]


def _byte_level(parts: Parts, settings: Settings) -> Any:
    library = import_tokenizers()
    tokenizer = library.Tokenizer(
        library.models.BPE(
            vocab=parts.ids,
            merges=list(parts.merges),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    spaced = bool(settings.options.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _by_word(tokenizer: Any, *, prefixed: bool = True) -> None:
    """Cuts texts at white space, of which nothing stays but a space before each word."""
    library, scheme = import_tokenizers(), "always" if prefixed else "never"
    words = library.pre_tokenizers.WhitespaceSplit()
    spaces = library.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([words, spaces])
    tokenizer.decoder = library.decoders.Metaspace(replacement="▁", prepend_scheme=scheme)


def _by_space(tokenizer: Any) -> None:
    library = import_tokenizers()
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    tokenizer.decoder = library.decoders.Metaspace("▁", prepend_scheme="always")


def _bytes_decoder(*, strips: bool) -> Any:
    decoders = import_tokenizers().decoders
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if strips else steps)


def _around(first: str | None, last: str) -> Callable[[Any, Mapping[str, str]], Any]:
    """Returns what makes a template of one special token at each end."""

    def processor(tokenizer: Any, texts: Mapping[str, str]) -> Any:
        return template(tokenizer, [texts[first]] if first else [], [texts[last]])

    return processor


def from_sentencepiece(read: SentencePieceFile, settings: Settings) -> Made:
    """Returns the tokenizer of a SentencePiece model that no class is named for.

    Args:
      read: the model.
      settings: what the folder says.
    """
    names = {number: token["content"] for number, token in settings.added.items()}
    kept = {piece.text for number, piece in enumerate(read.pieces) if number not in names}
    texts = [piece.text for piece in read.pieces]
    for number, text in names.items():
        if not read.is_unigram and number < len(texts) and text not in kept:
            texts[number] = text
    tokenizer = plain_sentencepiece(read, texts, legacy=settings.options.get("legacy", True))
    tokens = {
        name: text
        for name, number, text in (
            ("bos", read.bos_id, read.bos_piece),
            ("eos", read.eos_id, read.eos_piece),
            ("unk", read.unk_id, read.unk_piece),
        )
        if number >= 0
    }
    controls = [piece.text for piece in read.pieces if piece.is_control]
    additional = [
        {"content": text, "normalized": False, "special": True}
        for text in controls
        if text not in {piece.text for piece in read.pieces if piece.is_user_defined}
    ]
    if read.adds_prefix:
        added = {number: {**token, "normalized": False} for number, token in settings.added.items()}
        settings = settings._replace(added=added)
    return finish(Draft(tokenizer, tokens, additional), Parts({}), settings)


def plain_sentencepiece(
    read: SentencePieceFile, texts: Sequence[str] | None = None, *, legacy: bool = True
) -> Any:
    """Returns a tokenizer with the ids of SentencePiece, without special tokens or a template.

    Args:
      read: the model.
      texts: of its pieces; None for those that it has.
      legacy: whether each part of a text between special tokens begins with a space, as where
        SentencePiece is asked for each; otherwise the first alone.
    """
    library = import_tokenizers()
    texts = [piece.text for piece in read.pieces] if texts is None else texts
    whole = [text for text, piece in zip(texts, read.pieces, strict=True) if piece.is_user_defined]
    if read.is_unigram:
        scores = [(text, piece.score) for text, piece in zip(texts, read.pieces, strict=True)]
        model = library.models.Unigram(scores, read.unk_id, read.byte_fallback)
    else:
        model = library.models.BPE(
            {text: number for number, text in enumerate(texts)},
            _ranked_merges(read, texts),
            unk_token=read.unk_piece,
            fuse_unk=True,
            byte_fallback=read.byte_fallback,
            ignore_merges=bool(whole),
        )
    tokenizer, normalizers = library.Tokenizer(model), library.normalizers
    steps: list[Any] = []
    if read.charsmap:
        steps.append(normalizers.Precompiled(read.charsmap))
    if read.removes_spaces:
        steps.append(normalizers.Replace(library.Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(library.Regex(" {2,}"), " "))
    if read.escapes_spaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if read.adds_prefix and legacy:  # which Metaspace does not add where there is one
        steps.append(normalizers.Replace(library.Regex(r"\A▁"), "▁▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    cuts: list[Any] = []
    if read.adds_prefix:
        scheme = "always" if legacy else "first"
        cuts.append(library.pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False))
    if whole:
        pattern = "|".join(re.escape(text) for text in sorted(whole, key=len, reverse=True))
        cuts.append(library.pre_tokenizers.Split(library.Regex(pattern), behavior="isolated"))
    if cuts:
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(cuts)
    decoders = [library.decoders.Replace("▁", " ")]
    if read.byte_fallback:
        decoders.append(library.decoders.ByteFallback())
    if read.adds_prefix or read.byte_fallback:
        decoders.append(library.decoders.Fuse())
    if read.adds_prefix:
        decoders.append(library.decoders.Strip(content=" ", left=1))
    tokenizer.decoder = library.decoders.Sequence(decoders)
    return tokenizer


def _ranked_merges(read: SentencePieceFile, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns merges by the scores of what they give; only pieces learned from text are merged."""
    normal = {
        text: (-piece.score, number)
        for number, (text, piece) in enumerate(zip(texts, read.pieces, strict=True))
        if piece.is_normal
    }
    ranked = [
        (*rank, text[:at], text[at:])
        for text, rank in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]
