"""Text to batches: vocabularies, SeqIO tasks, the embedded corpus, packing and the pipeline.

Importing this room is cheap: each name loads its file when first used, and TensorFlow and SeqIO
only inside the functions that need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5lite.data.columns import Answer, Class, Number, Tags
    from t5lite.data.file_data import FileData
    from t5lite.data.files import decode_text
    from t5lite.data.mapped_sentencepiece import MappedSentencePiece
    from t5lite.data.mixture import MixtureData, mixing_rates
    from t5lite.data.packed_cache import PackedData
    from t5lite.data.packed_writer import write_packed
    from t5lite.data.pipeline import ArrayData
    from t5lite.data.python_docs_tables import (
        documents_jsonl,
        functions_jsonl,
        held_out_documents_jsonl,
        modules_csv,
        names_jsonl,
    )
    from t5lite.data.seqio_cache import write_seqio_cache
    from t5lite.data.task_data import TaskData
    from t5lite.data.tasks import get_task, python_docs_vocabulary
    from t5lite.data.templates import Template
    from t5lite.data.tokenizers_vocabularies import HuggingFaceTokenizer, WordPiece
    from t5lite.data.vocabularies import (
        Bytes,
        SentencePiece,
        Vocabulary,
        from_seqio,
        load_vocabulary,
        open_vocabulary,
        train_sentencepiece,
    )

_HOME = {
    "Answer": "columns",
    "ArrayData": "pipeline",
    "Bytes": "vocabularies",
    "Class": "columns",
    "FileData": "file_data",
    "HuggingFaceTokenizer": "tokenizers_vocabularies",
    "MappedSentencePiece": "mapped_sentencepiece",
    "MixtureData": "mixture",
    "Number": "columns",
    "PackedData": "packed_cache",
    "SentencePiece": "vocabularies",
    "Tags": "columns",
    "TaskData": "task_data",
    "Template": "templates",
    "Vocabulary": "vocabularies",
    "WordPiece": "tokenizers_vocabularies",
    "decode_text": "files",
    "documents_jsonl": "python_docs_tables",
    "from_seqio": "vocabularies",
    "functions_jsonl": "python_docs_tables",
    "get_task": "tasks",
    "held_out_documents_jsonl": "python_docs_tables",
    "load_vocabulary": "vocabularies",
    "open_vocabulary": "vocabularies",
    "mixing_rates": "mixture",
    "modules_csv": "python_docs_tables",
    "names_jsonl": "python_docs_tables",
    "python_docs_vocabulary": "tasks",
    "train_sentencepiece": "vocabularies",
    "write_packed": "packed_writer",
    "write_seqio_cache": "seqio_cache",
}

__all__ = [
    "Answer",
    "ArrayData",
    "Bytes",
    "Class",
    "FileData",
    "HuggingFaceTokenizer",
    "MappedSentencePiece",
    "MixtureData",
    "Number",
    "PackedData",
    "SentencePiece",
    "Tags",
    "TaskData",
    "Template",
    "Vocabulary",
    "WordPiece",
    "decode_text",
    "documents_jsonl",
    "from_seqio",
    "functions_jsonl",
    "get_task",
    "held_out_documents_jsonl",
    "load_vocabulary",
    "mixing_rates",
    "modules_csv",
    "names_jsonl",
    "open_vocabulary",
    "python_docs_vocabulary",
    "train_sentencepiece",
    "write_packed",
    "write_seqio_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
