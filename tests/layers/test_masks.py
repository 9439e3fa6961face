"""Masks against their definitions."""

import jax.numpy as jnp
import numpy as np

from t5lite.layers import causal_mask, padding_mask, segment_mask


def ids(*rows):
    return jnp.asarray(rows, jnp.int32)


def test_causal_shows_a_query_its_own_position_and_those_before():
    order = jnp.arange(4, dtype=jnp.int32)[None]
    np.testing.assert_array_equal(causal_mask(order, order), np.tri(4, dtype=bool)[None, None])
    # Rows of a cache stand at different places among the same slots.
    seen = causal_mask(ids([0, 1], [2, 3]), order)
    assert seen.shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(
        seen[:, 0], [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
    )


def test_segments_see_themselves_and_padding_is_never_seen():
    seen = segment_mask(ids([1, 1, 2, 0], [1, 2, 3, 3]), ids([2, 1, 0], [3, 3, 0]))
    assert seen.shape == (2, 1, 4, 3)
    assert seen.dtype == bool
    np.testing.assert_array_equal(
        seen[:, 0],
        [
            [[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]],
        ],
    )


def test_padding_is_hidden_from_every_query():
    valid = jnp.asarray([[True, False], [True, True]])
    np.testing.assert_array_equal(padding_mask(valid), np.asarray(valid)[:, None, None, :])
