"""Inference: generate, predict, score and embed with a trained model, and look inside it.

Names load when they are first used: the options table imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

_NAMES = {
    "answer": ("Answer",),
    "batching": ("prompt_batch",),
    "defaults": ("Rules",),
    "embedding": ("nearest",),
    "engine": ("Engine",),
    "generation": ("Draft",),
    "inside": ("Inside", "attention_maps", "attribution"),
    "line_job": ("infer",),
    "loaded": ("Loaded",),
    "loading": ("load", "place"),
    "options": ("Options",),
    "predictions": ("AnswerSpan", "Answers", "Classes", "Numbers", "TagSpan", "Tagged"),
    "request": ("Reader", "Request"),
    "scoring": ("Score",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 't5lite.inference' has no attribute {name!r}")
    return getattr(importlib.import_module(f"t5lite.inference.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
