"""Mask rules against their definitions."""

import dataclasses
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


def test_a_causal_query_sees_itself_and_earlier_keys():
    whole = AttentionMask.within(jnp.ones((1, 4), jnp.int32), causal=True)
    np.testing.assert_array_equal(whole.array(), np.tri(4, dtype=bool)[None, None])
    # Rows of a cache stand at different places among the same slots.
    cached = AttentionMask(q_order=ids([0, 1], [2, 3]), kv_order=ids([0, 1, 2, 3]), causal=True)
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


def test_a_window_reaches_as_far_on_either_side():
    whole = AttentionMask.within(jnp.ones((1, 5), jnp.int32), causal=False)
    assert whole.within_window(None) is whole
    distance = np.abs(np.arange(5)[None] - np.arange(5)[:, None])
    np.testing.assert_array_equal(whole.within_window(1).array()[0, 0], distance <= 1)
    causal = AttentionMask.within(jnp.ones((1, 5), jnp.int32), causal=True).within_window(2)
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(causal.array()[0, 0], seen)


def test_windows_in_a_cache_go_by_slots():
    slots = ids([0, 1], [3, 4])
    mask = AttentionMask(q_order=slots, kv_order=ids([0, 1, 2, 3, 4]), causal=True)
    seen = mask.within_window(2).array()[:, 0]
    np.testing.assert_array_equal(
        seen, [[[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]]
    )


def everything(seed=0, batch=2, length=6):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, 4, (batch, length)), axis=1).astype(np.int32)
    segments[:, -1] = 0
    prefix = jnp.asarray(rng.random((batch, length)) < 0.5)
    return AttentionMask.within(jnp.asarray(segments), causal=True, prefix=prefix)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_all_rules_together_are_their_definition(causal, window):
    """A window holds within a prefix too; without order, a prefix has nothing to lift."""
    mask = dataclasses.replace(everything(), causal=causal).within_window(window)
    segments, prefix = np.asarray(mask.q_segments), np.asarray(mask.q_prefix)
    seen = np.asarray(mask.array()[:, 0])
    for row, q, k in itertools.product(range(2), range(6), range(6)):
        same = segments[row, q] == segments[row, k] > 0
        ordered = not causal or k <= q or (prefix[row, q] and prefix[row, k])
        near = window is None or abs(q - k) <= window
        assert seen[row, q, k] == (same and ordered and near)


@pytest.mark.parametrize(("start", "window"), [(0, None), (2, 1), (4, 2)])
def test_a_part_of_the_queries_has_its_part_of_the_rule(start, window):
    mask = everything().within_window(window)
    part = jax.jit(lambda mask, start: mask.queries(start, 2).array())(mask, jnp.int32(start))
    np.testing.assert_array_equal(part, mask.array()[:, :, start : start + 2])
