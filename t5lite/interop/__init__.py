"""Checkpoints of t5lite, Hugging Face and T5X: as specs, arrays and tokenizers, both ways."""

from t5lite.interop.adaptation import Adaptation, adapt
from t5lite.interop.conversion import convert
from t5lite.interop.description import Description
from t5lite.interop.initial import packaged_folder, vocabulary_of
from t5lite.interop.opened import Opened
from t5lite.interop.opening import kind_of, open_model
from t5lite.interop.own import locate
from t5lite.interop.save import check_target, losses, save

__all__ = [
    "Adaptation",
    "Description",
    "Opened",
    "adapt",
    "check_target",
    "convert",
    "kind_of",
    "locate",
    "losses",
    "open_model",
    "packaged_folder",
    "save",
    "vocabulary_of",
]
