"""The world's checkpoints: opened as a spec, arrays and a tokenizer, and written again."""

from t5lite.interop.initial import packaged_folder, vocabulary_of
from t5lite.interop.opening import kind_of, locate, open_model
from t5lite.interop.save import check_target, losses, save

__all__ = [
    "check_target",
    "kind_of",
    "locate",
    "losses",
    "open_model",
    "packaged_folder",
    "save",
    "vocabulary_of",
]
