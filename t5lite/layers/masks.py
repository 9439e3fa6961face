"""Boolean attention masks: True where a query may see a key."""

import jax


def causal_mask(q_positions: jax.Array, kv_positions: jax.Array) -> jax.Array:
    """Lets a query see keys at its own position and before.

    Args:
      q_positions: `[batch or 1, q_length]` int32.
      kv_positions: `[batch or 1, kv_length]` int32.

    Returns:
      `[batch or 1, 1, q_length, kv_length]` bool.
    """
    return q_positions[:, None, :, None] >= kv_positions[:, None, None, :]


def segment_mask(q_segments: jax.Array, kv_segments: jax.Array) -> jax.Array:
    """Lets a query see the keys of its own segment; segment 0 (padding) is never seen.

    Args:
      q_segments: `[batch, q_length]` int32; an unpacked row is one segment, number 1.
      kv_segments: `[batch, kv_length]` int32.

    Returns:
      `[batch, 1, q_length, kv_length]` bool, the second axis broadcasting over heads.
    """
    same = q_segments[:, :, None] == kv_segments[:, None, :]
    return (same & (kv_segments > 0)[:, None, :])[:, None]


def padding_mask(kv_valid: jax.Array) -> jax.Array:
    """Lets every query see every valid key.

    Args:
      kv_valid: `[batch, kv_length]` bool.

    Returns:
      `[batch, 1, 1, kv_length]` bool.
    """
    return kv_valid[:, None, None, :]
