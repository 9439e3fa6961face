"""Model families: specs from configs, configs from specs, and the mapping of tensors."""

import importlib
import re

from t5lite.errors import unknown
from t5lite.interop.huggingface.families.family import Family

# model_type -> the module that knows it.
MODULES = {
    model_type: module
    for module, model_types in {
        "albert": "albert",
        "bart": "bart marian mbart pegasus",
        "bert": "bert distilbert roberta xlm-roberta",
        "electra": "electra",
        "gemma": "gemma gemma2",
        "gpt2": "gpt2",
        "gpt_neox": "gpt_neox",
        "llama": "llama mistral",
        "modernbert": "modernbert",
        "switch": "switch_transformers",
        "t5": "mt5 t5 umt5",
        "t5gemma": "t5gemma",
    }.items()
    for model_type in model_types.split()
}


def model_type_of(architecture: str) -> str | None:
    """Returns the model_type of a class, for old configs without one; None if unknown."""
    name = re.split(r"For|Model|LMHead|Encoder|MTModel", architecture)[0].lower()
    model_type = "xlm-roberta" if name == "xlmroberta" else name
    return model_type if model_type in MODULES else None


def family_of(model_type: str) -> Family:
    """Returns the family of a `model_type`; InputError if it is not in `MODULES`."""
    if model_type not in MODULES:
        raise unknown("model_type", model_type, MODULES)
    return importlib.import_module(f"{__name__}.{MODULES[model_type]}").FAMILIES[model_type]
