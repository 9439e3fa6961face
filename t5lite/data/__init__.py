"""Text to batches: datasets, vocabularies, SeqIO tasks, files, caches and the embedded corpus.

Each name loads its file when first used; only functions that need TensorFlow or SeqIO import them.
"""

from typing import TYPE_CHECKING

from t5lite.public_names import lazy_names

if TYPE_CHECKING:
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

__all__ = [
    "Answer",
    "ArrayData",
    "Bytes",
    "Class",
    "Component",
    "Dataset",
    "FileData",
    "HuggingFaceTokenizer",
    "MappedSentencePiece",
    "MixtureData",
    "NoSplit",
    "Number",
    "NumberedSource",
    "PackedData",
    "Part",
    "SentencePiece",
    "ShardedData",
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
    "write_shards",
]

__getattr__, __dir__ = lazy_names(__name__)
