import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.decoding import choose, token_log_probabilities
from t5lite.errors import InputError


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals():
    logits = jnp.array([[0.0, 2.0, 1.0], [3.0, -1.0, 3.0]])
    np.testing.assert_array_equal(choose(logits, None), [1, 0])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2])
def test_sampled_frequencies_follow_the_tempered_softmax(temperature):
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.07, 0.03]))
    draws = choose(
        jnp.broadcast_to(logits, (20_000, 5)), jax.random.key(3), temperature=temperature
    )
    assert draws.dtype == jnp.int32
    counts = np.bincount(np.asarray(draws), minlength=5)
    expected = np.asarray(jax.nn.softmax(logits / temperature), np.float64) * len(draws)
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert chi_square < 18.47, counts  # the 0.999 quantile at 4 degrees of freedom


def test_temperature_may_be_traced():
    logits = jnp.array([[0.0, 1.0, 2.0]] * 8)
    sample = jax.jit(lambda t: choose(logits, jax.random.key(0), temperature=t))
    fixed = choose(logits, jax.random.key(0), temperature=0.7)
    np.testing.assert_array_equal(sample(jnp.float32(0.7)), fixed)


def test_bad_requests_say_what_to_do():
    logits = jnp.zeros((1, 3))
    with pytest.raises(InputError, match=r"temperature=-1\.0"):
        choose(logits, None, temperature=-1.0)
    with pytest.raises(InputError, match="needs rng"):
        choose(logits, None, temperature=1.0)


def test_token_log_probabilities_are_the_softmax_at_the_token():
    logits = jnp.array([[[0.0, 1.0], [5.0, 5.0]]], jnp.bfloat16)
    got = token_log_probabilities(logits, jnp.array([[1, 0]]))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [[-np.log1p(np.exp(-1.0)), -np.log(2.0)]], rtol=1e-6)
