import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from t5lite.decoding import Constraints, Sampling, Settings
from t5lite.decoding.infilling import infill
from t5lite.errors import InputError
from t5lite.models import Model, override

VOCAB, LENGTH, MASK = 8, 9, 0
TABLE = np.random.default_rng(3).normal(0, 1, (LENGTH, VOCAB, LENGTH, VOCAB)).astype(np.float32)
NO_MASK = Constraints(banned=jnp.zeros(VOCAB, bool).at[MASK].set(True))
GREEDY = Settings(1, constraints=NO_MASK)


def toy(tokens):
    """Every place's logits depend on all tokens and where they stand."""
    seen = jax.nn.one_hot(tokens, VOCAB, dtype=jnp.float32)
    return jnp.einsum("blv,lvmw->bmw", seen, jnp.asarray(TABLE))


def gapped(seed=0, rows=4):
    """Texts with 0, 3, 5 and 9 gaps."""
    rng = np.random.default_rng(seed)
    masked = np.zeros((rows, LENGTH), bool)
    for row, count in zip(masked, [0, 3, 5, LENGTH] * (rows // 4), strict=True):
        row[rng.permutation(LENGTH)[:count]] = True
    tokens = np.where(masked, MASK, rng.integers(1, VOCAB, masked.shape))
    return tokens.astype(np.int32), masked


@functools.partial(jax.jit, static_argnames="logits_fn")
def filled(tokens, masked, settings, turns, keys=None, *, logits_fn=toy):
    return infill(logits_fn, tokens, masked, settings, turns=turns, keys=keys)


def by_hand(tokens, masked, turns):
    """Greedy infilling of one row, and the number of turns it took."""
    tokens, gaps = tokens.copy(), set(np.flatnonzero(masked).tolist())
    total, gains, count = len(gaps), np.zeros(LENGTH), 0
    turns = min(turns, total)
    while gaps:
        count += 1
        logits = np.asarray(toy(jnp.asarray(tokens[None])))[0].astype(np.float64)
        chances = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        best = 1 + np.argmax(logits[:, 1:], axis=1)
        surest = sorted(gaps, key=lambda index: -chances[index, best[index]])
        left = total - int(np.ceil(total * count / turns))
        for index in surest[: len(gaps) - left]:
            tokens[index], gains[index] = best[index], chances[index, best[index]]
            gaps.remove(index)
    return tokens, gains, count


@pytest.mark.parametrize("turns", [1, 2, 4, LENGTH, 30])
def test_greedy_fills_the_surest_gaps_first(turns):
    tokens, masked = gapped()
    out = filled(tokens, masked, GREEDY, turns)
    assert out.tokens.dtype == jnp.int32
    assert out.log_probabilities.dtype == jnp.float32
    for row in range(len(tokens)):
        expected, gains, count = by_hand(tokens[row], masked[row], turns)
        assert count <= turns
        np.testing.assert_array_equal(out.tokens[row], expected)
        np.testing.assert_allclose(out.log_probabilities[row], gains, rtol=1e-4, atol=1e-5)


def test_no_more_turns_than_needed_and_none_without_gaps():
    calls = []

    def counted(tokens):
        jax.debug.callback(lambda: calls.append(1))
        return toy(tokens)

    tokens, masked = (jnp.asarray(x) for x in gapped())
    for rows, turns, expected in ((slice(0, 1), 5, 0), (slice(1, 3), 3, 3), (slice(1, 3), 50, 5)):
        calls.clear()
        out = infill(counted, tokens[rows], masked[rows], GREEDY, turns=turns)
        jax.block_until_ready(out)
        jax.effects_barrier()
        assert len(calls) == expected
    remaining = ~masked[1:3]
    np.testing.assert_array_equal(out.tokens[remaining], tokens[1:3][remaining])


def test_bans_and_greedy_rows_hold_among_drawn_ones_and_rows_do_not_meet():
    tokens, masked = gapped()
    banned = np.random.default_rng(1).random((4, VOCAB)) < 0.5
    banned[:, MASK], banned[:, 3] = True, False
    settings = Settings(
        1,
        sampling=Sampling(jnp.array([1.0, 0.0, 2.0, 1.0]), top_k=5),
        constraints=Constraints(banned=jnp.asarray(banned)),
    )
    keys = jax.random.split(jax.random.key(0), 4)
    together = filled(tokens, masked, settings, 3, keys)
    for row in range(4):
        one = slice(row, row + 1)
        assert not np.any(banned[row, np.asarray(together.tokens[row])[masked[row]]])
        mine = dataclasses.replace(
            settings,
            sampling=Sampling(settings.sampling.temperature[one], top_k=5),
            constraints=Constraints(banned=jnp.asarray(banned[one])),
        )
        alone = filled(tokens[one], masked[one], mine, 3, keys[one])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    greedy = dataclasses.replace(settings, sampling=Sampling())
    np.testing.assert_array_equal(filled(tokens, masked, greedy, 3).tokens[1], together.tokens[1])


def test_draws_have_the_distribution_of_the_model():
    rows, index = 20_000, 4
    tokens = np.full((rows, LENGTH), 2, np.int32)
    tokens[:, [index, index + 1]] = MASK
    settings = dataclasses.replace(GREEDY, sampling=Sampling(1.5))
    keys = jax.random.split(jax.random.key(4), rows)
    out = filled(tokens, tokens == MASK, settings, 1, keys)
    logits = toy(jnp.asarray(tokens[:1]))[0, index : index + 2].at[:, MASK].set(-jnp.inf)
    chances = np.asarray(jax.nn.softmax(logits / 1.5), np.float64)
    pairs = np.asarray(out.tokens)[:, index] * VOCAB + np.asarray(out.tokens)[:, index + 1]
    expected = rows * np.outer(*chances).ravel()
    observed = np.bincount(pairs, minlength=VOCAB**2)
    assert not np.any(observed[expected == 0])
    expected, observed = (
        np.append(x[expected >= 5], x[expected < 5].sum()) for x in (expected, observed)
    )
    expected *= observed.sum() / expected.sum()
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_fills_gaps_with_a_real_encoder():
    spec = override(
        "bert_nano",
        {"vocab": 40, "embed": 16, "*.num_layers": 2, "*.blocks.*.mlp.hidden": 24}
        | {"*.blocks.*.attention.num_heads": 2, "*.blocks.*.attention.head_dim": 8},
    )
    model = Model(spec)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), model.shapes()
    )
    tokens = rng.integers(3, 40, (2, 8)).astype(np.int32)
    masked = np.zeros(tokens.shape, bool)
    masked[0, [1, 5]] = masked[1, [0, 3, 6]] = True

    @jax.jit
    def run(params, tokens):
        def logits_fn(tokens):
            return model.logits(params, model.hidden(params, {"encoder_input_tokens": tokens})[0])

        return infill(logits_fn, tokens, jnp.asarray(masked), Settings(1)), logits_fn(tokens)

    out, logits = run(params, jnp.where(masked, 2, tokens))
    best = np.argmax(logits, axis=-1)
    np.testing.assert_array_equal(out.tokens, np.where(masked, best, tokens))


@pytest.mark.parametrize(
    ("settings", "turns", "match"),
    [
        (GREEDY, 0, "turns=0"),
        (Settings(1, limits=3), 1, "limits"),
        (Settings(1, constraints=Constraints(min_new_tokens=2)), 1, "min_new_tokens"),
        (Settings(1, logits_fn=lambda logits, generated: logits), 1, "logits_fn"),
        (Settings(1, sampling=Sampling(1.0)), 1, "keys"),
    ],
)
def test_settings_without_meaning_are_refused(settings, turns, match):
    tokens, masked = gapped()
    with pytest.raises(InputError, match=match):
        infill(toy, jnp.asarray(tokens), jnp.asarray(masked), settings, turns=turns)


def test_logits_that_are_not_numbers_fill_gaps_as_nan():
    tokens, masked = gapped()
    broken = lambda tokens: toy(tokens).at[1].set(jnp.nan)  # noqa: E731
    out = infill(broken, jnp.asarray(tokens), jnp.asarray(masked), GREEDY)
    actual = np.isnan(out.log_probabilities)
    np.testing.assert_array_equal(actual[1], masked[1])
    assert actual[1].any()
    assert not actual[[0, 2, 3]].any()
