"""Text to batches: datasets, vocabularies, SeqIO tasks, files, caches and the embedded corpus.

Each name loads its file when first used; only functions that need TensorFlow or SeqIO import them.
"""

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # also read by `_homes`
    from t5lite.data.array_data import ArrayData
    from t5lite.data.dataset import Dataset
    from t5lite.data.demo.tables import (
        documents_jsonl,
        functions_jsonl,
        held_out_documents_jsonl,
        modules_csv,
        names_jsonl,
    )
    from t5lite.data.demo.tasks import python_docs_vocabulary
    from t5lite.data.files.columns import Answer, Class, Number, Tags
    from t5lite.data.files.file_data import FileData
    from t5lite.data.files.templates import Template
    from t5lite.data.mixture import MixtureData, Part, mixing_rates
    from t5lite.data.packed.packed_data import PackedData
    from t5lite.data.packed.writer import write_packed
    from t5lite.data.paths import decode_text
    from t5lite.data.sharded.sharded_data import ShardedData
    from t5lite.data.sharded.writer import write_shards
    from t5lite.data.sources import Component, NoSplit, NumberedSource
    from t5lite.data.tasks.cache import write_seqio_cache
    from t5lite.data.tasks.registry import get_task
    from t5lite.data.tasks.task_data import TaskData
    from t5lite.data.tasks.twins import from_seqio
    from t5lite.data.vocabularies.base import Vocabulary
    from t5lite.data.vocabularies.byte_ids import Bytes
    from t5lite.data.vocabularies.opening import load_vocabulary, open_vocabulary
    from t5lite.data.vocabularies.sentence_pieces import MappedSentencePiece, SentencePiece
    from t5lite.data.vocabularies.tokenizer_files import HuggingFaceTokenizer, WordPiece
    from t5lite.data.vocabularies.training import train_sentencepiece


def _homes() -> dict[str, str]:
    """Returns the module of each public name, as the imports above have it."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


_HOMES = _homes()
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
