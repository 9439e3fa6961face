"""Unigram vocabularies with T5's conventions, trained once."""

import hashlib
import io
import json
import os
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t5lite.data import paths
from t5lite.data.paths import decode_text, write_whole
from t5lite.data.vocabularies.sentence_pieces import SentencePiece
from t5lite.errors import InputError

_FORMAT = 1


def train_sentencepiece(
    texts: Iterable[str | bytes],
    size: int,
    *,
    num_sentinels: int = 100,
    cache_folder: str | os.PathLike | None = None,
) -> SentencePiece:
    """Trains a unigram vocabulary with T5's conventions, or returns the cached one of equal text.

    Padding is 0, EOS 1, unknown 2, without BOS; text is NFKC-normalised and runs of white
    space, newlines included, become one space, as in T5's own vocabulary.

    Args:
      texts: documents; bytes must be UTF-8. All are held in memory.
      size: number of ids in all, sentinels included.
      num_sentinels: number of sentinels among them.
      cache_folder: of the model file; by default `t5lite.data.paths.cache_folder()`.
    Raises: InputError if the text is empty, not UTF-8 or too little for `size`, or the cache cannot
      be written.
    Source: Kudo 2018, arXiv:1804.10959; Raffel et al. 2020, arXiv:1910.10683, §2.2.
    """
    documents = [
        decode_text(text, where=f"text {index} for the vocabulary")
        if isinstance(text, bytes)
        else text
        for index, text in enumerate(texts)
    ]
    # All are part of the key; the number of threads too, since sums are taken per thread.
    options = {
        "vocab_size": size - num_sentinels,
        "model_type": "unigram",
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "character_coverage": 0.9999,
        "required_chars": string.ascii_letters + string.digits + string.punctuation,
        "max_sentence_length": 1 << 20,
        "num_threads": 4,
    }
    digest = hashlib.sha256(json.dumps([_FORMAT, options], sort_keys=True).encode())
    for document in documents:
        encoded = document.encode("utf-8", errors="replace")
        digest.update(b"%d:" % len(encoded) + encoded)
    folder = paths.cache_folder() if cache_folder is None else Path(cache_folder)
    path = folder / "vocabularies" / f"unigram_{size}_{digest.hexdigest()[:24]}.model"
    if not path.exists():
        # Two processes may both train: the results are equal, and each is written whole.
        write_whole(path, _train(documents, options, num_sentinels))
    return SentencePiece(path, num_sentinels)


def _train(documents: list[str], options: dict[str, Any], num_sentinels: int) -> bytes:
    import sentencepiece

    if options["vocab_size"] < 4:
        raise InputError(
            f"size={options['vocab_size'] + num_sentinels} leaves no pieces beside "
            f"{num_sentinels} sentinels; use a larger size",
            field="size",
        )
    lines = [line for document in documents for line in document.splitlines() if line.strip()]
    if not lines:
        raise InputError("no text to train a vocabulary on; the split is empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **options
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"cannot train a vocabulary of size={options['vocab_size'] + num_sentinels} "
            f"({num_sentinels} sentinels included) on {sum(map(len, lines))} characters: "
            f"{str(error).rpartition('] ')[2].splitlines()[0][:200]}",
            field="size",
        ) from error
    return model.getvalue()
