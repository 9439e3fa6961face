"""A trained model at work: it writes, predicts, scores and embeds; and a look inside it."""

from t5lite.inference.answers import answer, prompt_batch
from t5lite.inference.embedding import nearest
from t5lite.inference.inside import Inside, attention_maps, attribution
from t5lite.inference.loaded import Loaded, load, place
from t5lite.inference.predictions import Answers, AnswerSpan, Classes, Numbers, Tagged, TagSpan
from t5lite.inference.scoring import Score

__all__ = [
    "AnswerSpan",
    "Answers",
    "Classes",
    "Inside",
    "Loaded",
    "Numbers",
    "Score",
    "TagSpan",
    "Tagged",
    "answer",
    "attention_maps",
    "attribution",
    "load",
    "nearest",
    "place",
    "prompt_batch",
]
