"""Position biases: T5's buckets, tables, and the two ways to a bias; ALiBi's slopes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.layers import AlibiSpec, FanInInitSpec, RelativeBiasSpec, Weights
from t5lite.layers.position_biases import alibi_slopes, relative_buckets, toeplitz

OFFSETS = np.arange(-300, 301)
SPECS = {
    "T5": RelativeBiasSpec(),
    "tiny": RelativeBiasSpec(8, 16),
    "odd half": RelativeBiasSpec(10, 21),
    "far": RelativeBiasSpec(32, 1000),
}


def bucket(offset, spec, *, bidirectional):
    """The published formula in whole numbers, so that no border depends on a logarithm.

    exact + floor(log(d / exact) / log(max_distance / exact) * (num_buckets - exact)), with both
    sides of "that is at least k" raised to powers instead of taking logarithms.
    """
    num_buckets, first = spec.num_buckets, 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    steps = num_buckets - exact
    reached = [
        k for k in range(steps) if distance**steps * exact**k >= spec.max_distance**k * exact**steps
    ]
    return first + exact + reached[-1]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_buckets_are_those_of_the_paper(spec, bidirectional):
    expected = [bucket(int(offset), spec, bidirectional=bidirectional) for offset in OFFSETS]
    on_host = relative_buckets(OFFSETS, spec, bidirectional=bidirectional)
    assert isinstance(on_host, np.ndarray)
    assert on_host.dtype == np.int32
    np.testing.assert_array_equal(on_host, expected)

    traced = jax.jit(functools.partial(relative_buckets, spec=spec, bidirectional=bidirectional))
    on_device = traced(jnp.asarray(OFFSETS, jnp.int32))
    assert on_device.dtype == jnp.int32
    np.testing.assert_array_equal(on_device, expected)


def test_known_buckets_of_t5():
    # As T5X's `_relative_position_bucket` has them, for the sizes of the released models.
    offsets = np.array([-128, -127, -16, -8, -7, -1, 0, 1, 7, 8, 16, 127, 128])
    both = relative_buckets(offsets, SPECS["T5"], bidirectional=True)
    np.testing.assert_array_equal(both, [15, 15, 10, 8, 7, 1, 0, 17, 23, 24, 26, 31, 31])
    causal = relative_buckets(offsets, SPECS["T5"], bidirectional=False)
    np.testing.assert_array_equal(causal, [31, 31, 16, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((31,), "num_buckets = 31: must be even"), ((32, 32), "max_distance = 32: must be above")],
)
def test_tables_that_make_no_sense(arguments, message):
    with pytest.raises(InputError, match=message):
        RelativeBiasSpec(*arguments)


SHAPES = [(1, 1), (1, 5), (5, 1), (3, 6), (6, 3)]


def indices(rows, columns):
    return np.arange(columns)[None, :] - np.arange(rows)[:, None] + rows - 1


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_toeplitz_is_a_gather_and_so_is_its_gradient(rows, columns):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, rows + columns - 1)).astype(np.float32)
    matrix, pull = jax.vjp(functools.partial(toeplitz, num_rows=rows), values)
    np.testing.assert_array_equal(matrix, values[:, indices(rows, columns)])
    weights = rng.standard_normal(matrix.shape).astype(np.float32)
    expected = np.zeros(values.shape)
    for head in range(2):
        np.add.at(expected[head], indices(rows, columns), weights[head])
    np.testing.assert_allclose(pull(jnp.asarray(weights))[0], expected, rtol=1e-5, atol=1e-6)


HEADS, LENGTH = 3, 40
TABLE = np.random.default_rng(0).standard_normal((HEADS, 32)).astype(np.float32)


def bias(bidirectional, positions, q_length, kv_length):
    module = SPECS["T5"].make(HEADS, bidirectional=bidirectional)
    return module.apply({"params": {"embedding": TABLE}}, positions, q_length, kv_length)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_bias_is_the_table_at_the_bucket_of_key_minus_query(bidirectional):
    actual = np.asarray(bias(bidirectional, None, LENGTH, LENGTH))
    assert actual.shape == (1, HEADS, LENGTH, LENGTH)
    for query, key in [(0, 0), (0, 39), (39, 0), (20, 19), (3, 20)]:
        at = bucket(key - query, SPECS["T5"], bidirectional=bidirectional)
        np.testing.assert_array_equal(actual[0, :, query, key], TABLE[:, at])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_queries_anywhere_get_the_rows_of_the_whole(bidirectional):
    whole = np.asarray(bias(bidirectional, None, LENGTH, LENGTH))[0]
    positions = np.array([[0, 1, 2], [30, 31, 32]], np.int32)
    some = bias(bidirectional, jnp.asarray(positions), 3, LENGTH)
    np.testing.assert_array_equal(some, np.moveaxis(whole[:, positions], 0, 1))


def test_the_table_has_axis_names_and_the_standard_deviation_of_t5():
    module = SPECS["T5"].make(64, bidirectional=True)
    table = module.init(jax.random.key(0), None, 2, 2)["params"]["embedding"]
    assert table.names == ("heads", "relpos_buckets")
    # T5X: variance_scaling(1, fan_avg, uniform), within sqrt(3 / 48).
    assert np.std(table.value) == pytest.approx(48**-0.5, rel=0.03)
    assert np.max(np.abs(table.value)) <= 0.25


# ALiBi.


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),  # the paper's example
        (16, [0.5 * n for n in range(1, 17)]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),  # as in the authors' code
        (1, [8]),
    ],
)
def test_slopes_are_those_of_the_paper(num_heads, exponents):
    slopes = alibi_slopes(num_heads)
    assert slopes.dtype == np.float32
    np.testing.assert_allclose(slopes, [2.0**-n for n in exponents], rtol=1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_alibi_falls_with_the_distance_and_has_no_parameters(bidirectional):
    module = AlibiSpec().make(2, bidirectional=bidirectional)
    assert not jax.tree.leaves(module.init(jax.random.key(0), None, 1, 1))
    bias = module.apply({}, None, 3, 5)
    assert bias.shape == (1, 2, 3, 5)
    distance = np.abs(np.arange(5)[None] - np.arange(3)[:, None])
    for slope, head in zip((2.0**-4, 2.0**-8), bias[0], strict=True):
        np.testing.assert_allclose(head, -slope * distance, rtol=1e-6)
    somewhere = jnp.array([[4, 1], [0, 2]], jnp.int32)
    whole = module.apply({}, None, 5, 5)[0]
    actual = module.apply({}, somewhere, 2, 5)
    expected = np.moveaxis(np.asarray(whole)[:, somewhere], 0, 1)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_biases_may_start_lower_beyond_a_window(bidirectional):
    spec = RelativeBiasSpec(16, 32)

    def bias(window):
        weights = Weights(FanInInitSpec(position_bias_window=window))
        module = spec.make(3, bidirectional=bidirectional, weights=weights)
        return np.asarray(module.init_with_output(jax.random.key(0), None, 20, 20)[0])[0]

    distance = np.abs(np.arange(20)[:, None] - np.arange(20))
    seen = np.ones_like(distance, bool) if bidirectional else np.tril(np.ones_like(distance, bool))
    fall = np.broadcast_to(np.where(distance > 3, 2.0, 0.0), (3, 20, 20))
    np.testing.assert_allclose((bias(None) - bias(3))[:, seen], fall[:, seen], atol=1e-6)
