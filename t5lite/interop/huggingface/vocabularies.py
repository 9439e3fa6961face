"""The tokenizers of Hugging Face folders as vocabularies with the same ids."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from t5lite.data import Bytes, HuggingFaceTokenizer, MappedSentencePiece, Vocabulary
from t5lite.data.paths import as_path, read_file
from t5lite.data.vocabularies.tokenizer_files import import_tokenizers
from t5lite.errors import InputError, unknown
from t5lite.interop.huggingface.sentencepiece_tokenizers import (
    CONTROL,
    USER_DEFINED,
    from_sentencepiece,
    read_sentencepiece,
)
from t5lite.interop.huggingface.tokenizer_building import (
    Draft,
    Made,
    Parts,
    byte_pair_merges,
    finish,
)
from t5lite.interop.huggingface.tokenizer_classes import CLASSES, UNKNOWN, build
from t5lite.interop.huggingface.tokenizer_settings import (
    JSON,
    Settings,
    Token,
    read_json,
    read_settings,
)


def read_vocabulary(folder: str | os.PathLike, *, lowercase: bool = False) -> Vocabulary | None:
    """Opens the tokenizer of a Hugging Face folder; None if it has none.

    `tokenizer.json` is preferred; else SentencePiece's files of T5, PEGASUS, XLM-R, LLaMA, Gemma
    and Marian, BERT's `vocab.txt`, and GPT-2's and RoBERTa's `vocab.json` and `merges.txt` are
    read. ByT5's has no file, but a name. Ids are the tokenizer's, and `frame` adds what it adds.

    Args:
      folder: local or remote.
      lowercase: whether texts are lower-cased first, as sentence-transformers may have it.

    Raises: InputError for a damaged file, or unknown ids.
    """
    root = as_path(folder)
    settings = read_settings(root)
    if (root / JSON).exists() and settings.kind not in ("ByT5", "Marian"):
        tokenizer = _read_json(root / JSON, settings)
        return _vocabulary(tokenizer, root / JSON, settings, lowercase=lowercase)
    if settings.kind == "ByT5":
        return read_bytes(root, settings)
    if all((root / name).exists() for name in (SOURCE, TARGET, "vocab.json")):
        return read_marian(root, settings)
    for files, read in (
        *(((name,), read_pieces) for name in MODELS),
        (("vocab.txt",), read_word_pieces),
        (("vocab.json", "merges.txt"), read_byte_pairs),
    ):
        if all((root / name).exists() for name in files):
            tokenizer = read(root, settings)
            return _vocabulary(tokenizer, root / files[0], settings, lowercase=lowercase)
    return None


def _read_json(path: Any, settings: Settings) -> Made:
    """Returns the tokenizer of a `tokenizer.json`, as it is or rebuilt by its class."""
    content = read_file(path, "tokenizer file").decode("utf-8", errors="replace")
    library = import_tokenizers()
    try:
        tokenizer = library.Tokenizer.from_str(content)
        parts = _parts(json.loads(content), tokenizer, settings)
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(
            f"{path} is not a tokenizer.json, or is damaged: {error}; restore it"
        ) from error
    kind = settings.kind
    if kind in UNKNOWN:
        raise InputError(
            f"{path.parent} names a {kind}Tokenizer, which makes something else of tokenizer.json "
            "that is not known here; if the file is right as it is, write "
            '"tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json'
        )
    try:
        if kind in CLASSES:
            return build(kind, parts, settings)
        return finish(Draft(tokenizer, {}), parts, settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parts(content: Mapping[str, Any], tokenizer: Any, settings: Settings) -> Parts:
    """Returns a class's parts in a `tokenizer.json`."""
    model, normalizer = content["model"], content.get("normalizer") or {}
    merges = [
        (left, right)
        for merge in model.get("merges", [])
        for left, right in [merge.split(" ") if isinstance(merge, str) else merge]
    ]
    charsmaps = [
        base64.b64decode(step["precompiled_charsmap"])
        for step in (normalizer, *normalizer.get("normalizers", []))
        if step.get("type") == "Precompiled" and step.get("precompiled_charsmap")
    ]
    return Parts(
        model["vocab"],
        merges,
        charsmaps[0] if charsmaps else None,
        tokenizer.post_processor,
        whole=True,
        additional=settings.additional,
    )


