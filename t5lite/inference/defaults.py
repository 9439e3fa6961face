"""Generation defaults of a checkpoint's files, as options and rules, and the ignored ones."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from t5lite.errors import InputError
from t5lite.inference.options import Options
from t5lite.interop.generation_defaults import FILE, GenerationDefaults

# transformers' fields that are options here, by name.
_OPTIONS = {
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "repetition_penalty": "repetition_penalty",
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "stop_strings": "stop",
}
_RULES = (
    "eos_token_id",
    "decoder_start_token_id",  # in ModelSpec.start_id
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)
# Fields without effect on the tokens, or without effect at these values.
_SILENT = frozenset(["pad_token_id", "bos_token_id", "use_cache", "is_assistant", "low_memory"])
_SILENT_BEGINNINGS = (
    "_",
    "cache_",
    "output_",
    "return_dict",
    "assistant_",
    "num_assistant_",
    "prompt_lookup",
    "target_lookbehind",
    "compile_",
    "disable_compile",
)
_DRAWING = frozenset(
    ["temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"]
)
_NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, [], {})
_SEARCH = ("num_beams", "length_penalty", "early_stopping")


class Rules(NamedTuple):
    """Tokens that end, begin or restrict answers, by the model's files.

    Attributes:
      eos_ids: end an answer, at least one.
      forced_first, forced_last: the first token, and the one at the limit of an answer.
      banned, banned_first: never generated, and never first.
      banned_sequences: never completed.
    """

    eos_ids: tuple[int, ...]
    forced_first: int | None = None
    forced_last: int | None = None
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    banned_sequences: tuple[tuple[int, ...], ...] = ()


def rules_of(defaults: GenerationDefaults | None, vocabulary: Any, *, topology: str) -> Rules:
    """Returns the rules of a model; by default the vocabulary's EOS."""
    if defaults is None or topology == "encoder":
        return Rules((vocabulary.eos_id,))
    exists = range(vocabulary.size).__contains__

    def ids(name: str) -> tuple[int, ...]:
        return tuple(filter(exists, defaults.ids(name)))

    eos_ids = tuple(dict.fromkeys(ids("eos_token_id"))) or (vocabulary.eos_id,)
    words = [tuple(word) for word in defaults.content.get("bad_words_ids", ())]
    words = [word for word in words if word and all(map(exists, word))]
    words = [word for word in words if word not in {(eos,) for eos in eos_ids}]
    first = ids("forced_bos_token_id") if topology == "encoder_decoder" else ()
    last = ids("forced_eos_token_id")
    single = tuple(word[0] for word in words if len(word) == 1)
    return Rules(
        eos_ids,
        forced_first=first[0] if first else None,
        forced_last=last[0] if last else None,
        banned=(*ids("suppress_tokens"), *single),
        banned_first=ids("begin_suppress_tokens"),
        banned_sequences=tuple(word for word in words if len(word) > 1),
    )


def options_with(
    defaults: GenerationDefaults | None,
    chosen: Mapping[str, Any],
    *,
    spec: Any,
    draft: bool = False,
) -> Options:
    """Returns the chosen options by name; the rest are those of the files, else of `Options`, whose
    InputErrors it raises.

    A file's beam search yields to a temperature and to a draft, and its `min_new_tokens` to
    `choices` and to a smaller `max_new_tokens`.
    """
    stored = _stored(defaults, spec)
    if chosen.get("temperature") or draft or chosen.get("num_beams") == 1:
        stored = {name: value for name, value in stored.items() if name not in _SEARCH}
    if chosen.get("choices"):
        stored.pop("min_new_tokens", None)
    values = {**stored, **chosen}
    if "min_new_tokens" in stored and "min_new_tokens" not in chosen:
        most = values.get("max_new_tokens", Options.max_new_tokens)
        values["min_new_tokens"] = _at_most(stored["min_new_tokens"], most)
    return Options(**values)


def _stored(defaults: GenerationDefaults | None, spec: Any) -> dict[str, Any]:
    """Returns the options in the files, by t5lite's names."""
    if defaults is None or spec.decoder is None:
        return {}
    content = defaults.content
    options = {ours: content[theirs] for theirs, ours in _OPTIONS.items() if theirs in content}
    if spec.encoder is not None:  # the start token counts there
        for name in ("max", "min"):
            length = content.get(f"{name}_length")
            if isinstance(length, int) and length > 1:
                options.setdefault(f"{name}_new_tokens", length - 1)
        if spec.decoder.max_length is not None and "max_new_tokens" in options:
            options["max_new_tokens"] = _at_most(options["max_new_tokens"], spec.decoder.max_length)
    if options.get("early_stopping") == "never":
        options["early_stopping"] = None
    if not options.get("no_repeat_ngram_size"):
        options.pop("no_repeat_ngram_size", None)
    if options.get("repetition_penalty") == 1:
        del options["repetition_penalty"]
    if options.get("num_beams", 1) == 1:
        options = {name: value for name, value in options.items() if name not in _SEARCH}
    return options


def _at_most(value: Any, most: Any) -> Any:
    """Returns the smaller of two integers, or else the first value, which `Options` refuses."""
    return min(value, most) if isinstance(value, int) and isinstance(most, int) else value


def check_defaults(defaults: GenerationDefaults | None, *, spec: Any, folder: Any) -> None:
    """Raises an InputError that names the file if an option in it is out of range."""
    try:
        options_with(defaults, {}, spec=spec)
    except InputError as error:
        raise InputError(f"{FILE} or config.json of {folder}: {error}") from error


def ignored(defaults: GenerationDefaults | None, spec: Any) -> list[str]:
    """Returns the fields that are ignored, as `name = value`."""
    if defaults is None or spec.decoder is None:
        return []
    content = defaults.content
    used = {*_OPTIONS, *_RULES}
    if spec.encoder is not None:
        used |= {"max_length", "min_length"}
    else:
        used -= {"forced_bos_token_id"}
    if not content.get("do_sample"):
        used |= _DRAWING
    return [
        f"{name} = {value!r}"
        for name, value in sorted(content.items())
        if name not in used
        and name not in _SILENT
        and not name.startswith(_SILENT_BEGINNINGS)
        and (name in {*_DRAWING, "do_sample"} or value not in _NEUTRAL)
    ]
