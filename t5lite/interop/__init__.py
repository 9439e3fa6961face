"""The world's checkpoints: any folder to a model with its parameters, ready to use."""

from t5lite.interop.answers import answer, prompt_batch
from t5lite.interop.load import Loaded, load, locate

__all__ = ["Loaded", "answer", "load", "locate", "prompt_batch"]
