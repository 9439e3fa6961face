"""Tokenizers of Hugging Face folders without a `tokenizer.json`."""

import json
from collections.abc import Mapping
from typing import Any

from t5lite.data import Bytes, MappedSentencePiece, Vocabulary
from t5lite.data.paths import read_file
from t5lite.errors import InputError, unknown
from t5lite.interop.huggingface.sentencepiece_tokenizers import (
    CONTROL,
    USER_DEFINED,
    from_sentencepiece,
    read_sentencepiece,
)
from t5lite.interop.huggingface.tokenizer_building import Made, Parts, byte_pair_merges
from t5lite.interop.huggingface.tokenizer_classes import CLASSES, build
from t5lite.interop.huggingface.tokenizer_settings import Settings, Token, read_json

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
    """Returns the tokenizer of a SentencePiece file.

    Raises:
      InputError: if the file is damaged, or its class is not known.
    """
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

    What transformers does to punctuation where sacremoses is installed is not done.
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
    """Returns the error about a class that is not known."""
    return InputError(
        f"{path}: what ids a {kind + 'Tokenizer' if kind else 'tokenizer of no named class'} gives "
        f"its pieces is not known; {ADVICE}"
    )


def to_json(content: Mapping[str, Any]) -> bytes:
    """Returns the content of a JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
