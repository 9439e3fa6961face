"""Saved vocabularies, opened."""

import json
import os
from collections.abc import Callable

from t5lite.data.paths import as_path, read_file
from t5lite.data.vocabularies.base import DESCRIPTION, FORMAT, Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.mapped import MappedSentencePiece
from t5lite.data.vocabularies.sentence_pieces import SENTENCEPIECE_FILE, SentencePiece
from t5lite.data.vocabularies.tokenizer_files import HuggingFaceTokenizer, WordPiece
from t5lite.errors import InputError, unknown

# The kinds that a description may name; nothing else is ever instantiated from a file.
_LOADERS: dict[str, Callable[..., Vocabulary]] = {
    "SentencePiece": lambda folder, num_sentinels: SentencePiece(
        folder / SENTENCEPIECE_FILE, num_sentinels
    ),
    "Bytes": lambda folder, num_sentinels, **options: Bytes(num_sentinels, **options),
    "HuggingFaceTokenizer": HuggingFaceTokenizer.load,
    "WordPiece": WordPiece.load,
    "MappedSentencePiece": MappedSentencePiece.load,
}


def open_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """Returns the vocabulary of a folder that `save` wrote, or of a file, by its name's end.

    Args:
      path: a folder; or a `tokenizer.json`, a `vocab.txt` (WordPiece) or a SentencePiece model.

    Raises:
      InputError: if it is missing, damaged, or lacks what a vocabulary needs.
    """
    place = as_path(path)
    if place.is_dir():
        return load_vocabulary(place)
    if place.suffix in (".json", ".txt"):
        kind = HuggingFaceTokenizer if place.suffix == ".json" else WordPiece
        return kind(place)
    return SentencePiece(place)


def load_vocabulary(folder: str | os.PathLike) -> Vocabulary:
    """Returns the vocabulary that `save` wrote into `folder`.

    Raises:
      InputError: if it is missing, damaged, or of a kind this version does not know.
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
        raise InputError(
            f"{root} is damaged: the vocabulary in it is not the one that {DESCRIPTION} describes"
        )
    return vocabulary
