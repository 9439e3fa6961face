"""What the JSON files beside a Hugging Face tokenizer say of it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from t5lite.data.vocabularies import read_file
from t5lite.errors import InputError

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# The class that reads a model's tokenizer, where no file names it.
_CLASSES = {
    "bart": "BartTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "gemma": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "llama": "LlamaTokenizer",
    "longformer": "LongformerTokenizer",
    "marian": "MarianTokenizer",
    "mistral": "LlamaTokenizer",
    "mt5": "MT5Tokenizer",
    "opt": "GPT2Tokenizer",
    "pegasus": "PegasusTokenizer",
    "roberta": "RobertaTokenizer",
    "t5": "T5Tokenizer",
    "umt5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


class Settings(NamedTuple):
    """What is known of a tokenizer beside its vocabulary.

    Attributes:
      kind: the class that reads it, without "Tokenizer" and "Fast"; "" if nothing names one.
      options: `tokenizer_config.json`.
      tokens: the special tokens' text by name, `NAMED`, as far as they are given.
      added: by id, tokens that were added to the vocabulary, as `tokenizers.AddedToken` takes them.
      others: more special tokens, in order, sentinels for instance.
    """

    kind: str
    options: Mapping[str, Any]
    tokens: Mapping[str, str]
    added: Mapping[int, dict[str, Any]]
    others: list[str]


def read_settings(root: Any) -> Settings:
    """Returns what the files of a folder say.

    Args:
      root: a path of the folder.

    Raises:
      InputError: if one is damaged.
    """
    options, config = read_json(root / "tokenizer_config.json"), read_json(root / "config.json")
    older, listed = (
        read_json(root / "special_tokens_map.json"),
        read_json(root / "added_tokens.json"),
    )
    kind = options.get("tokenizer_class") or config.get("tokenizer_class")
    kind = kind or _CLASSES.get(config.get("model_type", ""), "")
    tokens = {}
    for name in NAMED:
        given = options.get(f"{name}_token") or older.get(f"{name}_token")
        if given:
            tokens[name] = _text(given)
    added: dict[int, dict[str, Any]] = {number: _added(text) for text, number in listed.items()}
    for number, token in options.get("added_tokens_decoder", {}).items():
        added[int(number)] = _added(token)
    lists = (
        each.get(name)
        for name in ("extra_special_tokens", "additional_special_tokens")
        for each in (options, older)
    )
    # The name of the list was that of a mapping for a while.
    others = next((list(each) for each in lists if each and not isinstance(each, Mapping)), [])
    kind = kind.removesuffix("Fast").removesuffix("Tokenizer")
    return Settings(kind, options, tokens, added, [_text(token) for token in others])


def read_json(path: Any) -> dict[str, Any]:
    """Returns the object in a file; {} if there is no file.

    Raises:
      InputError: if it is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(read_file(path, "file"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; restore it") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds no object; restore it")
    return found


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _added(token: Any) -> dict[str, Any]:
    """Returns what `tokenizers.AddedToken` takes."""
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    if not isinstance(token, Mapping):
        return {"content": str(token), "normalized": False, "special": True}
    return {name: token[name] for name in known if name in token}
