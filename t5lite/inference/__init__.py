"""Inference: generate, predict, score and embed with a trained model, and look inside it.

Names load when they are first used: the options table imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5lite.inference.answer import Answer as Answer
    from t5lite.inference.batching import prompt_batch as prompt_batch
    from t5lite.inference.defaults import Rules as Rules
    from t5lite.inference.embedding import nearest as nearest
    from t5lite.inference.engine import Engine as Engine
    from t5lite.inference.generation import Draft as Draft
    from t5lite.inference.inside import Inside as Inside
    from t5lite.inference.inside import attention_maps as attention_maps
    from t5lite.inference.inside import attribution as attribution
    from t5lite.inference.line_job import infer as infer
    from t5lite.inference.loaded import Loaded as Loaded
    from t5lite.inference.loading import load as load
    from t5lite.inference.loading import place as place
    from t5lite.inference.options import Options as Options
    from t5lite.inference.predictions import Answers as Answers
    from t5lite.inference.predictions import AnswerSpan as AnswerSpan
    from t5lite.inference.predictions import Classes as Classes
    from t5lite.inference.predictions import Numbers as Numbers
    from t5lite.inference.predictions import Tagged as Tagged
    from t5lite.inference.predictions import TagSpan as TagSpan
    from t5lite.inference.request import Reader as Reader
    from t5lite.inference.request import Request as Request
    from t5lite.inference.scoring import Score as Score

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
