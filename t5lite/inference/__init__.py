"""Inference: generate, predict, score and embed with a trained model, and look inside it.

Names load when they are first used: the options table imports no JAX.
"""

from typing import TYPE_CHECKING

from t5lite.public_names import lazy_names

if TYPE_CHECKING:
    from t5lite.inference.answer import Answer
    from t5lite.inference.batching import prompt_batch
    from t5lite.inference.defaults import Rules
    from t5lite.inference.embedding import nearest
    from t5lite.inference.engine import Engine
    from t5lite.inference.generation import Draft
    from t5lite.inference.inside import Inside, attention_maps, attribution
    from t5lite.inference.line_job import infer
    from t5lite.inference.loaded import Loaded
    from t5lite.inference.loading import load, place
    from t5lite.inference.options import Options
    from t5lite.inference.predictions import Answers, AnswerSpan, Classes, Numbers, Tagged, TagSpan
    from t5lite.inference.request import Reader, Request
    from t5lite.inference.scoring import Score

__all__ = [
    "Answer",
    "AnswerSpan",
    "Answers",
    "Classes",
    "Draft",
    "Engine",
    "Inside",
    "Loaded",
    "Numbers",
    "Options",
    "Reader",
    "Request",
    "Rules",
    "Score",
    "TagSpan",
    "Tagged",
    "attention_maps",
    "attribution",
    "infer",
    "load",
    "nearest",
    "place",
    "prompt_batch",
]

__getattr__, __dir__ = lazy_names(__name__)
