"""A trained model at work: it writes, scores, embeds and fills gaps; and a look inside it."""

from t5lite.inference.answers import answer, prompt_batch
from t5lite.inference.embedding import nearest
from t5lite.inference.inside import Inside, attention_maps, attribution
from t5lite.inference.loaded import Loaded, load, place
from t5lite.inference.scoring import Score

__all__ = [
    "Inside",
    "Loaded",
    "Score",
    "answer",
    "attention_maps",
    "attribution",
    "load",
    "nearest",
    "place",
    "prompt_batch",
]
