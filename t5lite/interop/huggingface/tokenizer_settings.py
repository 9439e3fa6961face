"""The settings of a Hugging Face tokenizer, from the JSON files beside it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from t5lite.data.paths import read_file
from t5lite.errors import InputError

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
JSON = "tokenizer.json"
_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
Token = Mapping[str, Any]  # what `tokenizers.AddedToken` takes, by name


def _inverted(names: Mapping[str, str]) -> dict[str, str]:
    return {word: name for name, words in names.items() for word in words.split()}


# transformers' class of the tokenizer by model_type; "" reads tokenizer.json as it is.
_CLASSES = _inverted(
    {
        "": "mistral modernbert umt5",
        "Albert": "albert",
        "Bert": "bert distilbert electra",
        "GPT2": "gpt2 opt",
        "GPTNeoX": "gpt_neox",
        "Gemma": "gemma gemma2 t5gemma",
        "MBart": "mbart",
        "Marian": "marian",
        "Pegasus": "pegasus",
        "Roberta": "bart longformer roberta",
        "T5": "mt5 switch_transformers t5",
        "XLMRoberta": "xlm-roberta",
    }
)
# Names of one class.
_SAME = _inverted(
    {
        "Bert": "DistilBert Electra LayoutLM Lxmert MobileBert SqueezeBert",
        "Llama": "Phi3",
        "Roberta": "Bart LED Longformer Mvp",
    }
)
# Classes that read a tokenizer.json as it is, with their substitutes without one.
_WHOLE = _inverted(
    {
        "": "PreTrained PythonBackend TokenizersBackend Bloom",
        "Albert": "FNet",
        "Bert": "ConvBert",
        "T5": "MT5 UMT5",
    }
)


class Settings(NamedTuple):
    """The settings of a tokenizer, its vocabulary apart.

    Attributes:
      kind: transformers' class that reads it, without "Tokenizer" and "Fast"; "" for the one that
        takes a `tokenizer.json` as it is.
      options: `tokenizer_config.json`, overridden by `special_tokens_map.json`.
      tokens: the special tokens by name, `NAMED` first; None for one that is disabled.
      added: by id, tokens that were added to the vocabulary.
      extra: more special tokens; None where nothing lists any.
      additional: the same, of a `special_tokens_map.json`, which `extra` overrules.
      is_named: whether a file names the class, or the model does.
      num_embeddings: of the model; None where unknown.
    """

    kind: str
    options: Mapping[str, Any]
    tokens: Mapping[str, Token | None]
    added: Mapping[int, Token]
    extra: list[Token] | None
    additional: list[Token] | None
    is_named: bool
    num_embeddings: int | None = None

    def text(self, name: str, default: str) -> str:
        token = self.tokens.get(name, {"content": default})
        return default if token is None else token["content"]


def read_settings(root: Any) -> Settings:
    """Returns the settings in a folder, as transformers 5 reads them; InputError if damaged."""
    options, config = read_json(root / "tokenizer_config.json"), read_json(root / "config.json")
    whole = read_json(root / JSON)
    kind, is_named = _class(options, config, whole)
    options = dict(options)
    extra, older = options.pop("extra_special_tokens", None), options.pop(_ADDITIONAL, None)
    if not extra and older is not None:
        extra = older  # what the list was called until transformers 5
    additional = None
    added: dict[int, Token] = {}
    if "added_tokens_decoder" in options:
        for number, token in options["added_tokens_decoder"].items():
            added[int(number)] = _token(token)
    else:
        mapped = read_json(root / "special_tokens_map.json")
        additional = mapped.pop(_ADDITIONAL, None)
        extra = mapped.pop("extra_special_tokens", None) or extra
        options |= {
            name: {**token, "special": True} if isinstance(token, Mapping) else token
            for name, token in mapped.items()
        }
        added = _listed(root, options, extra)
        for token in whole.get("added_tokens", []):
            added[token["id"]] = _token(token)
    tokens = _tokens(options, extra if isinstance(extra, Mapping) else {}, added)
    if isinstance(extra, Mapping):
        extra = None
    lists = _all(extra), _all(additional)
    return Settings(kind, options, tokens, added, *lists, is_named, config.get("vocab_size"))


_ADDITIONAL = "additional_special_tokens"


def _class(
    options: Mapping[str, Any], config: Mapping[str, Any], whole: Mapping[str, Any]
) -> tuple[str, bool]:
    """Returns the class that AutoTokenizer takes, and whether anything names it."""
    model_type, name = config.get("model_type", ""), options.get("tokenizer_class")
    name = name or config.get("tokenizer_class")
    registered = _CLASSES.get(model_type)
    if not name:
        kind = "T5" if model_type == "umt5" and not whole else registered or ""
        return kind, model_type in (*_CLASSES, "llama")
    kind = name.removesuffix("Fast").removesuffix("Tokenizer")
    kind = _SAME.get(kind, kind)
    if kind in _WHOLE:
        kind = "" if whole else _WHOLE[kind]
    if registered == "" and (whole or model_type == "mistral"):
        kind = ""  # whatever class the folder names
    if kind == "Llama" and '"ByteLevel"' in json.dumps(whole):
        kind = ""  # LLaMA 3's, whose folders name the class of LLaMA 2's
    return kind, True


def _listed(root: Any, options: Mapping[str, Any], extra: Any) -> dict[int, Token]:
    """Returns the tokens of an `added_tokens.json`."""
    special = {_token(options[key])["content"] for key in map(_key, NAMED) if options.get(key)}
    special |= {_token(token)["content"] for token in extra or []}
    return {
        number: {"content": text, "normalized": text not in special, "special": text in special}
        for text, number in read_json(root / "added_tokens.json").items()
    }


def _tokens(
    options: Mapping[str, Any], extra: Mapping[str, Any], added: Mapping[int, Token]
) -> dict[str, Token | None]:
    by_text = {token["content"]: token for token in added.values()}
    tokens: dict[str, Token | None] = {}
    for name in NAMED:
        if _key(name) in options:
            declared = options[_key(name)]
            token = None if declared is None else _token(declared)
            tokens[name] = token and by_text.get(token["content"], token)
    further = {
        key.removesuffix("_token"): value
        for key, value in options.items()
        if key.endswith("_token") and isinstance(value, str) and key not in map(_key, NAMED)
    }
    return tokens | {name: _token(value) for name, value in {**further, **extra}.items()}


def read_json(path: Any) -> dict[str, Any]:
    """Returns the object in a file, {} if absent; InputError if damaged."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_file(path, "file"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; restore it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no object; restore it")
    return content


def _key(name: str) -> str:
    return f"{name}_token"


def _all(tokens: Any) -> list[Token] | None:
    return None if tokens is None else [_token(token) for token in tokens]


def _token(token: Any) -> Token:
    """Returns arguments of `tokenizers.AddedToken`; a text is a special token."""
    if not isinstance(token, Mapping):
        return {"content": str(token), "special": True}
    return {name: token[name] for name in _TOKEN_FIELDS if name in token}
