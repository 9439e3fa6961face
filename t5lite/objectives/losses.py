"""Losses over token ids, as pure functions of logits."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any
LOSS_NORMALIZING_FACTORS = (
    "NUM_REAL_TARGET_TOKENS",
    "NUM_TOTAL_TARGET_TOKENS",
    "AVERAGE_PER_SEQUENCE",
)


class TokenLosses(NamedTuple):
    """Losses of each position, `[batch, length]` float32.

    Attributes:
      cross_entropy: nats, with label smoothing; 0 is the best reachable value, smoothed or not.
      negative_log_likelihood: nats, never smoothed, for perplexity.
      z_squared: the square of the log of the softmax's normaliser (the z-loss, unscaled).
      correct: 1 where the target's logit is above every other (a tie is a mistake), else 0.
    """

    cross_entropy: jax.Array
    negative_log_likelihood: jax.Array
    z_squared: jax.Array
    correct: jax.Array


def cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0
) -> TokenLosses:
    """Returns the cross entropy of every position; that of padding has no meaning.

    Gradients with respect to logits are `softmax - soft targets` plus `2 log Z softmax` for the
    z-loss, computed without a difference of large numbers.

    Args:
      logits: `[batch, length, vocab]`, computed with in float32. Ids that pad the vocabulary are
        classes like any other.
      targets: `[batch, length]` int32 in `[0, vocab)`.
      label_smoothing: the probability, in `[0, 1)`, divided evenly among the other classes.
    Source: Szegedy et al. 2016, arXiv:1512.00567, §7 (label smoothing); Mesh TensorFlow's z-loss as
      described in Chowdhery et al. 2022, arXiv:2204.02311, §5.
    """
    logits = logits.astype(jnp.float32)
    # A comparison with an iota fuses into the reductions and splits along a sharded vocabulary; a
    # gather would transpose to a scatter.
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    is_target = classes == targets[..., None]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    nll = log_z - target_logit
    best_other = jnp.max(jnp.where(is_target, -jnp.inf, logits), axis=-1)
    smoothed = nll
    if label_smoothing:
        num_others = logits.shape[-1] - 1
        others_nll = (num_others + 1) * (log_z - jnp.mean(logits, axis=-1)) - nll
        smoothed = (1 - label_smoothing) * nll + (label_smoothing / num_others) * others_nll
        smoothed = smoothed - _smoothing_entropy(label_smoothing, num_others)
    correct = (target_logit > best_other).astype(jnp.float32)
    return TokenLosses(smoothed, nll, jnp.square(log_z), correct)


def _smoothing_entropy(label_smoothing: float, num_others: int) -> float:
    """Returns the entropy of the soft targets: no prediction gets below it. T5X's constant."""
    confidence, low = 1 - label_smoothing, label_smoothing / num_others
    return -(confidence * math.log(confidence) + num_others * low * math.log(low + 1e-20))


def chunked(fn: Callable[..., Tree], *arrays: jax.Array, chunk_length: int | None) -> Tree:
    """Returns `fn(*arrays)`, computed for a chunk of positions at a time.

    Only one chunk's intermediate values (its logits, say) exist at once; the backward pass
    computes them again.

    Args:
      fn: `[batch, n, ...]` arrays → a tree of `[batch, n, ...]` arrays, position by position.
      *arrays: `[batch, length, ...]`.
      chunk_length: the most positions at once, >= 1; None takes them all and recomputes nothing.
    """
    batch, length = arrays[0].shape[:2]
    if chunk_length is None or chunk_length >= length:
        return fn(*arrays)
    num_chunks = -(-length // chunk_length)
    size = -(-length // num_chunks)  # even chunks: a last one that is nearly empty wastes the most

    def split(array: jax.Array) -> jax.Array:  # to [num_chunks, batch, size, ...]
        padding = [(0, 0), (0, num_chunks * size - length)] + [(0, 0)] * (array.ndim - 2)
        array = jnp.pad(array, padding).reshape(batch, num_chunks, size, *array.shape[2:])
        return jnp.moveaxis(array, 1, 0)

    def join(chunks: jax.Array) -> jax.Array:  # to [batch, length, ...]
        whole = jnp.moveaxis(chunks, 0, 1).reshape(batch, num_chunks * size, *chunks.shape[3:])
        return whole[:, :length]

    # Inside a scan nothing can be shared with the forward pass, so the barrier is not needed.
    computed = jax.checkpoint(lambda chunk: fn(*chunk), prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(computed, tuple(map(split, arrays))))


def chunked_cross_entropy(
    logits_fn: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    *,
    label_smoothing: float = 0.0,
    chunk_length: int | None = None,
) -> TokenLosses:
    """Computes `cross_entropy(logits_fn(hidden), targets)` in chunks of positions.

    Args:
      logits_fn: `[batch, n, embed] -> [batch, n, vocab]`, position by position.
      hidden: `[batch, length, embed]`, any float dtype.
      targets: `[batch, length]` int32.
      label_smoothing: see `cross_entropy`.
      chunk_length: see `chunked`.
    """

    def losses(hidden: jax.Array, targets: jax.Array) -> TokenLosses:
        return cross_entropy(logits_fn(hidden), targets, label_smoothing=label_smoothing)

    return chunked(losses, hidden, targets, chunk_length=chunk_length)


def normalized_weights(
    weights: jax.Array, factor: float | str | None, *, segment_ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the token weights of a loss normalising factor, and the divisor of their sum.

    Args:
      weights: `[batch, length]` float32, 0 on padding; so are the weights returned.
      factor: None or "NUM_REAL_TARGET_TOKENS": the sum of `weights`; "NUM_TOTAL_TARGET_TOKENS":
        batch times length, padding included; "AVERAGE_PER_SEQUENCE": every sequence counts as
        much as any other, however long; a number: that number.
      segment_ids: `[batch, length]` int32, the sequences packed in a row; None: a row is one.
    Source: T5X, `losses.get_loss_normalizing_factor_and_weights`; None differs (there the sum is
      not divided at all).
    """
    if factor is None or factor == "NUM_REAL_TARGET_TOKENS":
        return weights, jnp.sum(weights)
    if factor == "NUM_TOTAL_TARGET_TOKENS":
        return weights, jnp.float32(weights.size)
    if factor == "AVERAGE_PER_SEQUENCE":
        if segment_ids is None:
            totals = jnp.sum(weights, axis=1, keepdims=True)
        else:  # compared pairwise rather than scattered: fuses, and rows may be sharded
            together = segment_ids[:, :, None] == segment_ids[:, None, :]
            totals = jnp.sum(jnp.where(together, weights[:, None, :], 0.0), axis=2)
        weights = weights / jnp.where(totals == 0, 1.0, totals)
        return weights, jnp.sum(weights)
    return weights, jnp.float32(factor)
