"""Random omission keeps expectations."""

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.layers import Dropout, drop_residual


def test_dropout_scales_kept_elements():
    x = jnp.ones((100, 100))
    out = Dropout(jax.random.key(0), 0.25)(x)
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert abs(float(out.mean()) - 1) < 0.03
    second = Dropout(jax.random.key(0), 0.25).fold_in(jnp.int32(1))(x)
    assert not np.array_equal(out, second)


def test_stochastic_depth_drops_whole_examples():
    update = jnp.ones((400, 3, 2), jnp.bfloat16)
    out = jax.jit(drop_residual)(update, jax.random.key(0), jnp.float32(0.5))
    assert out.dtype == jnp.bfloat16
    per_example = np.asarray(out, np.float32).reshape(400, -1)
    assert set(np.unique(per_example)) == {0.0, 2.0}
    assert np.all(per_example.min(axis=1) == per_example.max(axis=1))
    assert abs(per_example.mean() - 1) < 0.15
    np.testing.assert_array_equal(drop_residual(update, jax.random.key(0), jnp.float32(0)), update)
