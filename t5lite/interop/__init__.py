"""The world's checkpoints: any folder to a model with its parameters, ready to use, and back."""

from t5lite.interop.answers import answer, prompt_batch
from t5lite.interop.embedding import nearest
from t5lite.interop.inside import Inside, attention_maps, attribution
from t5lite.interop.load import kind_of, load, locate, open_model
from t5lite.interop.loaded import Loaded
from t5lite.interop.save import check_target, save
from t5lite.interop.scoring import Score

__all__ = [
    "Inside",
    "Loaded",
    "Score",
    "answer",
    "attention_maps",
    "attribution",
    "check_target",
    "kind_of",
    "load",
    "locate",
    "nearest",
    "open_model",
    "prompt_batch",
    "save",
]
