"""Tokenizers as transformers 5 builds them: by class, from the parts of a folder's files.

A class takes vocabulary, merges and precompiled normalization from whichever file has them, even
from a `tokenizer.json`, and builds the rest by the switches of `tokenizer_config.json`.

Source: transformers 5, `models/*/tokenization_*.py` and `convert_slow_tokenizer`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.data.vocabularies.tokenizer_files import import_tokenizers
from t5lite.errors import InputError
from t5lite.interop.huggingface.tokenizer_building import (
    Draft,
    Made,
    Parts,
    as_token,
    finish,
    template,
)
from t5lite.interop.huggingface.tokenizer_settings import Settings

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


def build(kind: str, parts: Parts, settings: Settings) -> Made:
    """Returns the tokenizer of one of `CLASSES`; InputError for parts of another class."""
    try:
        return finish(CLASSES[kind](parts, settings), parts, settings)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"a {kind}Tokenizer cannot be made of it: {error}; restore it") from error


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
    library, unk = import_tokenizers(), settings.text("unk", "<unk>")
    tokenizer = _bpe(parts, fuse_unk=True, unk_token=unk, byte_fallback=True)
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
    named = {"unk_token": settings.text("unk", "<unk>")} if unk else {}
    tokenizer = _bpe(parts, fuse_unk=True, byte_fallback=True, **named)
    legacy = options.get("legacy", False) and not unk
    scheme = ("always" if legacy else "first") if spaced else "never"
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme, split=False
    )
    tokenizer.decoder = _bytes_decoder(strips=spaced or unk)
    return Draft(tokenizer, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})


def _mbart(parts: Parts, settings: Settings, *, is_50: bool = False) -> Draft:
    library, codes = import_tokenizers(), _MBART50 if is_50 else _MBART
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

    def processor(tokenizer: Any, texts: Mapping[str, str]) -> Any:
        if is_50:
            return template(tokenizer, [language], [texts["eos"]])
        return template(tokenizer, [], [texts["eos"], language])

    return Draft(tokenizer, tokens, additional, processor)


def _pegasus(parts: Parts, settings: Settings) -> Draft:
    library, offset = import_tokenizers(), settings.options.get("offset", 103)
    scores, unk = parts.scores, settings.text("unk", "<unk>")
    sentence = settings.options.get("mask_token_sent")
    if not parts.whole:
        _check_first(scores, "<pad>, </s>, <unk>")
        # The named one changes places with the other, as in transformers.
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
    tokenizer.normalizer = normalizers.Sequence([first, normalizers.Replace(regex(r" {2,}"), " ")])
    _by_space(tokenizer)
    listed = [as_token(token)["content"] for token in parts.additional or ()]
    additional = [] if (sentence or "<mask_1>") in listed else [sentence or "<mask_1>"]
    additional += [f"<unk_{number}>" for number in range(2, offset)]
    tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"}
    return Draft(tokenizer, tokens, additional, _around(None, "eos"))


def _roberta(parts: Parts, settings: Settings) -> Draft:
    spaced = settings.options.get("add_prefix_space", False)
    trims = settings.options.get("trim_offsets", True)

    def processor(tokenizer: Any, texts: Mapping[str, str]) -> Any:
        ends = [(texts[name], tokenizer.token_to_id(texts[name])) for name in ("sep", "cls")]
        return import_tokenizers().processors.RobertaProcessing(*ends, trims, spaced)

    tokens = _XLM_ROBERTA_TOKENS | {"mask": "<mask>"}
    return Draft(_byte_level(parts, settings), tokens, processor=processor)


def _t5(parts: Parts, settings: Settings) -> Draft:
    count = settings.options.get("extra_ids", 100)
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
        raise InputError(
            f"extra_ids = {count}, and {len(listed)} sentinels are listed", field="extra_ids"
        )
    tokenizer = _unigram(scores, 2, parts.charsmap)
    _by_word(tokenizer)
    tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    return Draft(tokenizer, tokens, additional, _around(None, "eos"))


def _xlm_roberta(parts: Parts, settings: Settings) -> Draft:
    tokenizer = _unigram(_fairseq(parts, settings), 3, parts.charsmap)
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
    "MBart50": functools.partial(_mbart, is_50=True),
    "Pegasus": _pegasus,
    "Roberta": _roberta,
    "T5": _t5,
    "XLMRoberta": _xlm_roberta,
}
# transformers' classes whose vocabularies are unsupported.
_UNKNOWN = (
    "Barthez BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot BlenderbotSmall "
    "CLIP CTRL Camembert Canine Clvp Cohere Cpm CpmAnt DPRQuestionEncoder Deberta DebertaV2 Dia "
    "Esm Esmc FSMT Flaubert Funnel GPTNeoXJapanese GPTSw3 Herbert Lasr LayoutLMv2 LayoutLMv3 "
    "LayoutXLM Luke M2M100 MLuke MPNet MarkupLM MyT5 Nllb Nougat OpenAIGPT PLBart Perceiver "
    "Phobert ProphetNet Qwen2 Qwen3_5 Reformer RemBert RoCBert RoFormer SeamlessM4T Siglip "
    "Siglip2 Speech2Text SpeechT5 Splinter Tapas Tipsv2 Udop VideoPrism Whisper XGLM XLM XLNet"
)
UNKNOWN = frozenset(_UNKNOWN.split())
_XLM_ROBERTA_TOKENS: dict[str, Any] = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_XLM_ROBERTA_TOKENS |= {"sep": "</s>", "pad": "<pad>", "cls": "<s>"}


def _check_first(scores: Sequence[tuple[str, float]], expected: str) -> None:
    first = ", ".join(piece for piece, _ in scores[:3])
    if first != expected:
        raise InputError(f"it begins with the pieces {first}, not with {expected}")


def _fairseq(
    parts: Parts, settings: Settings, codes: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """Returns pieces by id: fairseq's special tokens, the pieces from the fourth on, a mask."""
    if parts.whole:
        return parts.scores
    _check_first(parts.scores, "<unk>, <s>, </s>")
    names = (("bos", "<s>"), ("pad", "<pad>"), ("eos", "</s>"), ("unk", "<unk>"))
    first_four = [(settings.text(name, default), 0.0) for name, default in names]
    last = [*codes, settings.text("mask", "<mask>")]
    return [*first_four, *parts.scores[3:], *((text, 0.0) for text in last)]


def _bpe(parts: Parts, **options: Any) -> Any:
    library = import_tokenizers()
    return library.Tokenizer(library.models.BPE(parts.ids, list(parts.merges), **options))


def _unigram(scores: Sequence[tuple[str, float]], unk_id: int, charsmap: bytes | None) -> Any:
    """Returns a tokenizer with SentencePiece's precompiled normalization, if any."""
    library = import_tokenizers()
    tokenizer = library.Tokenizer(library.models.Unigram(scores, unk_id=unk_id))
    if charsmap:
        tokenizer.normalizer = library.normalizers.Precompiled(charsmap)
    return tokenizer


def _byte_level(parts: Parts, settings: Settings) -> Any:
    library = import_tokenizers()
    tokenizer = _bpe(parts, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    spaced = bool(settings.options.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _by_word(tokenizer: Any, *, prefixed: bool = True) -> None:
    """Splits texts at white space and leaves one space before each word."""
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
    """Returns a function for a template of one special token at each end."""

    def processor(tokenizer: Any, texts: Mapping[str, str]) -> Any:
        return template(tokenizer, [texts[first]] if first else [], [texts[last]])

    return processor
