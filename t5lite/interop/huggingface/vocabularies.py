"""The tokenizers of Hugging Face folders as vocabularies with the same ids."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from t5lite.data import HuggingFaceTokenizer, Vocabulary
from t5lite.data.paths import as_path, read_file
from t5lite.data.vocabularies.tokenizer_files import import_tokenizers
from t5lite.errors import InputError
from t5lite.interop.huggingface import older_tokenizers
from t5lite.interop.huggingface.older_tokenizers import ADVICE, MODELS, SOURCE, TARGET
from t5lite.interop.huggingface.tokenizer_building import Draft, Made, Parts, finish
from t5lite.interop.huggingface.tokenizer_classes import CLASSES, UNKNOWN, build
from t5lite.interop.huggingface.tokenizer_settings import JSON, Settings, read_settings


def read_vocabulary(folder: str | os.PathLike, *, lowercase: bool = False) -> Vocabulary | None:
    """Opens the tokenizer of a Hugging Face folder.

    `tokenizer.json` is preferred; else SentencePiece's files of T5, PEGASUS, XLM-R, LLaMA, Gemma
    and Marian, BERT's `vocab.txt`, and GPT-2's and RoBERTa's `vocab.json` and `merges.txt` are
    read. ByT5's has no file, but a name.

    Args:
      folder: local or remote.
      lowercase: whether texts are lower-cased first, as sentence-transformers may have it.

    Returns:
      The vocabulary: its ids are the tokenizer's, and `frame` adds what it adds. None if the folder
      has no tokenizer.

    Raises:
      InputError: if a file is damaged, or its ids are not known.
    """
    root = as_path(folder)
    settings = read_settings(root)
    if (root / JSON).exists() and settings.kind not in ("ByT5", "Marian"):
        tokenizer = _read_json(root / JSON, settings)
        return _vocabulary(tokenizer, root / JSON, settings, lowercase=lowercase)
    if settings.kind == "ByT5":
        return older_tokenizers.read_bytes(root, settings)
    if all((root / name).exists() for name in (SOURCE, TARGET, "vocab.json")):
        return older_tokenizers.read_marian(root, settings)
    for files, read in (
        *(((name,), older_tokenizers.read_pieces) for name in MODELS),
        (("vocab.txt",), older_tokenizers.read_word_pieces),
        (("vocab.json", "merges.txt"), older_tokenizers.read_byte_pairs),
    ):
        if all((root / name).exists() for name in files):
            tokenizer = read(root, settings)
            return _vocabulary(tokenizer, root / files[0], settings, lowercase=lowercase)
    return None


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
    """Lower-cases texts before anything else, unless the tokenizer does so itself."""
    normalizers = import_tokenizers().normalizers
    content = json.loads(tokenizer.to_str())["normalizer"] or {}
    for step in (content, *content.get("normalizers", [])):
        if step.get("type") == "Lowercase" or step.get("lowercase"):
            return
    steps = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


_EVEN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


def _special_tokens(read: Made) -> dict[str, Any]:
    """Returns the special tokens as `HuggingFaceTokenizer` names them."""
    tokenizer, names = read
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    texts = {name: text for name, text in names.items() if tokenizer.token_to_id(text) is not None}
    return {
        "eos": texts.get("eos", texts.get("sep")),
        "bos": texts.get("bos", texts.get("cls")),
        "mask": texts.get("mask"),
        # Some name a token of the text for padding, which could not be told apart.
        "pad": texts["pad"] if texts.get("pad") in special else None,
    }
