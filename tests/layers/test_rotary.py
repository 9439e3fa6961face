"""Rotary frequencies against the papers' formulas, pair by pair, and against published code."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.layers import (
    AttentionSpec,
    LinearScalingSpec,
    Llama3ScalingSpec,
    RotarySpec,
    YarnScalingSpec,
    rotate,
)

HEAD_DIM = 16
THETA = 10_000.0


def plain(theta=THETA, size=HEAD_DIM):
    return [theta ** (-2 * pair / size) for pair in range(size // 2)]


def test_linear_scaling_puts_positions_closer_together():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 2, HEAD_DIM)), jnp.float32)
    near, far = (jnp.asarray([[0, 5, 9]], jnp.int32) * factor for factor in (1, 4))
    actual = rotate(x, far, RotarySpec(scaling=LinearScalingSpec(4.0)))
    np.testing.assert_allclose(actual, rotate(x, near, RotarySpec()), atol=1e-5)


def llama3(frequency, scaling):
    """One frequency by its wavelength, as the paper's cases have it."""
    wavelength, length = 2 * math.pi / frequency, scaling.original_length
    if wavelength < length / scaling.high_frequency_factor:
        return frequency
    if wavelength > length / scaling.low_frequency_factor:
        return frequency / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


@pytest.mark.parametrize(
    "scaling",
    [Llama3ScalingSpec(), Llama3ScalingSpec(32.0), Llama3ScalingSpec(4.0, 2.0, 16.0, 1000)],
)
def test_llama_3_keeps_blends_and_stretches(scaling):
    frequencies = plain(500_000.0, 64)
    expected = [llama3(frequency, scaling) for frequency in frequencies]
    actual = RotarySpec(500_000.0, scaling=scaling).frequencies(64)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    shares = actual / frequencies
    assert shares[0] == 1.0
    assert shares[-1] == pytest.approx(1 / scaling.factor)
    assert np.any((shares < 0.99) & (shares > 1.01 / scaling.factor))


def border(turns, scaling, size):
    """The fractional pair that turns so often in a text of pre-training, found by bisection."""
    low, high = -100.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        frequency = THETA ** (-2 * middle / size)
        faster = scaling.original_length * frequency / (2 * math.pi) > turns
        low, high = (middle, high) if faster else (low, middle)
    return low


