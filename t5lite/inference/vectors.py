"""Files of embeddings and their texts: `.npz`, `.npy` and `.jsonl`."""

import itertools
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from t5lite.data.files.readers import DataFile
from t5lite.errors import InputError

ENDINGS = (".npz", ".npy", ".jsonl")


def write_vectors(
    file: BinaryIO, ending: str, vectors: Sequence[np.ndarray | None], texts: Sequence[str]
) -> None:
    """Writes `[n, size]` float32, NaN for None; an `.npz` holds the texts too.

    An `.npz` has `embeddings`, `text_bytes` `[bytes]` uint8, the UTF-8 of all texts, and
    `text_offsets` `[n + 1]` int64: text i is `text_bytes[text_offsets[i]:text_offsets[i + 1]]`. An
    array of strings would give every text the size of the longest.
    """
    size = next(vector.size for vector in vectors if vector is not None)
    missing = np.full(size, np.nan, np.float32)
    embeddings = np.stack([missing if vector is None else vector for vector in vectors])
    if ending == ".npy":
        np.save(file, embeddings)
        return
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    content = np.frombuffer(b"".join(encoded), np.uint8)
    np.savez(file, embeddings=embeddings, text_bytes=content, text_offsets=offsets)


def read_vectors(path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
    """Returns vectors `[n, size]` float32 and their texts; for an `.npy`, `row 0`, `row 1`, …

    Raises: InputError if the file is missing, or `write_vectors` did not write it.
    """
    file = Path(path).expanduser()
    if file.suffix not in ENDINGS:
        raise InputError(f"--among={path}: must end in {' or '.join(ENDINGS)}", field="among")
    try:
        if file.suffix == ".jsonl":
            rows = [line.row for line in DataFile(str(file), "jsonl").scan() if line.row]
            rows = [row for row in rows if "embedding" in row]
            vectors = np.array([row["embedding"] for row in rows])
            texts = [str(row.get("text", "")) for row in rows]
        else:
            with file.open("rb") as opened:  # np.load would leave a damaged file open
                content = np.load(opened)
                if file.suffix == ".npz":
                    vectors, texts = content["embeddings"], _texts_in(content)
                else:
                    vectors, texts = content, [f"row {row}" for row in range(len(content))]
        if vectors.ndim != 2 or not len(vectors) or len(texts) != len(vectors):
            raise ValueError(f"vectors of shape {list(vectors.shape)} and {len(texts)} texts")
        return vectors.astype(np.float32), texts
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        message = f"--among={path}: not a file of t5lite embed: {error}"
        raise InputError(message, field="among") from error


def _texts_in(content: Any) -> list[str]:
    """Returns the texts of an `.npz`; earlier versions stored an array of strings, `texts`."""
    if "texts" in content:
        return content["texts"].tolist()
    raw, offsets = content["text_bytes"].tobytes(), content["text_offsets"].tolist()
    return [raw[start:end].decode() for start, end in itertools.pairwise(offsets)]
