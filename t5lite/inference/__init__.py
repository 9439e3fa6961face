"""A trained model at work: it writes, predicts, scores and embeds; and a look inside it.

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
    from t5lite.inference.loaded import Loaded, load, place
    from t5lite.inference.options import Options
    from t5lite.inference.predictions import Answers, AnswerSpan, Classes, Numbers, Tagged, TagSpan
    from t5lite.inference.request import Reader, Request
    from t5lite.inference.scoring import Score

_HOME = {
    "Answer": "answer",
    "AnswerSpan": "predictions",
    "Answers": "predictions",
    "Classes": "predictions",
    "Draft": "generation",
    "Engine": "engine",
    "Inside": "inside",
    "Loaded": "loaded",
    "Numbers": "predictions",
    "Options": "options",
    "Reader": "request",
    "Request": "request",
    "Rules": "defaults",
    "Score": "scoring",
    "TagSpan": "predictions",
    "Tagged": "predictions",
    "attention_maps": "inside",
    "attribution": "inside",
    "load": "loaded",
    "nearest": "embedding",
    "place": "loaded",
    "prompt_batch": "batching",
}
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
    "load",
    "nearest",
    "place",
    "prompt_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 't5lite.inference' has no attribute {name!r}")
    return getattr(importlib.import_module(f"t5lite.inference.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