def yarn(scaling, size):
    """Pair by pair: unchanged before the first border, divided after the last, linear between."""
    first, last = (border(turns, scaling, size) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    actual = []
    for pair, frequency in enumerate(plain(size=size)):
        if pair <= first:
            divided = 0.0
        elif pair >= last:
            divided = 1.0
        else:
            divided = (pair - first) / (last - first)
        actual.append((1 - divided) * frequency + divided * frequency / scaling.factor)
    return actual


@pytest.mark.parametrize(
    "scaling",
    [
        YarnScalingSpec(16.0),
        YarnScalingSpec(16.0, truncate=False),
        YarnScalingSpec(4.0, 600, beta_fast=10.0, beta_slow=2.0),
        YarnScalingSpec(4.0, 60, truncate=False),  # whose first pair is between the borders
        YarnScalingSpec(16.0, 400_000),  # whose last pair is
    ],
)
def test_yarn_interpolates_by_parts(scaling):
    actual = RotarySpec(scaling=scaling).frequencies(64)
    np.testing.assert_allclose(actual, yarn(scaling, 64), rtol=1e-9)
    if not scaling.truncate:  # the paper's own words, of whole pairs
        turns = scaling.original_length * np.array(plain(size=64)) / (2 * math.pi)
        shares = actual / plain(size=64)
        np.testing.assert_allclose(shares[turns > scaling.beta_fast], 1.0, rtol=1e-12)
        np.testing.assert_allclose(shares[turns < scaling.beta_slow], 1 / scaling.factor)


def test_yarn_warms_attention_by_the_root_of_its_temperature_on_either_side():
    """Equation 15, √(1/t) = 0.1 ln(s) + 1, on queries and on keys: 1/t on their products."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 1, HEAD_DIM)), jnp.float32)
    for scaling, reference in (
        (YarnScalingSpec(16.0), 0.1 * math.log(16) + 1),
        (YarnScalingSpec(1.0), 1.0),
        (YarnScalingSpec(16.0, attention_factor=0.7), 0.7),
    ):
        assert scaling.magnitude == pytest.approx(reference)
        rotated = rotate(x, jnp.full((1, 1), 9, jnp.int32), RotarySpec(scaling=scaling))
        product = jnp.sum(rotated * rotated) / jnp.sum(x * x)
        assert float(product) == pytest.approx(reference**2, rel=1e-5)


# From transformers 5.24.0, for a LlamaConfig with such a head_dim and these rope_parameters:
# ROPE_INIT_FUNCTIONS[rope_type](config, "cpu"), that is `python -c "from transformers import
# LlamaConfig; from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS as f; c =
# LlamaConfig(hidden_size=16, num_attention_heads=1, rope_parameters={'rope_type': 'yarn',
# 'rope_theta': 1e4, 'factor': 16.0, 'original_max_position_embeddings': 4096});
# print(f['yarn'](c, 'cpu'))"`, and likewise for the others.
PUBLISHED = {
    "linear": (
        RotarySpec(scaling=LinearScalingSpec(4.0)), 16, 1.0,
        [0.25, 0.079056941, 0.025, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001,
         7.9056947e-05],
    ),
    "llama3": (
        RotarySpec(500_000.0, scaling=Llama3ScalingSpec(8.0, 1.0, 4.0, 8192)), 16, 1.0,
        [1.0, 0.19392276, 0.037606031, 0.0072926651, 0.00052484602, 3.4281024e-05, 6.6478697e-06,
         1.2891732e-06],
    ),
    "yarn": (
        RotarySpec(scaling=YarnScalingSpec(16.0, 4096)), 16, 1.2772588722239782,
        [1.0, 0.31622776, 0.1, 0.024211189, 0.0053125001, 0.00093880121, 6.2500003e-05,
         1.9764237e-05],
    ),
    "yarn_of_ones_own": (
        RotarySpec(scaling=YarnScalingSpec(16.0, 4096, 16.0, 2.0, 0.9, truncate=False)), 16, 0.9,
        [1.0, 0.31622776, 0.1, 0.031622779, 0.0059520239, 0.00024081112, 6.2500003e-05,
         1.9764237e-05],
    ),
    "yarn_of_half_a_head": (
        RotarySpec(fraction=0.5, scaling=YarnScalingSpec(4.0, 2048)), 32, 1.138629436111989,
        [1.0, 0.31622776, 0.1, 0.025693506, 0.0062499996, 0.0013834966, 0.00025000001,
         7.9056947e-05],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "head_dim", "magnitude", "expected"), PUBLISHED.values())
def test_frequencies_are_those_of_published_code(spec, head_dim, magnitude, expected):
    np.testing.assert_allclose(spec.frequencies(head_dim), expected, rtol=1e-6)
    assert spec.scaling.magnitude == pytest.approx(magnitude)


@pytest.mark.parametrize("scaling", [None, YarnScalingSpec(4.0, 64)])
def test_a_fraction_is_rotated_as_a_head_of_that_size_and_the_rest_is_unchanged(scaling):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2, 24)), jnp.float32)
    places = jnp.asarray([[0, 5, 9], [7, 8, 9]], jnp.int32)
    actual = rotate(x, places, RotarySpec(fraction=0.25, scaling=scaling))
    np.testing.assert_array_equal(actual[..., 6:], x[..., 6:])
    whole = rotate(x[..., :6], places, RotarySpec(scaling=scaling))
    np.testing.assert_array_equal(actual[..., :6], whole)
    assert np.all(np.abs(actual[1, :, :, :6] - x[1, :, :, :6]).max(axis=-1) > 0.1)


def test_half_precision_inputs_are_rotated_in_float32():
    """At position 1,000 bfloat16 could not tell an angle from the next."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 1, 8)), jnp.bfloat16)
    places = jnp.asarray([[1001, 1003]], jnp.int32)
    actual = jax.jit(rotate, static_argnums=2)(x, places, RotarySpec(fraction=0.5))
    assert actual.dtype == jnp.bfloat16
    expected = rotate(x.astype(jnp.float32), places, RotarySpec(fraction=0.5))
    np.testing.assert_allclose(np.float32(actual), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotarySpec(1.0), "RotarySpec.theta = 1.0: must be above 1"),
        (lambda: RotarySpec(fraction=0.0), "fraction = 0.0: must be above 0 and at most 1"),
        (lambda: RotarySpec(fraction=1.5), "fraction = 1.5: must be above 0 and at most 1"),
        (lambda: RotarySpec(scaling=4.0), "scaling = 4.0: expected"),
        (lambda: LinearScalingSpec(0.0), "LinearScalingSpec.factor = 0.0: must be above 0"),
        (lambda: Llama3ScalingSpec(-1.0), "Llama3ScalingSpec.factor = -1.0: must be above 0"),
        (
            lambda: Llama3ScalingSpec(8.0, 4.0, 4.0),
            "high_frequency_factor = 4.0: must be above low_frequency_factor",
        ),
        (lambda: Llama3ScalingSpec(8.0, 0.0), "low_frequency_factor, and both above 0"),
        (lambda: Llama3ScalingSpec(original_length=0), "original_length = 0: must be at least 1"),
        (lambda: YarnScalingSpec(0.5), "YarnScalingSpec.factor = 0.5: must be at least 1"),
        (lambda: YarnScalingSpec(2.0, beta_fast=1.0), "beta_fast = 1.0: must be above beta_slow"),
        (lambda: YarnScalingSpec(2.0, beta_slow=0.0), "beta_fast = 32.0: .* both above 0"),
        (
            lambda: YarnScalingSpec(2.0, attention_factor=0.0),
            "attention_factor = 0.0: must be above 0, or None",
        ),
        (lambda: YarnScalingSpec(2.0, original_length=0), "original_length = 0: must be at least"),
        (
            lambda: AttentionSpec(4, 20, rotary=RotarySpec(fraction=0.25)),
            "head_dim = 20: must be even, and not 0, in its rotary fraction",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
