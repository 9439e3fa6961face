"""The vocabulary of the embedded corpus."""

import functools

from t5lite.data.demo import python_docs
from t5lite.data.vocabularies.sentence_pieces import SentencePiece
from t5lite.data.vocabularies.training import train_sentencepiece


@functools.cache
def python_docs_vocabulary() -> SentencePiece:
    """Returns the 4,096-id vocabulary of `python_docs`, trained on first use (a few seconds)."""
    return train_sentencepiece(python_docs.documents("train"), 4096)
