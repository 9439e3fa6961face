"""Mask rules against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.layers import AttentionMask


def ids(*rows):
    return jnp.asarray(rows, jnp.int32)


def flags(*rows):
    return jnp.asarray(rows, bool)


def test_without_a_rule_there_is_no_array():
    assert AttentionMask().array() is None


def test_causal_shows_a_query_its_own_place_and_those_before():
    whole = AttentionMask.within(jnp.ones((1, 4), jnp.int32), causal=True)
    np.testing.assert_array_equal(whole.array(), np.tri(4, dtype=bool)[None, None])
    # Rows of a cache stand at different places among the same slots.
    cached = AttentionMask(q_order=ids([0, 1], [2, 3]), kv_order=ids([0, 1, 2, 3]))
    assert cached.array().shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(
        cached.array()[:, 0], [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
    )


def test_segments_see_themselves_and_padding_is_never_seen():
    mask = AttentionMask(ids([1, 1, 2, 0], [1, 2, 3, 3]), ids([2, 1, 0], [3, 3, 0]))
    seen = mask.array()
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
    seen = AttentionMask(kv_segments=ids([1, 0], [2, 1])).array()
    np.testing.assert_array_equal(seen, np.array([[1, 0], [1, 1]], bool)[:, None, None])


def everything(seed=0, batch=2, length=6):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, 4, (batch, length)), axis=1).astype(np.int32)
    segments[:, -1] = 0
    prefix = jnp.asarray(rng.random((batch, length)) < 0.5)
    return AttentionMask.within(jnp.asarray(segments), causal=True, prefix=prefix)


def test_all_rules_together_are_their_definition():
    mask = everything()
    segments, prefix = np.asarray(mask.q_segments), np.asarray(mask.q_prefix)
    seen = mask.array()[:, 0]
    for row, q, k in itertools.product(range(2), range(6), range(6)):
        same = segments[row, q] == segments[row, k] > 0
        ordered = k <= q or (prefix[row, q] and prefix[row, k])
        assert seen[row, q, k] == (same and ordered)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_a_part_of_the_queries_has_its_part_of_the_rule(start):
    mask = everything()
    part = jax.jit(lambda mask, start: mask.queries(start, 2).array())(mask, jnp.int32(start))
    np.testing.assert_array_equal(part, mask.array()[:, :, start : start + 2])
