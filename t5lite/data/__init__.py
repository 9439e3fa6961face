"""Text to batches: vocabularies, SeqIO tasks, the embedded corpus, packing and the pipeline.

Importing this room is cheap: each name loads its file when first used, and TensorFlow and SeqIO
only inside the functions that need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5lite.data.files import decode_text
    from t5lite.data.pipeline import ArrayData, TaskData
    from t5lite.data.tasks import get_task
    from t5lite.data.vocabularies import (
        Bytes,
        SentencePiece,
        Vocabulary,
        from_seqio,
        load_vocabulary,
        train_sentencepiece,
    )

_HOME = {
    "ArrayData": "pipeline",
    "Bytes": "vocabularies",
    "SentencePiece": "vocabularies",
    "TaskData": "pipeline",
    "Vocabulary": "vocabularies",
    "decode_text": "files",
    "from_seqio": "vocabularies",
    "get_task": "tasks",
    "load_vocabulary": "vocabularies",
    "train_sentencepiece": "vocabularies",
}

__all__ = [
    "ArrayData",
    "Bytes",
    "SentencePiece",
    "TaskData",
    "Vocabulary",
    "decode_text",
    "from_seqio",
    "get_task",
    "load_vocabulary",
    "train_sentencepiece",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
