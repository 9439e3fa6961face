"""Settings of one structure: neutral values are as absent ones, and rows are replaced as wholes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generate import EOS, VOCAB, empty_cache, history_step, keys_of, prompted

from t5lite.decoding import (
    Constraints,
    Output,
    Sampling,
    Settings,
    decode,
    start,
    stops_of,
    token_table,
)
from t5lite.errors import InputError

PIECES = token_table([bytes([token + 97]) for token in range(VOCAB)])
PROMPTS = np.random.default_rng(1).integers(2, VOCAB, (4, 5))
LENGTHS = np.array([5, 2, 4, 3])
SIZES = {"max_eos": 2, "max_bias": 2, "max_forced": 4, "max_choices": 2, "choice_length": 4}
CAPACITY = 8


def state_of(rows):
    cache, first = prompted(history_step, PROMPTS[rows], LENGTHS[rows])
    prompts = jnp.where(jnp.arange(5)[None] < LENGTHS[rows, None], PROMPTS[rows], -1)
    keys = keys_of(3, 4)[jnp.asarray(rows)]
    return start(
        cache, first, capacity=CAPACITY, keys=keys, prompts=prompts.astype(jnp.int32), num_top=2
    )


@jax.jit
def run(state, settings, steps):
    return decode(history_step, state, settings, steps=steps)


def neutral(rows, **sizes):
    settings = Settings.neutral(rows, VOCAB, token_bytes=PIECES, **SIZES, **sizes)
    settings.eos_ids[:, 0], settings.limits[:] = EOS, CAPACITY
    return settings


def set_row(settings, row, **values):
    """Fills one row of settings on the host."""
    for name, value in values.items():
        owner = settings.sampling if hasattr(settings.sampling, name) else settings.constraints
        array = settings.num_top if name == "num_top" else getattr(owner, name)
        if isinstance(value, int | float):
            array[row] = value
        else:
            array[row][tuple(slice(size) for size in np.shape(value))] = value


ROWS = (
    {},
    {"temperature": 0.8, "top_k": 3, "repetition_penalty": 1.5},
    {"choices": [[3, 4, EOS], [5, EOS, -1]], "temperature": 1.2},
    {"forced": [4, 4], "no_repeat_ngram_size": 2, "frequency_penalty": 0.5, "num_top": 1},
)


def filled():
    settings = neutral(4)
    for row, values in enumerate(ROWS):
        set_row(settings, row, **values)
    return settings


def test_neutral_values_are_as_absent_ones():
    rows = np.arange(4)
    plain = Settings(eos_ids=(EOS,), limits=CAPACITY)
    expected, got = (run(state_of(rows), item, 99).generated for item in (plain, neutral(4)))
    for name in ("tokens", "lengths", "token_log_probabilities", "stuck"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    np.testing.assert_array_equal(got.policy_log_probabilities, 0)
    warm = dataclasses.replace(plain, sampling=Sampling(temperature=0.8, top_p=0.9))
    arrays = neutral(4)
    arrays.sampling.temperature[:], arrays.sampling.top_p[:] = 0.8, 0.9
    expected, got = (run(state_of(rows), item, 99).generated for item in (warm, arrays))
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.policy_log_probabilities, expected.policy_log_probabilities)
    assert np.asarray(got.policy_log_probabilities).min() < 0


def test_rows_of_all_kinds_are_as_alone():
    together = run(state_of(np.arange(4)), filled(), 99).generated
    for row, values in enumerate(ROWS):
        settings = neutral(1)
        set_row(settings, 0, **values)
        alone = run(state_of(np.array([row])), settings, 99).generated
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        for name in ("token_log_probabilities", "policy_log_probabilities"):
            np.testing.assert_allclose(
                getattr(together, name)[row], getattr(alone, name)[0], atol=1e-5
            )
    assert together.tokens[2, : together.lengths[2]].tolist() in ([3, 4, EOS], [5, EOS])
    assert together.tokens[3, :2].tolist() == [4, 4]


def test_the_most_probable_tokens_are_recorded_for_batches_that_ask():
    first = run(state_of(np.arange(4)), filled(), 1)
    logits = history_step(np.asarray(PROMPTS[3:, :3], np.int32), empty_cache(1))[0][0, -1]
    expected = np.argsort(-np.asarray(logits))[:2]
    np.testing.assert_array_equal(first.top.tokens[3, 0], expected)
    own = np.asarray(jax.nn.log_softmax(logits))[expected]
    np.testing.assert_allclose(first.top.log_probabilities[3, 0], own, rtol=1e-4)
    none = run(state_of(np.arange(4)), neutral(4), 1)
    assert not np.asarray(none.top.tokens).any()


def test_stops_and_biases_of_rows():
    settings, free = filled(), run(state_of(np.arange(4)), filled(), 99).generated
    last = [int(token) for token in free.tokens[0, 1:3]]
    settings.constraints.stops.texts[0, 0, -2:] = [token + 97 for token in last]
    set_row(settings, 1, bias_ids=[6], bias=[1e4])
    got = run(state_of(np.arange(4)), settings, 99).generated
    assert got.lengths[0] <= 3
    assert set(got.tokens[1].tolist()) == {6}
    np.testing.assert_array_equal(got.tokens[2:], free.tokens[2:])


def test_settings_and_rows_are_inserted_as_wholes():
    rows = np.arange(4)
    settings = filled()
    before = run(state_of(rows), settings, 3)
    new = neutral(1)
    set_row(new, 0, **ROWS[1])
    changed = settings.insert(jnp.array([0]), new)
    np.testing.assert_array_equal(changed.sampling.top_k, [3, 3, 0, 0])
    np.testing.assert_array_equal(changed.constraints.forced[3], settings.constraints.forced[3])
    short = Settings.neutral(
        1,
        VOCAB,
        token_bytes=PIECES,
        max_eos=1,
        max_bias=1,
        max_forced=2,
        max_choices=1,
        choice_length=3,
    )
    short.constraints.forced[0] = [2, 3]
    padded = settings.insert(jnp.array([3]), short)
    np.testing.assert_array_equal(padded.constraints.forced[3], [2, 3, -1, -1])
    dropped = settings.insert(jnp.array([4]), new)
    jax.tree.map(np.testing.assert_array_equal, dropped, settings)
    wide = Settings.neutral(1, VOCAB, token_bytes=PIECES, **(SIZES | {"max_forced": 5}))
    with pytest.raises(InputError, match=r"forced of shape \[5\] a row: .* room for \[4\]"):
        settings.insert(jnp.array([0]), wide)
    fresh = state_of(np.array([1]))
    output = before.output.insert(jnp.array([2]), fresh.output)
    assert output.lengths.tolist() == [*before.output.lengths[:2].tolist(), 0, 3]
    np.testing.assert_array_equal(output.prompts[2], fresh.output.prompts[0])
    tight = Output.empty(1, CAPACITY + 1)
    with pytest.raises(InputError, match=r"tokens of shape \[9\] a row: .* room for \[8\]"):
        before.output.insert(jnp.array([2]), tight)


def test_sizes_of_n_grams_are_traced():
    rules = Constraints(no_repeat_ngram_size=jnp.array([0, 1, 2, 3, 9]))
    tokens = jnp.tile(jnp.array([2, 3, 2, 3], jnp.int32), (5, 1))
    output = Output(tokens, jnp.full(5, 4, jnp.int32))
    logits = rules.apply(jnp.zeros((5, VOCAB)), output, eos_ids=jnp.array([[EOS]]))
    banned = [np.flatnonzero(np.isinf(row)).tolist() for row in np.asarray(logits)]
    assert banned == [[], [2, 3], [2], [2], []]


def test_a_stop_may_be_of_any_length_within_tokens_of_any_length():
    table = token_table([b"x" * 20 + b"ab", b"c", b"", b"ab" * 9], vocab=6)
    output = Output(jnp.array([[0, 1], [3, 0], [0, 2]], jnp.int32), jnp.array([2, 1, 2]))
    for stop, expected in ((b"abc", [1, 0, 0]), (b"bab", [0, 1, 0]), (b"b", [0, 1, 1])):
        stops = stops_of(table, stop)
        assert stops.completed(output).tolist()[:2] == [bool(x) for x in expected][:2]
