"""Default generation options of a checkpoint: `generation_config.json`."""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from t5lite.data.paths import as_path, read_file, write_changed
from t5lite.errors import InputError

FILE = "generation_config.json"

# Fields of transformers' GenerationConfig, which older folders have in config.json.
_FIELDS = """
    max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings
    do_sample num_beams num_beam_groups penalty_alpha temperature top_k top_p min_p top_h typical_p
    epsilon_cutoff eta_cutoff diversity_penalty repetition_penalty encoder_repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids
    renormalize_logits forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens forced_decoder_ids sequence_bias guidance_scale
    num_return_sequences pad_token_id bos_token_id eos_token_id decoder_start_token_id
"""
_NESTED = ("decoder", "generator", "text_config")  # parts of some configs that hold these fields
_WORDS = "bad_words_ids"
_ID_LISTS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """Default generation options of a model.

    Attributes:
      content: `generation_config.json` (names of transformers' GenerationConfig), without nulls,
        whole so that it can be written again.
    """

    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def ids(self, name: str) -> tuple[int, ...]:
        """Returns the token ids of a field that is an id or a list of ids; () where it is unset."""
        value = self.content.get(name, ())
        return (value,) if isinstance(value, int) else tuple(value)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer; () for the vocabulary's EOS alone."""
        return self.ids("eos_token_id")


def read_defaults(
    folder: Any, config: Mapping[str, Any] = MappingProxyType({})
) -> GenerationDefaults | None:
    """Returns the default generation options in a folder; None for none.

    Args:
      config: content of a Hugging Face `config.json`, read where there is no
        `generation_config.json`, as in transformers; {} for other folders.

    Raises: InputError for a damaged file, or a field of another type than in transformers.
    """
    path = as_path(folder) / FILE
    if path.exists():
        try:
            content = json.loads(read_file(path, "description of generation"))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {str(error)[:80]}; copy it again") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} is damaged: it must hold a JSON object; copy it again")
        skipped = ("_from_model_config", "transformers_version")
        content = {name: value for name, value in content.items() if name not in skipped}
    else:
        path = as_path(folder) / "config.json"
        nested: Any = next((config[k] for k in _NESTED if isinstance(config.get(k), dict)), {})
        fields = _FIELDS.split()
        content = {
            name: value
            for part in (nested, config)
            for name, value in part.items()
            if value is not None and name in fields
        }
    content = {name: value for name, value in content.items() if value is not None}
    for name in _ID_LISTS:
        _check_ids(path, name, content.get(name, ()))
    words = content.get(_WORDS, [])
    if not isinstance(words, list) or not all(isinstance(word, list) for word in words):
        raise InputError(f"{path}: {_WORDS} = {words!r}: must be a list of lists of token ids")
    for word in words:
        _check_ids(path, _WORDS, word)
    return GenerationDefaults(content) if content else None


def save_defaults(folder: Any, defaults: GenerationDefaults | None) -> None:
    """Writes `generation_config.json`; None: writes nothing."""
    if defaults is not None:
        text = json.dumps(dict(defaults.content), indent=2, sort_keys=True)
        write_changed(as_path(folder) / FILE, (text + "\n").encode())


def _check_ids(path: Any, name: str, value: Any) -> None:
    ids = [value] if isinstance(value, int) else value
    if not isinstance(ids, list | tuple) or not all(type(token) is int for token in ids):
        raise InputError(f"{path}: {name} = {value!r}: must be a token id or a list of them")
