"""Model families: specs from configs, configs from specs, and the mapping of tensors."""

import importlib
import re

from t5lite.errors import unknown
from t5lite.interop.huggingface.families.family import Family

# model_type -> the module that knows it.
MODULES = {
    "albert": "albert",
    "bart": "bart",
    "bert": "bert",
    "distilbert": "bert",
    "electra": "electra",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "marian": "bart",
    "mbart": "bart",
    "mistral": "llama",
    "modernbert": "modernbert",
    "mt5": "t5",
    "pegasus": "bart",
    "roberta": "bert",
    "switch_transformers": "switch",
    "t5": "t5",
    "t5gemma": "t5gemma",
    "umt5": "t5",
    "xlm-roberta": "bert",
}


# What classes are called, for configs of years ago that name no model_type.
CLASSES = {
    "Albert": "albert",
    "Bart": "bart",
    "Bert": "bert",
    "DistilBert": "distilbert",
    "Electra": "electra",
    "GPT2": "gpt2",
    "MBart": "mbart",
    "MT5": "mt5",
    "Marian": "marian",
    "Pegasus": "pegasus",
    "Roberta": "roberta",
    "T5": "t5",
    "UMT5": "umt5",
    "XLMRoberta": "xlm-roberta",
}


def model_type_of(architecture: str) -> str | None:
    """Returns the model_type of a class of transformers'; None if its name does not tell."""
    name = re.split(r"For|Model|LMHead|Encoder|MTModel", architecture)[0]
    return CLASSES.get(name)


def family_of(model_type: str) -> Family:
    """Returns the family of a `model_type`.

    Raises:
      InputError: if it is not one of `MODULES`.
    """
    if model_type not in MODULES:
        raise unknown("model_type", model_type, MODULES)
    name = f"{__name__}.{MODULES[model_type]}"
    return importlib.import_module(name).FAMILIES[model_type]