def _vocabulary(
    read: Made, path: Any, settings: Settings, *, lowercase: bool
) -> HuggingFaceTokenizer:
    """Returns a tokenizer as a vocabulary, if its ids are those of the folder."""
    tokenizer, options = read.tokenizer, settings.options
    if options.get("split_special_tokens"):
        raise InputError(
            f"split_special_tokens = true in {path.parent / 'tokenizer_config.json'} is not "
            "supported: special tokens in a text are tokens; set it to false",
            field="split_special_tokens",
        )
    for number, token in sorted(settings.added.items()):
        stored = tokenizer.token_to_id(token["content"])
        if stored != number:
            raise InputError(
                f"{path.parent} adds {token['content']!r} as id {number}, and in {path.name} it is "
                f"{stored}; {ADVICE}"
            )
    if lowercase:
        _lower(tokenizer)
    model = type(tokenizer.model).__name__
    cleans = options.get("clean_up_tokenization_spaces", False) and (
        model != "BPE" or options.get(_EVEN_BPE, False)
    )
    return HuggingFaceTokenizer.from_json(
        tokenizer.to_str(), str(path), cleans_up=bool(cleans), **_special_tokens(read)
    )


def _lower(tokenizer: Any) -> None:
    """Lower-cases texts first, unless the tokenizer does so itself."""
    normalizers = import_tokenizers().normalizers
    content = json.loads(tokenizer.to_str())["normalizer"] or {}
    for step in (content, *content.get("normalizers", [])):
        if step.get("type") == "Lowercase" or step.get("lowercase"):
            return
    steps = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


_EVEN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


def _special_tokens(read: Made) -> dict[str, Any]:
    """Returns the special tokens by `HuggingFaceTokenizer`'s names."""
    tokenizer, names = read
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    texts = {name: text for name, text in names.items() if tokenizer.token_to_id(text) is not None}
    return {
        "eos": texts.get("eos", texts.get("sep")),
        "bos": texts.get("bos", texts.get("cls")),
        "mask": texts.get("mask"),
        # Some name a token of texts for padding, indistinguishable from text.
        "pad": texts["pad"] if texts.get("pad") in special else None,
    }


MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model")
SOURCE, TARGET = "source.spm", "target.spm"
MODEL_OF = {  # by class, what its file is called
    "CodeLlama": "tokenizer.model",
    "Gemma": "tokenizer.model",
    "Llama": "tokenizer.model",
    "Pegasus": "spiece.model",
    "XLMRoberta": "sentencepiece.bpe.model",
}
_UNIGRAMS = ("Albert", "MBart", "MBart50", "Pegasus", "T5", "XLMRoberta")
_BYTE_PAIRS = ("CodeLlama", "Gemma", "Llama")
_BYTE_LEVELS = ("GPT2", "GPTNeoX", "Roberta")


def read_bytes(root: Any, settings: Settings) -> Vocabulary:
    """Returns ByT5's vocabulary, which has no file."""
    listed = [token["content"] for token in settings.extra or []]
    names = [text for text in listed if "extra_id" in text]
    count = settings.options.get("extra_ids") or 125
    falling = [f"<extra_id_{number}>" for number in reversed(range(len(names)))]
    if names not in (falling, falling[::-1]):
        raise InputError(
            f"{root / 'tokenizer_config.json'} lists sentinels in another order than 0, 1, 2, … or "
            "the reverse, which is not known here; list them in order"
        )
    ascending = not names or names[0] == "<extra_id_0>"
    return Bytes(len(names) or count, spelled=True, ascending=ascending)


