"""Vocabularies as tokenizer files of a Hugging Face folder, with the same ids."""

import json
import os
from typing import Any, NamedTuple

from t5lite.data import Bytes, HuggingFaceTokenizer, MappedSentencePiece, SentencePiece, Vocabulary
from t5lite.data.paths import as_path, write_whole
from t5lite.data.vocabularies.tokenizer_files import WordPiece, import_tokenizers
from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.interop.huggingface.sentencepiece_tokenizers import (
    CONTROL,
    USER_DEFINED,
    plain_sentencepiece,
    read_sentencepiece,
)
from t5lite.interop.huggingface.tokenizer_settings import JSON
from t5lite.interop.huggingface.vocabularies import MODEL_OF, SOURCE, TARGET, to_json

_WHOLE_CLASS = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is
# The start of a sentinel without a space before it.
_SENTINEL = r"(?<!\s)<extra_id_(?=(?:0|[1-9][0-9]*)>)"


class _Files(NamedTuple):
    """The content of files by name, transformers' class, and options of `tokenizer_config.json`."""

    content: dict[str, bytes]
    kind: str
    options: dict[str, Any]


def write_vocabulary(
    folder: str | os.PathLike, vocabulary: Vocabulary, *, frame: Frame | None = None
) -> None:
    """Writes the files that transformers' AutoTokenizer opens.

    The ids of a text are the model's inputs, special tokens included. Only where a text
    spells a special token, `</s>`, that is the token there, and text to some vocabularies here.

    Args:
      folder: local or remote.
      vocabulary: of t5lite's kinds.
      frame: the special tokens around a text, a decoder's start token included; None for those of
        the vocabulary.

    Raises: InputError if transformers has no class for the vocabulary.
    """
    root = as_path(folder)
    if frame is None:
        frame = getattr(vocabulary, "frame", Frame())
    if isinstance(vocabulary, HuggingFaceTokenizer | WordPiece):
        files = _whole(_tokenizer(vocabulary), vocabulary, frame)
    elif isinstance(vocabulary, SentencePiece):
        files = _whole(_sentencepiece(vocabulary), vocabulary, frame)
        if vocabulary.eos_id == 1:  # for programs that read T5's own file
            files.content["spiece.model"] = vocabulary.content
    elif isinstance(vocabulary, MappedSentencePiece):
        files = _mapped_files(vocabulary, frame)
    elif isinstance(vocabulary, Bytes) and frame == Frame(after=(vocabulary.eos_id,)):
        sentinels = [vocabulary.piece(number) for number in range(259, vocabulary.size)]
        options = {"extra_ids": len(sentinels), "additional_special_tokens": sentinels}
        files = _Files({}, "ByT5Tokenizer", options)
    elif isinstance(vocabulary, Bytes):
        files = _whole(_bytes(vocabulary), vocabulary, frame)
    else:
        raise InputError(
            f"{type(vocabulary).__name__} has no counterpart in transformers; use "
            "HuggingFaceTokenizer, WordPiece, SentencePiece or Bytes"
        )
    tokens = _named(vocabulary)
    if files.kind == "PegasusTokenizer":
        del tokens["mask_token"]  # named, it would change places with the other one
    for name, content in files.content.items():
        write_whole(root / name, content)
    cleans_up = bool(getattr(vocabulary, "cleans_up", False))
    config = {"clean_up_tokenization_spaces": cleans_up, "tokenizer_class": files.kind}
    write_whole(root / "tokenizer_config.json", to_json({**tokens, **files.options, **config}))
    write_whole(root / "special_tokens_map.json", to_json(tokens))


def _named(vocabulary: Any) -> dict[str, str]:
    """Returns the special tokens by transformers' names."""
    ids = {"eos": vocabulary.eos_id, "unk": vocabulary.unk_id, "pad": vocabulary.pad_id}
    ids |= {"bos": vocabulary.bos_id, "mask": vocabulary.mask_id}
    if isinstance(vocabulary, HuggingFaceTokenizer) and ids["mask"] not in vocabulary.added:
        ids["mask"] = None  # named, it would be the mask also where a text spells it
    if ids["mask"] is not None:  # an encoder's
        ids |= {"cls": ids["bos"], "sep": ids["eos"]}
    return {
        f"{name}_token": vocabulary.piece(number)
        for name, number in ids.items()
        if number is not None and number >= 0
    }


