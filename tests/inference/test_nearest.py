"""Nearest neighbours: as by sorting all."""

import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.inference.embedding import nearest


@pytest.mark.parametrize("count", [1, 5, 40, 99])
def test_as_by_sorting_all(count):
    rng = np.random.default_rng(count)
    vectors, query = rng.standard_normal((40, 6), np.float32), rng.standard_normal(6, np.float32)
    vectors[7] = vectors[3] * np.float32(2.5)  # of equal direction: the earlier first, if at all
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    indices, similarities = nearest(vectors, query, count)
    assert similarities.dtype == np.float32
    assert len(set(indices.tolist())) == indices.size == min(count, 40)
    np.testing.assert_allclose(similarities, np.sort(cosines)[::-1][:count], atol=1e-6)
    np.testing.assert_allclose(similarities, cosines[indices], atol=1e-6)


def test_ties_and_zero_vectors():
    vectors = np.array([[0, 0], [1, 0], [np.nan, 1], [-1, 0], [1, 0], [0, 2]], np.float32)
    indices, similarities = nearest(vectors, np.array([3, 0], np.float32), 6)
    assert indices.tolist() == [1, 4, 0, 5, 3]
    assert similarities.tolist() == [1, 1, 0, 0, -1]
    assert nearest(vectors, np.array([3, 0], np.float32), 1)[0].tolist() == [1]
    assert nearest(vectors[2:3], np.array([3, 0], np.float32))[0].tolist() == []


def test_other_sizes():
    with pytest.raises(InputError, match=r"vectors of shape \[2, 3\] and a query of shape \[4\]"):
        nearest(np.zeros((2, 3), np.float32), np.zeros(4, np.float32))
    with pytest.raises(InputError, match="count = 0: must be"):
        nearest(np.zeros((2, 3), np.float32), np.zeros(3, np.float32), 0)
