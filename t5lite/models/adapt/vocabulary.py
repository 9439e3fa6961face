"""Extended and replaced vocabularies, whose new rows come from the old ones."""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.models.adapt.parameters import check_parameters, flat, nested, require
from t5lite.models.model import Model, Params
from t5lite.models.spec import ModelSpec

INITS = ("mean", "normal")
Decompose = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The origin of each row of a new table.

    Args:
      num_pieces: old rows of pieces; the rest is padding.
      source: `[vocab]` int32, the old row that is copied; -1 for none.
      parts: by new row, the old rows that are averaged.
    """

    num_pieces: int
    source: np.ndarray
    parts: dict[int, list[int]]
    init: str
    rng: jax.Array | None

    @property
    def drawn(self) -> np.ndarray:
        """The rows that are neither old ones nor made of them, `[n]` int32."""
        rows = np.flatnonzero(self.source < 0)
        return rows[~np.isin(rows, list(self.parts))].astype(np.int32)


def extend_vocabulary(
    spec: ModelSpec,
    params: Params,
    new_tokens: int | Sequence[str],
    *,
    num_pieces: int | None = None,
    init: Literal["mean", "normal"] = "mean",
    decompose: Decompose | None = None,
    multiple_of: int = 128,
    rng: jax.Array | None = None,
) -> tuple[ModelSpec, Params]:
    """Adds tokens to the end of a vocabulary: to embeddings, logits and their biases.

    Old rows, also those of padding after the new tokens, do not change; rows of added padding are
    initialised like a new token's.

    Args:
      new_tokens: their number, or the new pieces.
      num_pieces: of the old vocabulary; None for `spec.vocab`. Further rows are padding, which the
        first new tokens replace.
      init: of rows that are not decomposed: the "mean" of the old rows, or "normal", drawn around
        it with their covariance (the same combination of old rows in embeddings and logits).
      decompose: maps a new piece to ids of old ones, possibly none; its rows are their means.
      multiple_of: the number of rows is rounded up to a multiple of it.
      rng: a PRNG key, for "normal".
    Returns: the spec, whose `vocab` is never below the old one, and the parameters.
    Raises: InputError if an argument is out of its range, or the parameters do not fit the spec.
    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
    """
    num_pieces = check_pieces(spec, spec.vocab if num_pieces is None else num_pieces)
    pieces: Sequence[str | None]
    if isinstance(new_tokens, int):
        message = "decompose must be None, or new_tokens the pieces to decompose"
        require(decompose is None, "decompose", message)
        require(new_tokens >= 0, "new_tokens", f"new_tokens must be at least 0, not {new_tokens}")
        pieces = [None] * new_tokens
    else:
        pieces = list(new_tokens)
    total = num_pieces + len(pieces)
    vocab = max(spec.vocab, _rounded(total, multiple_of))
    source = np.full(vocab, -1, np.int32)
    source[:num_pieces] = np.arange(num_pieces)
    source[total : spec.vocab] = np.arange(total, max(spec.vocab, total))
    parts = _parts(dict(enumerate(pieces, num_pieces)), decompose, num_pieces)
    return _applied(spec, params, _Plan(num_pieces, source, parts, init, rng))


def replace_vocabulary(
    spec: ModelSpec,
    params: Params,
    old_pieces: Sequence[str],
    new_pieces: Sequence[str],
    *,
    init: Literal["mean", "normal"] = "normal",
    decompose: Decompose | None = None,
    multiple_of: int = 128,
    start_id: int | None = None,
    rng: jax.Array | None = None,
) -> tuple[ModelSpec, Params, dict[str, int]]:
    """Gives a model another vocabulary: embeddings, logits and their biases.

    Args:
      old_pieces: of its vocabulary, in the order of their ids.
      new_pieces: of the new vocabulary; old ones among them keep their rows.
      init, decompose, multiple_of, rng: see `extend_vocabulary`.
      start_id: the token that a decoder reads first; None for the old piece, otherwise 0.
    Returns: the spec, the parameters, and how many pieces were `kept`, `composed` and `drawn`.
    Raises: InputError if an argument is out of its range, if the start token is not in the new
    vocabulary, or if the parameters do not fit the spec.
    """
    num_pieces = check_pieces(spec, len(old_pieces), field="old_pieces")
    require(len(new_pieces) > 0, "new_pieces", "new_pieces must be at least one")
    rows = {piece: row for row, piece in reversed([*enumerate(old_pieces)])}
    source = np.full(_rounded(len(new_pieces), multiple_of), -1, np.int32)
    source[: len(new_pieces)] = [rows.get(piece, -1) for piece in new_pieces]
    unknown: dict[int, str | None] = {
        index: piece for index, piece in enumerate(new_pieces) if source[index] < 0
    }
    parts = _parts(unknown, decompose, num_pieces)
    last = len(new_pieces) - 1
    message = f"start_id must be in 0 .. {last}, not {start_id}"
    require(start_id is None or 0 <= start_id <= last, "start_id", message)
    if start_id is None:
        start_id = _start_id(spec, old_pieces, new_pieces)
    plan = _Plan(num_pieces, source, parts, init, rng)
    new_spec, new_params = _applied(spec, params, plan, start_id=start_id)
    counts = {
        "kept": len(new_pieces) - len(unknown),
        "composed": len(parts),
        "drawn": len(unknown) - len(parts),
    }
    return new_spec, new_params, counts


def tables(spec: ModelSpec) -> dict[str, int]:
    """Returns the vocabulary's axis in the parameters that have one, by path."""
    axes = {path: tuple(names) for path, names in flat(Model(spec).axes()).items()}
    return {path: names.index("vocab") for path, names in axes.items() if "vocab" in names}


