"""Positions that are added to token embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.layers import LearnedPositionsSpec, SinusoidalPositionsSpec

PLACES = jnp.asarray([[0, 1, 2, 0]], jnp.int32)  # the last begins another text


def test_learned_positions_are_rows_of_a_named_table():
    module = LearnedPositionsSpec(6).make(4, jnp.dtype("float32"))
    out, params = module.init_with_output(jax.random.key(0), PLACES)
    table = params["params"]["embedding"]
    assert table.names == ("positions", "embed")
    np.testing.assert_array_equal(out, table.value[PLACES])


def test_rows_before_the_offset_are_never_read():
    module = LearnedPositionsSpec(4, offset=2).make(3, jnp.dtype("float32"))
    out, params = module.init_with_output(jax.random.key(0), PLACES)
    table = params["params"]["embedding"].value
    assert table.shape == (6, 3)
    np.testing.assert_array_equal(out, table[PLACES + 2])
    last = module.apply({"params": {"embedding": table}}, jnp.full((1, 1), 3, jnp.int32))
    np.testing.assert_array_equal(last[0, 0], table[5])
    longer = jnp.zeros((1, 5), jnp.int32)
    with pytest.raises(InputError, match=r"sequence of 5 tokens: .* learned positions for 4"):
        module.apply({"params": {"embedding": table}}, longer)
    with pytest.raises(InputError, match=r"LearnedPositionsSpec.offset = -1: must be at least 0"):
        LearnedPositionsSpec(4, offset=-1)


def test_longer_sequences_than_there_are_positions_are_refused():
    module = LearnedPositionsSpec(3).make(4, jnp.dtype("float32"))
    with pytest.raises(InputError, match=r"sequence of 4 tokens: .* learned positions for 3"):
        jax.eval_shape(module.init, jax.random.key(0), PLACES)


def test_sinusoids_have_no_parameters_and_their_formula():
    module = SinusoidalPositionsSpec().make(4, jnp.dtype("float32"))
    out, params = module.init_with_output(jax.random.key(0), PLACES)
    assert not params
    angles = np.array([2.0, 2.0 / 100])
    np.testing.assert_allclose(out[0, 2], [*np.sin(angles), *np.cos(angles)], rtol=1e-5)
    np.testing.assert_array_equal(out[0, 3], out[0, 0])
