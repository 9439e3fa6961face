"""Published architectures, once each, as values; families by file. Nano sizes are our own."""

from t5lite.errors import unknown
from t5lite.models.presets import (
    albert,
    bart,
    bert,
    electra,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    modernbert,
    palm,
    switch,
    t5,
)
from t5lite.models.spec import ModelSpec

PRESETS: dict[str, ModelSpec] = {
    **t5.PRESETS,
    **switch.PRESETS,
    **bart.PRESETS,
    **bert.PRESETS,
    **albert.PRESETS,
    **electra.PRESETS,
    **modernbert.PRESETS,
    **gpt2.PRESETS,
    **gpt_neox.PRESETS,
    **llama.PRESETS,
    **gemma.PRESETS,
    **palm.PRESETS,
}


def preset(name: str) -> ModelSpec:
    """Returns the spec of a published architecture.

    Raises:
      InputError: for an unknown name, with the nearest ones.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
