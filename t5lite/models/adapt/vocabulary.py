"""Larger and other vocabularies, whose new rows come from the old ones."""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.models.adapt.parameters import check_parameters, flat, nested
from t5lite.models.model import Model, Params
from t5lite.models.spec import ModelSpec

INITS = ("mean", "normal")
Decompose = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Where each row of a new table comes from.

    Args:
      num_pieces: old rows that pieces have; those behind are padding, and teach nothing.
      source: `[vocab]` int32, the old row that a new one is; -1 for none.
      parts: by new row, the old rows whose mean it is.
      init: how the other rows are drawn, one of `INITS`.
      rng: a PRNG key, for "normal".
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
    """Adds tokens behind those of a vocabulary: to embeddings, logits and their biases.

    Rows of old tokens, and with them their logits, stay as they are. Padding that is left behind
    the new tokens keeps its rows; rows of added padding are like a new token's.

    Args:
      spec: of any model.
      params: its parameters.
      new_tokens: how many, or the new pieces themselves.
      num_pieces: in the old vocabulary, ids 0 .. num_pieces - 1; None for `spec.vocab`. Rows behind
        them are padding: the first new tokens take their places.
      init: of rows that are not decomposed: the "mean" of the old rows, or "normal", drawn around
        it with their covariance (the same combination of old rows in embeddings and logits).
      decompose: maps a new piece to the ids of old ones; its rows are their means. An empty list
        for a piece without any. For pieces alone.
      multiple_of: what the number of rows is rounded up to a multiple of; 1 for as it is.
      rng: a PRNG key, for "normal".

    Returns:
      The spec with its new `vocab`, which is never below the old one, and the parameters.

    Raises:
      InputError: if an argument is out of its range, or the parameters do not fit the spec.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
    """
    num_pieces = _num_pieces(spec, num_pieces)
    pieces: Sequence[str | None]
    if isinstance(new_tokens, int):
        if decompose is not None:
            raise InputError(
                "decompose must be None, or new_tokens the pieces to decompose", field="decompose"
            )
        if new_tokens < 0:
            raise InputError(f"new_tokens must be at least 0, not {new_tokens}", field="new_tokens")
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
      spec: of any model.
      params: its parameters.
      old_pieces: of its vocabulary, in the order of their ids.
      new_pieces: of the new vocabulary; those that are old ones too keep their rows.
      init: of rows that are neither kept nor decomposed; see `extend_vocabulary`.
      decompose: see `extend_vocabulary`.
      multiple_of: see `extend_vocabulary`.
      start_id: what a decoder reads first; None for the piece that it was, or else for 0.
      rng: a PRNG key, for "normal".

    Returns:
      The spec, the parameters, and how many pieces were `kept`, `composed` and `drawn`.

    Raises:
      InputError: if an argument is out of its range, if the start token is not in the new
        vocabulary, or if the parameters do not fit the spec.
    """
    num_pieces = _num_pieces(spec, len(old_pieces), field="old_pieces")
    if not new_pieces:
        raise InputError("new_pieces must be at least one", field="new_pieces")
    places: dict[str, int] = {}
    for index, piece in enumerate(old_pieces):
        places.setdefault(piece, index)
    source = np.full(_rounded(len(new_pieces), multiple_of), -1, np.int32)
    source[: len(new_pieces)] = [places.get(piece, -1) for piece in new_pieces]
    lost: dict[int, str | None] = {
        index: piece for index, piece in enumerate(new_pieces) if source[index] < 0
    }
    parts = _parts(lost, decompose, num_pieces)
    if start_id is None:
        start_id = _start_id(spec, old_pieces, new_pieces)
    elif not 0 <= start_id < len(new_pieces):
        raise InputError(
            f"start_id must be in 0 .. {len(new_pieces) - 1}, not {start_id}", field="start_id"
        )
    plan = _Plan(num_pieces, source, parts, init, rng)
    new_spec, new_params = _applied(spec, params, plan, start_id=start_id)
    counts = {
        "kept": len(new_pieces) - len(lost),
        "composed": len(parts),
        "drawn": len(lost) - len(parts),
    }
    return new_spec, new_params, counts


def tables(spec: ModelSpec) -> dict[str, int]:
    """Returns which axis is the vocabulary's of each parameter that has one, by path."""
    axes = {path: tuple(names) for path, names in flat(Model(spec).axes()).items()}
    return {path: names.index("vocab") for path, names in axes.items() if "vocab" in names}


