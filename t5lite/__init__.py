"""t5lite: transformers in JAX for research on TPUs, from text to checkpoint and back to text.

`import t5lite` costs milliseconds: rooms and functions load when they are first used.
"""

import importlib
from typing import Any

from t5lite.platforms import skip_absent_tpu
from t5lite.public_names import FUNCTIONS, PUBLIC, ROOMS

__version__ = "0.1.0"

__all__ = list(PUBLIC)

skip_absent_tpu()  # before a room imports JAX


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        return getattr(importlib.import_module(FUNCTIONS[name]), name)
    if name in ROOMS:
        return importlib.import_module(f"t5lite.{name}")
    raise AttributeError(f"module 't5lite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