def _applied(
    spec: ModelSpec, params: Params, plan: _Plan, **changes: Any
) -> tuple[ModelSpec, Params]:
    check_parameters(spec, params)
    message = f"init must be one of {', '.join(INITS)}, not {plan.init!r}"
    require(plan.init in INITS, "init", message)
    drawn = plan.init == "normal" and len(plan.drawn) > 0
    message = "rng must be a PRNG key where init is 'normal'"
    require(plan.rng is not None or not drawn, "rng", message)
    new_spec = spec.replace(vocab=len(plan.source), **changes)
    leaves = flat(params)
    for path, axis in tables(spec).items():
        rows = jnp.moveaxis(jnp.asarray(leaves[path]), axis, 0)
        table = _rows(rows.reshape(len(rows), -1), plan)
        leaves[path] = jnp.moveaxis(table.reshape(-1, *rows.shape[1:]), 0, axis)
    new_params = nested(leaves)
    check_parameters(new_spec, new_params)
    return new_spec, new_params


def _rows(old: jax.Array, plan: _Plan) -> jax.Array:
    pieces = old[: plan.num_pieces].astype(jnp.float32)
    new = jnp.take(old, np.maximum(plan.source, 0), axis=0)
    if len(plan.drawn):
        new = new.at[plan.drawn].set(_drawn(pieces, plan).astype(old.dtype))
    if plan.parts:
        sizes = np.array([len(ids) for ids in plan.parts.values()], np.int32)
        flat_ids = np.concatenate([np.array(ids, np.int32) for ids in plan.parts.values()])
        owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        sums = jax.ops.segment_sum(pieces[flat_ids], owner, num_segments=len(sizes))
        means = sums / jnp.broadcast_to(sizes.astype(np.float32)[:, None], sums.shape)
        new = new.at[np.array(list(plan.parts), np.int32)].set(means.astype(old.dtype))
    return new


def _drawn(old: jax.Array, plan: _Plan) -> jax.Array:
    """Returns rows `[n, width]` float32 drawn from the old ones `[num_pieces, width]`."""
    num_drawn = len(plan.drawn)
    mean = old.mean(axis=0, keepdims=True)
    if plan.init == "mean":
        return jnp.broadcast_to(mean, (num_drawn, old.shape[1]))
    centred = (old - jnp.broadcast_to(mean, old.shape)) / math.sqrt(len(old))

    # A sum of the old rows with random weights has their covariance, which is never computed.
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (len(old),)) @ centred + mean[0]

    assert plan.rng is not None
    return jax.lax.map(draw, jax.random.split(plan.rng, num_drawn), batch_size=256)


def _parts(
    pieces: dict[int, str | None], decompose: Decompose | None, num_pieces: int
) -> dict[int, list[int]]:
    if decompose is None:
        return {}
    parts = {}
    for row, piece in pieces.items():
        assert piece is not None
        ids = [operator.index(part) for part in decompose(piece)]
        if any(not 0 <= part < num_pieces for part in ids):
            raise InputError(
                f"decompose({piece!r}) = {ids}: must be ids of old pieces, 0 .. {num_pieces - 1}"
            )
        if ids:
            parts[row] = ids
    return parts


def check_pieces(spec: ModelSpec, num_pieces: int, *, field: str = "num_pieces") -> int:
    """Returns the number of pieces, which must fit the model's embedding."""
    require(
        1 <= num_pieces <= spec.vocab,
        field,
        f"{field}: there must be 1 to {spec.vocab}, the rows of the model's embedding, and there "
        f"are {num_pieces}",
    )
    return num_pieces


def _rounded(size: int, multiple_of: int) -> int:
    message = f"multiple_of must be at least 1, not {multiple_of}"
    require(multiple_of >= 1, "multiple_of", message)
    return -(-size // multiple_of) * multiple_of


def _start_id(spec: ModelSpec, old_pieces: Sequence[str], new_pieces: Sequence[str]) -> int | None:
    old = spec.start_id
    if old is None:
        return None
    if old < len(old_pieces) and old_pieces[old] in new_pieces:
        return new_pieces.index(old_pieces[old])
    if spec.decoder is None or old == 0:
        return 0
    raise InputError(
        f"start_id must be given: the decoder reads {old} first, which the new vocabulary lacks",
        field="start_id",
    )