def read_pieces(root: Any, settings: Settings) -> Made:
    """Returns the tokenizer of a SentencePiece file; InputError for damage or unknown classes."""
    path = next(root / name for name in MODELS if (root / name).exists())
    content = read_file(path, "SentencePiece model file")
    model, kind = read_sentencepiece(content, path), settings.kind
    if not settings.is_named and [piece.piece for piece in model.pieces[:2]] == ["<pad>", "</s>"]:
        kind = "T5"
    if not kind:
        return from_sentencepiece(model, settings)
    if kind not in (*_UNIGRAMS, *_BYTE_PAIRS):
        raise refused(path, kind)
    vocab: Any = [(piece.piece, piece.score) for piece in model.pieces]
    merges: list[tuple[str, str]] = []
    if kind in _BYTE_PAIRS:
        vocab = {text: number for number, (text, _) in enumerate(vocab)}
        merges = byte_pair_merges(vocab)
    listed: list[Token] = [
        {"content": piece.piece, "normalized": False, "special": piece.type == CONTROL}
        for piece in model.pieces
        if piece.type in (CONTROL, USER_DEFINED)
    ]
    parts = Parts(
        vocab, merges, model.normalizer_spec.precompiled_charsmap or None, additional=listed
    )
    return _built(path, kind, parts, settings)


def read_marian(root: Any, settings: Settings) -> Vocabulary:
    """Returns Marian's vocabulary: pieces of two models, ids of `vocab.json`.

    The punctuation of sacremoses, which transformers uses where installed, is left out.
    """
    if settings.options.get("separate_vocabs"):
        raise InputError(
            f"{root / 'tokenizer_config.json'} says separate_vocabs: sources and targets have ids "
            "of their own, which is not supported: a t5lite model has one vocabulary"
        )
    ids = read_json(root / "vocab.json")
    eos, unk, pad = (
        settings.text(name, default)
        for name, default in (("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))
    )
    return MappedSentencePiece(
        root / SOURCE,
        ids,
        tokens={"eos": eos, "unk": unk, "pad": pad},
        after=[eos],
        target_file=root / TARGET,
        origin="Marian",
        whole=list(dict.fromkeys([eos, unk, pad])),
    )


def read_word_pieces(root: Any, settings: Settings) -> Made:
    """Returns the tokenizer of BERT's `vocab.txt`."""
    path, kind = root / "vocab.txt", settings.kind
    if settings.is_named and kind != "Bert":
        raise refused(path, kind)
    text = read_file(path, "vocabulary file").decode("utf-8", errors="replace")
    lines = text.removesuffix("\n").split("\n")
    ids = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    names = ("unk", "[UNK]"), ("cls", "[CLS]"), ("sep", "[SEP]"), ("pad", "[PAD]")
    tokens = [settings.text(*name) for name in (*names, ("mask", "[MASK]"))]
    if missing := [token for token in tokens if token not in ids]:
        raise InputError(f"{path} lacks {', '.join(missing)}: it is not BERT's, or damaged")
    return _built(path, "Bert", Parts(ids, additional=settings.additional), settings)


def read_byte_pairs(root: Any, settings: Settings) -> Made:
    """Returns the tokenizer of `vocab.json` and `merges.txt`, GPT-2's and RoBERTa's."""
    path, kind = root / "vocab.json", settings.kind
    if kind not in _BYTE_LEVELS:
        raise refused(path, kind)
    lines = read_file(root / "merges.txt", "file of merges").decode("utf-8", errors="replace")
    pairs = [
        (left, right)
        for line in lines.split("\n")
        if not line.startswith("#version") and line.strip()
        for left, _, right in [line.rstrip().partition(" ")]
    ]
    parts = Parts(read_json(path), pairs, additional=settings.additional)
    return _built(path, kind, parts, settings)


def _built(path: Any, kind: str, parts: Parts, settings: Settings) -> Made:
    if kind not in CLASSES:
        raise unknown("class of tokenizers", kind, CLASSES)
    try:
        return build(kind, parts, settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


ADVICE = (
    "save it as tokenizer.json instead: "
    "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)


def refused(path: Any, kind: str) -> InputError:
    """Returns the error for an unknown class."""
    return InputError(
        f"{path}: what ids a {kind + 'Tokenizer' if kind else 'tokenizer of no named class'} gives "
        f"its pieces is not known; {ADVICE}"
    )


def to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