def _whole(tokenizer: Any, vocabulary: Any, frame: Frame) -> _Files:
    """Returns a tokenizer as a `tokenizer.json` whose template is a frame."""
    has_template = tokenizer.post_processor is not None
    if not has_template or vocabulary.frame != frame:
        pieces = {token: vocabulary.piece(token) for token in (*frame.before, *frame.after)}
        single = [*(pieces[token] for token in frame.before), "$A"]
        single += [pieces[token] for token in frame.after]
        tokenizer.post_processor = import_tokenizers().processors.TemplateProcessing(
            single=single,
            pair=[*single, *(piece.replace("$A", "$B") + ":1" for piece in single)],
            special_tokens=[(piece, token) for token, piece in pieces.items()],
        )
    return _Files({JSON: (tokenizer.to_str(pretty=True) + "\n").encode()}, _WHOLE_CLASS, {})


def _tokenizer(vocabulary: HuggingFaceTokenizer | WordPiece) -> Any:
    content = vocabulary.to_json()
    if vocabulary.offset:
        content = _one_higher(content, vocabulary.file)
    return import_tokenizers().Tokenizer.from_str(content)


def _sentencepiece(vocabulary: SentencePiece) -> Any:
    """Returns a tokenizer with the ids of SentencePiece itself, and of sentinels in texts."""
    library, count = import_tokenizers(), vocabulary.num_sentinels
    model = read_sentencepiece(vocabulary.content, vocabulary.model_file)
    if vocabulary.sentinels_were_added:
        for index in reversed(range(count)):
            model.pieces.add(piece=f"▁<extra_id_{index}>", type=USER_DEFINED)
    tokenizer = plain_sentencepiece(model)
    normalizers = library.normalizers
    spaced = normalizers.Replace(library.Regex(_SENTINEL), " <extra_id_")
    if count:  # sentinels are pieces that begin with a space
        tokenizer.normalizer = normalizers.Sequence([spaced, *tokenizer.normalizer])
    special = [piece.piece for piece in model.pieces if piece.type == CONTROL]
    special += [
        vocabulary.piece(token) for token in (vocabulary.unk_id, vocabulary.pad_id) if token >= 0
    ]
    tokenizer.add_special_tokens(list(dict.fromkeys(special)))
    return tokenizer


def _bytes(vocabulary: Bytes) -> Any:
    """Returns a tokenizer of bytes: BPE without characters, which falls back to bytes."""
    library = import_tokenizers()
    special = ["<pad>", "</s>", "<unk>"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {name: number for number, name in enumerate(names)}
    model = library.models.BPE(ids, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = library.Tokenizer(model)
    decoders = library.decoders
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(
        [
            library.AddedToken(vocabulary.piece(number), normalized=False)
            for number in range(259, vocabulary.size)
        ]
    )
    return tokenizer


def _one_higher(content: str, name: str) -> str:
    """Returns a `tokenizer.json` with all ids one higher, and padding as id 0."""
    tokenizer = json.loads(content)
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    pad = "<pad>"
    is_list = isinstance(model["vocab"], list)  # Unigram: pieces and scores, in order
    if pad in (dict(model["vocab"]) if is_list else model["vocab"]):
        raise InputError(f"{name} has a {pad!r} already, so that offset=1 leaves no name for id 0")
    for token in added:
        token["id"] += 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.insert(0, {"id": 0, "content": pad, **flags, "special": True})
    if is_list:
        model["vocab"].insert(0, [pad, 0.0])
        model["unk_id"] = None if model["unk_id"] is None else model["unk_id"] + 1
    else:
        model["vocab"] = {pad: 0, **{piece: at + 1 for piece, at in model["vocab"].items()}}
    outer = tokenizer["post_processor"] or {}
    for processor in [outer, *outer.get("processors", [])]:
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [number + 1 for number in token["ids"]]
        for side in {"sep", "cls"} & processor.keys():
            processor[side] = [processor[side][0], processor[side][1] + 1]
    return json.dumps(tokenizer)


def _mapped_files(vocabulary: MappedSentencePiece, frame: Frame) -> _Files:
    origin, models = vocabulary.origin, vocabulary.models
    if origin == "Marian":
        files = dict(zip((SOURCE, TARGET), (models[0], models[-1]), strict=True))
        files["vocab.json"] = to_json(vocabulary.ids)
    elif origin in MODEL_OF:
        files = {MODEL_OF[origin]: models[0]}
    else:
        raise InputError(
            f"{vocabulary!r} is of no kind that transformers has a class for; origin must be one "
            f"of Marian, {', '.join(MODEL_OF)}"
        )
    ends = frame([])
    options: dict[str, Any] = {}
    if origin in ("Llama", "CodeLlama", "Gemma"):
        options["add_bos_token"] = vocabulary.bos_id in ends
        options["add_eos_token"] = vocabulary.eos_id in ends
    elif frame != vocabulary.frame:
        raise InputError(
            f"a {origin}Tokenizer adds other special tokens than the model reads, {ends}: there is "
            "no way to say so in its files"
        )
    if origin == "Pegasus":
        options["offset"] = vocabulary.unk_id - 2
    return _Files(files, f"{origin}Tokenizer", options)
