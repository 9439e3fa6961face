"""Tokenizers of Hugging Face folders that have no `tokenizer.json`: what their files amount to."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.data import Bytes, HuggingFaceTokenizer, MappedSentencePiece, SentencePiece, Vocabulary
from t5lite.data.tokenizers_vocabularies import import_tokenizers
from t5lite.data.vocabularies import open_sentencepiece, read_file
from t5lite.errors import InputError
from t5lite.interop.huggingface.tokenizer_settings import Settings, read_json

MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model")
SOURCE, TARGET = "source.spm", "target.spm"
MODEL_OF = {  # by class, what its file is called
    "CodeLlama": "tokenizer.model",
    "Gemma": "tokenizer.model",
    "Llama": "tokenizer.model",
    "Pegasus": "spiece.model",
    "XLMRoberta": "sentencepiece.bpe.model",
}
_PEGASUS_OFFSET = 103

_WORD_PIECES = ("", "Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "MobileBert")
_ROBERTA = ("Roberta", "Bart", "Longformer", "LED", "Mvp")
_T5 = ("T5", "MT5", "UMT5")


def read_bytes(root: Any, settings: Settings) -> Vocabulary:
    """Returns ByT5's vocabulary, which has no file."""
    del root
    sentinels = [token for token in settings.others if "extra_id" in token]
    return Bytes(len(sentinels) or settings.options.get("extra_ids") or 125)


def read_sentencepiece(root: Any, settings: Settings) -> Vocabulary:
    """Returns the vocabulary of a SentencePiece file, with the ids that its class gives it.

    Raises:
      InputError: for classes that do more than to shift ids, and for damaged files.
    """
    path = next(root / name for name in MODELS if (root / name).exists())
    processor = open_sentencepiece(read_file(path, "SentencePiece model file"), str(path))
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    kind = settings.kind or ("T5" if pieces[:2] == ["<pad>", "</s>"] else "")
    if kind in _T5:
        given = [token for token in settings.others if token.startswith("<extra_id_")]
        count = settings.options.get("extra_ids", len(given) or 100)
        vocabulary: Vocabulary = SentencePiece(path, 0 if "<extra_id_0>" in pieces[-1] else count)
    elif kind in _SHIFTS:
        vocabulary = _SHIFTS[kind](path, pieces, settings)
    else:
        raise _refused(path, kind)
    for number, token in settings.added.items():
        if vocabulary.piece(number).removeprefix("▁") != token["content"]:
            raise InputError(
                f"{root} adds {token['content']!r} as id {number}, where {path.name} has "
                f"{vocabulary.piece(number)!r}; {_ADVICE}"
            )
    return vocabulary


def read_marian(root: Any, settings: Settings) -> Vocabulary:
    """Returns Marian's vocabulary: pieces of two models, ids of `vocab.json`.

    What transformers does to punctuation where sacremoses is installed is not done.
    """
    if settings.options.get("separate_vocabs"):
        raise InputError(
            f"{root / 'tokenizer_config.json'} says separate_vocabs: sources and targets have ids "
            "of their own, and t5lite has one vocabulary; there is no way to open this model"
        )
    ids = read_json(root / "vocab.json")
    eos, unk, pad = (
        settings.tokens.get(name, default)
        for name, default in (("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))
    )
    return MappedSentencePiece(
        root / SOURCE,
        ids,
        tokens={"eos": eos, "unk": unk, "pad": pad},
        after=[eos],
        target_file=root / TARGET,
        origin="Marian",
    )


def read_word_pieces(root: Any, settings: Settings) -> Vocabulary:
    """Returns the vocabulary of BERT's `vocab.txt`."""
    path = root / "vocab.txt"
    if settings.kind not in _WORD_PIECES:
        raise _refused(path, settings.kind)
    names = ("unk", "[UNK]"), ("cls", "[CLS]"), ("sep", "[SEP]"), ("pad", "[PAD]")
    tokens = {name: settings.tokens.get(name, text) for name, text in (*names, ("mask", "[MASK]"))}
    text = read_file(path, "vocabulary file").decode("utf-8")
    lines = text.removesuffix("\n").split("\n")
    pieces = {piece.removesuffix("\r"): number for number, piece in enumerate(lines)}
    if missing := [token for token in tokens.values() if token not in pieces]:
        raise InputError(f"{path} lacks {', '.join(missing)}: it is not BERT's, or damaged")
    library = import_tokenizers()
    tokenizer = library.Tokenizer(library.models.WordPiece(pieces, unk_token=tokens["unk"]))
    tokenizer.normalizer = library.normalizers.BertNormalizer(
        lowercase=settings.options.get("do_lower_case", True),
        handle_chinese_chars=settings.options.get("tokenize_chinese_chars", True),
        strip_accents=settings.options.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece(prefix="##")
    cls, sep = tokens["cls"], tokens["sep"]
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, pieces[cls]), (sep, pieces[sep])],
    )
    return _made(tokenizer, path, settings, tokens)


