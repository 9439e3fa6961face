"""Word vectors of word2vec, GloVe and fastText as initial embeddings."""

import gzip
from collections.abc import Collection, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t5lite.errors import InputError
from t5lite.models.adapt.parameters import check_parameters, flat, nested, require
from t5lite.models.adapt.vocabulary import check_pieces, tables
from t5lite.models.model import Params
from t5lite.models.spec import ModelSpec

# Marks of pieces that begin a word (SentencePiece, byte-level BPE) or continue one.
MARKS = ("▁", "Ġ", "##")


def vectors_from_text(
    path: epath.PathLike, *, only: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads word vectors, `[width]` float32: lines of a word, which may contain spaces, and
    numbers.

    A first line of two integers, the number of words and the width (word2vec, fastText), is checked
    against the rest. Of words that occur twice, the first counts.

    Args:
      path: of the file, perhaps `.gz`.
      only: the words to return; None for all.
    Raises: InputError if the file is missing or empty, or a line is damaged.
    """
    vectors: dict[str, np.ndarray] = {}
    width, announced, count = None, None, 0
    for number, line in _lines(path):
        fields = line.split(" ")
        if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
            announced, width = int(fields[0]), int(fields[1])
            continue
        width = len(fields) - 1 if width is None else width
        # A word may contain spaces (GloVe), but if only numbers follow them, there are too many.
        further = fields[1:-width] if width else []
        if width < 1 or len(fields) <= width or (further and all(map(_is_number, further))):
            raise InputError(
                f"{path}: line {number} holds {len(fields) - 1} numbers after its word instead of "
                f"{max(width, 1)}; it must be a text of word vectors, whole"
            )
        count += 1
        word = " ".join(fields[:-width])
        if word in vectors or (only is not None and word not in only):
            continue
        vectors[word] = _numbers(fields[-width:], f"{path}: line {number}")
    if not count:
        raise InputError(f"{path} holds no word vectors; it must be a text, a line for each word")
    if announced not in (None, count):
        raise InputError(
            f"{path}: its first line announces {announced} words and there are {count}; the file "
            "is incomplete"
        )
    return vectors


def with_vectors(
    spec: ModelSpec,
    params: Params,
    pieces: Sequence[str],
    vectors: Mapping[str, np.ndarray],
    *,
    rng: jax.Array | None = None,
) -> tuple[ModelSpec, Params, int]:
    """Sets the embeddings of pieces to word vectors, where there are any; other rows stay.

    A piece is looked up as it is, then without the mark that begins or continues a word, then in
    lower case. Vectors are scaled together, so that those matched have the old rows' mean length.
    Narrower ones are rotated into a random subspace of the embedding's width, which preserves the
    angles between them; wider ones are projected onto a random subspace.

    Args:
      spec, params: of any model; tied logits change with the embedding, others do not.
      pieces: of its vocabulary, in the order of their ids.
      vectors: `[width]` for each word, as `vectors_from_text` returns them.
      rng: a PRNG key; needed only where widths differ.
    Returns: the spec, the parameters, and how many pieces were matched.
    Raises: InputError if there are more pieces than rows, vectors differ in width, `rng` is
    missing, or the parameters do not fit the spec.
    Source: Kocmi and Bojar 2017, arXiv:1711.09160 (what initial embeddings are worth).
    """
    check_parameters(spec, params)
    check_pieces(spec, len(pieces), field="pieces")
    shapes = {np.shape(vector) for vector in vectors.values()}
    require(
        len(shapes) == 1 and all(len(shape) == 1 for shape in shapes),
        "vectors",
        f"vectors must all have one width; there are shapes {sorted(shapes)}",
    )
    matched = [(row, word) for row, piece in enumerate(pieces) if (word := _match(piece, vectors))]
    if not matched:
        return spec, params, 0
    rows = np.array([row for row, _ in matched], np.int32)
    values = jnp.asarray(np.stack([vectors[word] for _, word in matched]).astype(np.float32))
    leaves = flat(params)
    for path, axis in tables(spec).items():
        table = leaves[path] = jnp.asarray(leaves[path])
        if axis == 0 and table.ndim == 2:  # looked up, rather than giving logits
            fitted = _fitted(values, table[: len(pieces)].astype(jnp.float32), rng)
            leaves[path] = table.at[rows].set(fitted.astype(table.dtype))
    return spec, nested(leaves), len(matched)


def _fitted(values: jax.Array, old: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Returns vectors `[n, width]` as wide and, in the mean, as long as old rows `[m, embed]`."""
    width, embed = values.shape[1], old.shape[1]
    if width != embed:
        if rng is None:
            message = f"rng must be a PRNG key: vectors are {width} wide and the embedding {embed}"
            raise InputError(message, field="rng")
        rotation = jax.random.orthogonal(rng, max(width, embed))
        values = values @ rotation[:width, :embed]

    def length(rows: jax.Array) -> jax.Array:
        return jnp.mean(jnp.linalg.norm(rows, axis=1))

    return values * (length(old) / jnp.maximum(length(values), 1e-30))


def _match(piece: str, vectors: Mapping[str, np.ndarray]) -> str | None:
    bare = piece
    for mark in MARKS:
        bare = bare.removeprefix(mark)
    return next((word for word in (piece, bare, bare.lower()) if word and word in vectors), None)


def _lines(path: epath.PathLike) -> Iterator[tuple[int, str]]:
    """Yields numbered lines, from 1, without empty ones; bytes beyond UTF-8 become "�"."""
    path = epath.Path(path)
    try:
        with path.open("rb") as file:
            opened = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            for number, line in enumerate(opened, 1):
                text = line.decode("utf-8", errors="replace").rstrip(" \r\n")
                if text:
                    yield number, text
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it must be a text of word vectors") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from error


def _numbers(fields: list[str], line: str) -> np.ndarray:
    try:
        vector = np.array([float(field) for field in fields], np.float32)
    except ValueError as error:
        raise InputError(f"{line}: {error}; it must be a word and its numbers") from error
    if not np.isfinite(vector).all():
        raise InputError(f"{line} holds a number that is not finite; fix or remove it")
    return vector


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
