"""Published architectures, once each, as values; families by file. Nano sizes are our own."""

import re

from t5lite.errors import InputError, unknown
from t5lite.models.presets import bart, bert, gemma, gpt, llama, t5
from t5lite.models.spec import ModelSpec

PRESETS: dict[str, ModelSpec] = {
    name: spec
    for family in (t5, bart, bert, gpt, llama, gemma)
    for name, spec in family.PRESETS.items()
}


def preset(name: str) -> ModelSpec:
    """Returns the spec of a published architecture.

    Raises: InputError for an unknown name, with the nearest ones, or the preset of a hub name.
    """
    if name in PRESETS:
        return PRESETS[name]
    if match := same_architecture(name):
        raise InputError(f"unknown preset {name!r}; did you mean {match}?", field="model")
    raise unknown("preset", name, PRESETS, field="model")


def same_architecture(name: str) -> str | None:
    """Returns the preset of a Hugging Face hub name, such as `google/t5-v1_1-base`, or None."""
    return {_plain(preset): preset for preset in PRESETS}.get(_plain(name.rpartition("/")[2]))


def _plain(name: str) -> str:
    words = re.split(r"[^a-z0-9]+", name.lower())
    ignored = ("uncased", "meta", "hf", "deduped", "it")
    return "".join(re.sub(r"^v(?=\d)", "", word) for word in words if word not in ignored)
