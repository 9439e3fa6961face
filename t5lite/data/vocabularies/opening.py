"""Saved vocabularies, opened."""

import json
import os
from collections.abc import Callable

from t5lite.data.paths import as_path, read_file
from t5lite.data.vocabularies.base import DESCRIPTION, FORMAT, Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.sentence_pieces import MappedSentencePiece, SentencePiece
from t5lite.data.vocabularies.tokenizer_files import HuggingFaceTokenizer, WordPiece
from t5lite.errors import InputError, unknown

# The only classes that a description can instantiate.
_LOADERS: dict[str, Callable[..., Vocabulary]] = {
    "Bytes": lambda folder, num_sentinels, **options: Bytes(num_sentinels, **options),
    "SentencePiece": SentencePiece.load,
    "HuggingFaceTokenizer": HuggingFaceTokenizer.load,
    "WordPiece": WordPiece.load,
    "MappedSentencePiece": MappedSentencePiece.load,
}
_BY_ENDING = {".json": HuggingFaceTokenizer, ".txt": WordPiece}


def open_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """Returns the vocabulary of a saved folder or of a file, by its ending.

    Args:
      path: a folder; or a `tokenizer.json`, a `vocab.txt` (WordPiece) or a SentencePiece model.
    Raises: InputError if it is missing, damaged, or lacks an EOS token.
    """
    location = as_path(path)
    if location.is_dir():
        return load_vocabulary(location)
    return _BY_ENDING.get(location.suffix, SentencePiece)(location)


def load_vocabulary(folder: str | os.PathLike) -> Vocabulary:
    """Returns the vocabulary that `save` wrote into `folder`.

    Raises: InputError if it is missing, damaged, or of an unknown class.
    """
    root = as_path(folder)
    path = root / DESCRIPTION
    content = read_file(path, "vocabulary")
    try:
        description = json.loads(content)
        kind, num_sentinels = description["kind"], int(description["num_sentinels"])
        version, fingerprint = description["format"], description["fingerprint"]
        options = dict(description.get("options", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; restore the file") from error
    if version != FORMAT:
        raise InputError(
            f"{path} has format {version!r}, this version reads {FORMAT}; upgrade t5lite"
        )
    if kind not in _LOADERS:
        raise unknown("vocabulary kind", kind, _LOADERS)
    try:
        vocabulary = _LOADERS[kind](root, num_sentinels, **options)
    except TypeError as error:
        raise InputError(f"{path} is damaged: {error}; restore the file") from error
    if vocabulary.fingerprint != fingerprint:
        raise InputError(f"{root} is damaged: its vocabulary differs from its {DESCRIPTION}")
    return vocabulary
