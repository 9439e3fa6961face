"""The tokenizers of Hugging Face folders as vocabularies with the same ids, and back."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from t5lite.data import Bytes, HuggingFaceTokenizer, MappedSentencePiece, SentencePiece, Vocabulary
from t5lite.data.files import as_path, write_whole
from t5lite.data.tokenizers_vocabularies import WordPiece, import_tokenizers
from t5lite.data.vocabularies import read_file
from t5lite.errors import InputError
from t5lite.interop.huggingface import older_tokenizers
from t5lite.interop.huggingface.older_tokenizers import (
    ADVICE,
    MODEL_OF,
    MODELS,
    SOURCE,
    TARGET,
    to_json,
)
from t5lite.interop.huggingface.tokenizer_classes import (
    CLASSES,
    UNKNOWN,
    Draft,
    Made,
    Parts,
    build,
    finish,
)
from t5lite.interop.huggingface.tokenizer_settings import JSON, Settings, read_settings

_WHOLE_CLASS = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is


def read_vocabulary(folder: str | os.PathLike) -> Vocabulary | None:
    """Opens the tokenizer of a Hugging Face folder.

    `tokenizer.json` is preferred; else SentencePiece's files of T5, PEGASUS, XLM-R, LLaMA, Gemma
    and Marian, BERT's `vocab.txt`, and GPT-2's and RoBERTa's `vocab.json` and `merges.txt` are
    read. ByT5's has no file, but a name.

    Args:
      folder: local or remote.

    Returns:
      The vocabulary: its ids are the tokenizer's, and `frame` adds what it adds. None if the folder
      has no tokenizer.

    Raises:
      InputError: if a file is damaged, or its ids are not known.
    """
    root = as_path(folder)
    settings = read_settings(root)
    if (root / JSON).exists() and settings.kind not in ("ByT5", "Marian"):
        return _vocabulary(_read_json(root / JSON, settings), root / JSON, settings)
    if settings.kind == "ByT5":
        return older_tokenizers.read_bytes(root, settings)
    if all((root / name).exists() for name in (SOURCE, TARGET, "vocab.json")):
        return older_tokenizers.read_marian(root, settings)
    for files, read in (
        *(((name,), older_tokenizers.read_sentencepiece) for name in MODELS),
        (("vocab.txt",), older_tokenizers.read_word_pieces),
        (("vocab.json", "merges.txt"), older_tokenizers.read_byte_pairs),
    ):
        if all((root / name).exists() for name in files):
            return _vocabulary(read(root, settings), root / files[0], settings)
    return None


def write_vocabulary(
    folder: str | os.PathLike, vocabulary: Vocabulary, *, decoder: bool = False
) -> None:
    """Writes the files that transformers' AutoTokenizer opens, giving the same ids.

    Args:
      folder: local or remote.
      vocabulary: of t5lite's kinds.
      decoder: whether the model is a decoder alone, whose inputs have no EOS unless the
        tokenizer's own template says so.

    Raises:
      InputError: if transformers has no class for the vocabulary.
    """
    root = as_path(folder)
    if isinstance(vocabulary, HuggingFaceTokenizer | WordPiece):
        files, kind, options = _json_files(vocabulary, decoder=decoder)
    elif isinstance(vocabulary, SentencePiece):
        files, kind, options = _t5_files(vocabulary)
    elif isinstance(vocabulary, MappedSentencePiece):
        files, kind, options = _mapped_files(vocabulary)
    elif isinstance(vocabulary, Bytes):
        sentinels = [vocabulary.piece(number) for number in range(259, vocabulary.size)]
        options = {"extra_ids": len(sentinels), "additional_special_tokens": sentinels}
        files, kind = {}, "ByT5Tokenizer"
    else:
        raise InputError(
            f"{type(vocabulary).__name__} has no counterpart in transformers; use "
            "HuggingFaceTokenizer, WordPiece, SentencePiece or Bytes"
        )
    tokens = _named(vocabulary)
    if kind == "PegasusTokenizer":
        del tokens["mask_token"]  # named, it would change places with the other one
    for name, content in files.items():
        write_whole(root / name, content)
    others = {"clean_up_tokenization_spaces": False, "tokenizer_class": kind}
    write_whole(root / "tokenizer_config.json", to_json({**tokens, **options, **others}))
    write_whole(root / "special_tokens_map.json", to_json(tokens))


def _read_json(path: Any, settings: Settings) -> Made:
    """Returns the tokenizer of a `tokenizer.json`: as it is, or as its class makes it of it."""
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
    """Returns what a class takes from a `tokenizer.json`."""
    model, normalizer = content["model"], content.get("normalizer") or {}
    merges = [
        (left, right)
        for merge in model.get("merges", [])
        for left, right in [merge.split(" ") if isinstance(merge, str) else merge]
    ]
    charsmaps = [
        base64.b64decode(each["precompiled_charsmap"])
        for each in (normalizer, *normalizer.get("normalizers", []))
        if each.get("type") == "Precompiled" and each.get("precompiled_charsmap")
    ]
    return Parts(
        model["vocab"],
        merges,
        charsmaps[0] if charsmaps else None,
        tokenizer.post_processor,
        whole=True,
        additional=settings.additional,
    )


def _vocabulary(made: Made, path: Any, settings: Settings) -> HuggingFaceTokenizer:
    """Returns a tokenizer as a vocabulary.

    Raises:
      InputError: for what a tokenizer.json cannot say, or ids that are not those of the folder.
    """
    tokenizer, options = made.tokenizer, settings.options
    if options.get("split_special_tokens"):
        raise InputError(
            f"{path.parent / 'tokenizer_config.json'}: split_special_tokens = true is not known: "
            "special tokens in a text are tokens; set it to false"
        )
    for number, token in sorted(settings.added.items()):
        there = tokenizer.token_to_id(token["content"])
        if there != number:
            raise InputError(
                f"{path.parent} adds {token['content']!r} as id {number}, and in {path.name} it is "
                f"{there}; {ADVICE}"
            )
    model = type(tokenizer.model).__name__
    cleans = options.get("clean_up_tokenization_spaces", False) and (
        model != "BPE" or options.get(_EVEN_BPE, False)
    )
    return HuggingFaceTokenizer.from_json(
        tokenizer.to_str(), str(path), cleans_up=bool(cleans), **_chosen(made)
    )


_EVEN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


def _chosen(made: Made) -> dict[str, Any]:
    """Returns the special tokens as `HuggingFaceTokenizer` names them."""
    tokenizer, tokens = made
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known = {name: text for name, text in tokens.items() if tokenizer.token_to_id(text) is not None}
    return {
        "eos": known.get("eos", known.get("sep")),
        "mask": known.get("mask"),
        # Some name a token of the text for padding, which nobody could tell from it.
        "pad": known["pad"] if known.get("pad") in special else None,
    }


def _named(vocabulary: Any) -> dict[str, str]:
    """Returns the special tokens by the names that transformers has for them."""
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


def _json_files(
    vocabulary: HuggingFaceTokenizer | WordPiece, *, decoder: bool
) -> tuple[dict[str, bytes], str, dict[str, Any]]:
    library = import_tokenizers()
    content = vocabulary.to_json()
    if vocabulary.offset:
        content = _one_higher(content, vocabulary.file)
    tokenizer = library.Tokenizer.from_str(content)
    if tokenizer.post_processor is None and not decoder:
        eos = vocabulary.piece(vocabulary.eos_id)
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single=f"$A {eos}",
            pair=f"$A {eos} $B:1 {eos}:1",
            special_tokens=[(eos, vocabulary.eos_id)],
        )
    sentinels = [
        vocabulary.piece(vocabulary.sentinel(number)) for number in range(vocabulary.num_sentinels)
    ]
    options = {"additional_special_tokens": sentinels} if sentinels else {}
    return {JSON: (tokenizer.to_str(pretty=True) + "\n").encode()}, _WHOLE_CLASS, options


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


def _t5_files(vocabulary: SentencePiece) -> tuple[dict[str, bytes], str, dict[str, Any]]:
    ids = vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id
    if ids != (0, 1, 2):
        raise InputError(
            f"{vocabulary.model_file} has padding, EOS and unknown as {ids}: transformers knows "
            "SentencePiece files with 0, 1, 2 alone, T5's; train one by train_sentencepiece"
        )
    count = vocabulary.num_sentinels if vocabulary.sentinels_were_added else 0
    sentinels = [f"<extra_id_{number}>" for number in range(count)]
    options = {"extra_ids": count, "additional_special_tokens": sentinels}
    return {"spiece.model": vocabulary.model}, "T5Tokenizer", options


def _mapped_files(
    vocabulary: MappedSentencePiece,
) -> tuple[dict[str, bytes], str, dict[str, Any]]:
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
    ends = vocabulary.frame([])
    options: dict[str, Any] = {}
    if origin in ("Llama", "CodeLlama", "Gemma"):
        options["add_bos_token"] = vocabulary.bos_id in ends
        options["add_eos_token"] = vocabulary.eos_id in ends
    if origin == "Pegasus":
        options["offset"] = vocabulary.unk_id - 2
    return files, f"{origin}Tokenizer", options