def read_byte_pairs(root: Any, settings: Settings) -> Vocabulary:
    """Returns the vocabulary of `vocab.json` and `merges.txt`, GPT-2's and RoBERTa's."""
    path, kind = root / "vocab.json", settings.kind
    if kind not in (*_ROBERTA, "GPT2"):
        raise _refused(path, kind)
    merges = read_file(root / "merges.txt", "file of merges").decode("utf-8").split("\n")
    pairs = [
        tuple(line.split())
        for number, line in enumerate(merges)
        if line.strip() and not (number == 0 and line.startswith("#version"))
    ]
    library, ids = import_tokenizers(), read_json(path)
    try:
        tokenizer = library.Tokenizer(library.models.BPE(ids, pairs))
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{path} or merges.txt is damaged: {error}; restore them") from error
    spaced = bool(settings.options.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokens, processors = dict(settings.tokens), library.processors
    if kind == "GPT2":
        end = "<|endoftext|>"
        tokens = {"bos": end, "eos": end, "unk": end} | tokens
    else:
        first, last = tokens.get("bos", "<s>"), tokens.get("eos", "</s>")
        defaults = {"bos": first, "eos": last, "cls": first, "sep": last}
        tokens = defaults | {"unk": "<unk>", "pad": "<pad>", "mask": "<mask>"} | tokens
    made = _add(tokenizer, path, settings, tokens)
    begins = kind != "GPT2" or settings.options.get("add_bos_token", False)
    if kind != "GPT2":
        ends = [(tokens[name], made.token_to_id(tokens[name])) for name in ("sep", "cls")]
        made.post_processor = processors.RobertaProcessing(*ends, True, spaced)
    elif begins:
        bos = tokens["bos"]
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, made.token_to_id(bos))],
        )
    else:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    return _vocabulary(made, path, tokens)


def _made(tokenizer: Any, path: Any, settings: Settings, tokens: Mapping[str, str]) -> Vocabulary:
    return _vocabulary(_add(tokenizer, path, settings, tokens), path, tokens)


def _vocabulary(tokenizer: Any, path: Any, tokens: Mapping[str, str]) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_json(
        tokenizer.to_str(), str(path), **chosen(tokenizer, tokens)
    )