def _applied(
    spec: ModelSpec, params: Params, plan: _Plan, **changes: Any
) -> tuple[ModelSpec, Params]:
    check_parameters(spec, params)
    if plan.init not in INITS:
        raise InputError(f"init must be one of {', '.join(INITS)}, not {plan.init!r}", field="init")
    if plan.init == "normal" and plan.rng is None and len(plan.drawn):
        raise InputError("rng must be a PRNG key where init is 'normal'", field="rng")
    new_spec = spec.replace(vocab=len(plan.source), **changes)
    leaves = flat(params)
    for path, axis in tables(spec).items():
        rows = jnp.moveaxis(jnp.asarray(leaves[path]), axis, 0)
        made = _rows(rows.reshape(len(rows), -1), plan)
        leaves[path] = jnp.moveaxis(made.reshape(-1, *rows.shape[1:]), 0, axis)
    new_params = nested(leaves)
    check_parameters(new_spec, new_params)
    return new_spec, new_params


def _rows(old: jax.Array, plan: _Plan) -> jax.Array:
    """Returns the new table `[vocab, width]` of an old one."""
    known = old[: plan.num_pieces].astype(jnp.float32)
    new = jnp.take(old, np.maximum(plan.source, 0), axis=0)
    if len(plan.drawn):
        new = new.at[plan.drawn].set(_drawn(known, plan).astype(old.dtype))
    if plan.parts:
        sizes = np.array([len(ids) for ids in plan.parts.values()], np.int32)
        flat_ids = np.concatenate([np.array(ids, np.int32) for ids in plan.parts.values()])
        owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        sums = jax.ops.segment_sum(known[flat_ids], owner, num_segments=len(sizes))
        means = sums / jnp.broadcast_to(sizes.astype(np.float32)[:, None], sums.shape)
        new = new.at[np.array(list(plan.parts), np.int32)].set(means.astype(old.dtype))
    return new


def _drawn(known: jax.Array, plan: _Plan) -> jax.Array:
    """Returns rows `[n, width]` float32 drawn from the old ones `[num_pieces, width]`."""
    num_drawn = len(plan.drawn)
    mean = known.mean(axis=0, keepdims=True)
    if plan.init == "mean":
        return jnp.broadcast_to(mean, (num_drawn, known.shape[1]))
    centred = (known - jnp.broadcast_to(mean, known.shape)) / math.sqrt(len(known))

    # A sum of the old rows with random weights has their covariance, which is never computed.
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (len(known),)) @ centred + mean[0]

    assert plan.rng is not None
    return jax.lax.map(draw, jax.random.split(plan.rng, num_drawn), batch_size=256)


def _parts(
    pieces: dict[int, str | None], decompose: Decompose | None, num_pieces: int
) -> dict[int, list[int]]:
    """Returns, by new row, the old rows that a piece consists of, for those that do."""
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


def _num_pieces(spec: ModelSpec, num_pieces: int | None, *, field: str = "num_pieces") -> int:
    if num_pieces is None:
        return spec.vocab
    if not 1 <= num_pieces <= spec.vocab:
        raise InputError(
            f"{field}: there must be 1 to {spec.vocab}, the rows of the model's embedding, "
            f"and there are {num_pieces}",
            field=field,
        )
    return num_pieces


def _rounded(size: int, multiple_of: int) -> int:
    if multiple_of < 1:
        raise InputError(f"multiple_of must be at least 1, not {multiple_of}", field="multiple_of")
    return -(-size // multiple_of) * multiple_of


def _start_id(spec: ModelSpec, old_pieces: Sequence[str], new_pieces: Sequence[str]) -> int | None:
    """Returns the new id of the token that a decoder reads first."""
    old = spec.start_id
    if old is None:
        return None
    if old < len(old_pieces) and old_pieces[old] in new_pieces:
        return new_pieces.index(old_pieces[old])
    if spec.decoder is None or old == 0:
        return 0
    raise InputError(
        f"start_id must be given: the decoder reads {old} first, which is no piece of the new "
        "vocabulary",
        field="start_id",
    )