def chosen(tokenizer: Any, tokens: Mapping[str, str]) -> dict[str, Any]:
    """Returns the special tokens as `HuggingFaceTokenizer` names them.

    Args:
      tokenizer: of the `tokenizers` library.
      tokens: by the names of `Settings.tokens`.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known = {name: text for name, text in tokens.items() if tokenizer.token_to_id(text) is not None}
    return {
        "eos": known.get("eos", known.get("sep")),
        "mask": known.get("mask"),
        # Some name a token of the text for padding, which nobody could tell from it.
        "pad": known["pad"] if known.get("pad") in special else None,
    }


def _add(tokenizer: Any, path: Any, settings: Settings, tokens: Mapping[str, str]) -> Any:
    """Returns the tokenizer with all special and added tokens, each with its own id."""
    library = import_tokenizers()
    known = {
        token["content"]: library.AddedToken(**{"normalized": False} | token)
        for token in settings.added.values()
    }
    for name, text in tokens.items():
        # As published: the mask takes the space before it where spaces are a part of words.
        strips = name == "mask" and settings.kind in _ROBERTA
        known.setdefault(
            text, library.AddedToken(text, lstrip=strips, normalized=False, special=True)
        )
    for text in settings.others:
        known.setdefault(text, library.AddedToken(text, normalized=False, special=True))
    numbers = {token["content"]: number for number, token in settings.added.items()}
    for text in sorted(known, key=lambda text: numbers.get(text, -1)):
        special = getattr(known[text], "special", True)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([known[text]])
        if tokenizer.token_to_id(text) != numbers.get(text, tokenizer.token_to_id(text)):
            raise InputError(
                f"{path.parent} adds {text!r} as id {numbers[text]}, and it would become "
                f"{tokenizer.token_to_id(text)}; {_ADVICE}"
            )
    return tokenizer


def _identity(path: Any, pieces: Sequence[str], settings: Settings) -> Vocabulary:
    """LLaMA's and Gemma's: the model's own ids, a token in front of every text."""
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    if settings.kind == "Gemma":
        names = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
    tokens = {name: settings.tokens.get(name, text) for name, text in names.items()}
    return MappedSentencePiece(
        path,
        {piece: number for number, piece in enumerate(pieces)},
        tokens=tokens,
        before=[tokens["bos"]] if settings.options.get("add_bos_token", True) else [],
        after=[tokens["eos"]] if settings.options.get("add_eos_token", False) else [],
        origin=settings.kind,
    )


def _pegasus(path: Any, pieces: Sequence[str], settings: Settings) -> Vocabulary:
    """PEGASUS's: 103 ids of which most were never used, and then the pieces."""
    _expect(path, pieces, ["<pad>", "</s>", "<unk>"])
    offset = settings.options.get("offset", _PEGASUS_OFFSET)
    ids = {"<pad>": 0, "</s>": 1, "<mask_1>": 2, "<mask_2>": 3}
    ids |= {f"<unk_{number}>": number + 2 for number in range(2, offset)}
    ids |= {piece: number + offset for number, piece in enumerate(pieces) if number > 1}
    tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"}
    return MappedSentencePiece(path, ids, tokens=tokens, after=["</s>"], origin="Pegasus")


def _xlm_roberta(path: Any, pieces: Sequence[str], settings: Settings) -> Vocabulary:
    """XLM-R's: fairseq's four special tokens, the pieces from the fourth on, and a mask."""
    del settings
    _expect(path, pieces, ["<unk>", "<s>", "</s>"])
    ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    ids |= {piece: number + 1 for number, piece in enumerate(pieces) if number > 2}
    tokens = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    return MappedSentencePiece(
        path,
        ids | {"<mask>": len(pieces) + 1},
        tokens=tokens,
        before=["<s>"],
        after=["</s>"],
        origin="XLMRoberta",
    )


_SHIFTS: dict[str, Callable[[Any, Sequence[str], Settings], Vocabulary]] = {
    "CodeLlama": _identity,
    "Gemma": _identity,
    "Llama": _identity,
    "Pegasus": _pegasus,
    "XLMRoberta": _xlm_roberta,
}
_ADVICE = (
    "save it as tokenizer.json instead: "
    "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)


def _expect(path: Any, pieces: Sequence[str], first: Sequence[str]) -> None:
    if list(pieces[: len(first)]) != list(first):
        raise InputError(
            f"{path} begins with the pieces {', '.join(pieces[: len(first)])}, not with "
            f"{', '.join(first)}, so that its ids are not known; {_ADVICE}"
        )


def _refused(path: Any, kind: str) -> InputError:
    return InputError(
        f"{path}: what ids a {kind + 'Tokenizer' if kind else 'tokenizer of no named class'} gives "
        f"its pieces is not known; {_ADVICE}"
    )


def to_json(content: Mapping[str, Any]) -> bytes:
    """Returns the content of a JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
