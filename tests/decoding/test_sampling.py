import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from t5lite.decoding import Sampling, choose, filtered, token_log_probabilities
from t5lite.errors import InputError

VOCAB = 24
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
ROWS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": VOCAB + 9},
    {"top_p": 0.8},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"typical_p": 0.6},
    {"typical_p": 1e-9},
    {"top_k": 9, "top_p": 0.7},
    {"temperature": 1.9, "top_k": 12, "min_p": 0.2},
    {"temperature": 3.0, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.7},
    {},
]
compiled = jax.jit(filtered)
draw = jax.jit(choose)


def random_logits(rows, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCAB)).astype(np.float32)


def together(rows):
    """One `Sampling` whose every value is an array of `[rows]`."""
    item = [OFF | row for row in rows]
    return Sampling(**{name: np.array([row[name] for row in item]) for name in OFF})


def probabilities(logits):
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def fewest(scores, p, needed):
    """The places of the highest scores whose probabilities just reach `needed`, by sorting."""
    ranking = np.argsort(-scores)
    count = np.searchsorted(np.cumsum(p[ranking]), needed) + 1
    return ranking[:count]


def by_sorting(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """The probabilities that `[vocab]` logits are drawn with, in float64."""
    p = probabilities(np.asarray(logits, np.float64) / temperature)
    inside = np.ones(len(p), bool)

    def keep(places):
        nonlocal p, inside
        inside &= np.isin(np.arange(len(p)), places)
        p = np.where(inside, p, 0) / p[inside].sum()

    if top_k:
        keep(np.argsort(-p)[:top_k])
    if top_p < 1:
        keep(fewest(p, p, top_p))
    keep(np.flatnonzero(p >= min_p * p.max()))
    if typical_p < 1:
        information = -np.log(p, where=p > 0, out=np.full(len(p), -np.inf))
        entropy = np.sum(p * np.where(p > 0, information, 0))
        keep(fewest(-np.abs(information - entropy), p, typical_p))
    return p


def chance(counts, expected):
    """How often counts are this far from what is expected, or farther (Pearson's chi-square)."""
    possible = expected > 0
    assert not counts[~possible].any()
    expected = expected[possible] * counts.sum()
    statistic = np.sum((counts[possible] - expected) ** 2 / expected)
    return scipy.special.chdtrc(len(expected) - 1, statistic)


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals():
    logits = jnp.array([[0.0, 2.0, 1.0], [3.0, -1.0, 3.0]], jnp.bfloat16)
    chosen = choose(logits, Sampling())
    assert chosen.dtype == jnp.int32
    np.testing.assert_array_equal(chosen, [1, 0])
    np.testing.assert_array_equal(probabilities(filtered(logits, Sampling())), np.eye(3)[[1, 0]])


def test_filters_by_row_equal_sorting():
    logits = random_logits(len(ROWS))
    got = compiled(logits, together(ROWS))
    assert got.dtype == jnp.float32
    for row, settings in enumerate(ROWS):
        expected = by_sorting(logits[row], **settings)
        np.testing.assert_array_equal(np.isfinite(got[row]), expected > 0, err_msg=str(settings))
        np.testing.assert_allclose(probabilities(got[row]), expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_p": 0.8, "typical_p": 0.5}])
def test_a_scalar_is_the_same_in_every_row(settings):
    logits = random_logits(4)
    np.testing.assert_array_equal(
        filtered(logits, Sampling(temperature=1.0, **settings)),
        compiled(logits, together([settings] * 4)),
    )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_with_the_mass(p):
    logits = random_logits(50, seed=1)
    inside = np.isfinite(compiled(logits, together([{"top_p": p}] * 50)))
    remaining = np.where(inside, probabilities(logits), np.nan)
    assert (np.nansum(remaining, axis=-1) >= p).all()
    assert (np.nansum(remaining, axis=-1) - np.nanmin(remaining, axis=-1) < p).all()


def test_equals_are_in_or_out_together_and_barred_tokens_stay_out():
    logits = np.array([[1.0, 2.0, -np.inf, 1.0, 2.0, -0.0, 0.0]], np.float32)

    def inside(**settings):
        remaining = np.isfinite(filtered(logits, Sampling(temperature=1.0, **settings)))
        return np.flatnonzero(remaining).tolist()

    assert inside(top_k=1) == inside(top_p=0.1) == inside(min_p=1.0) == [1, 4]
    assert inside(top_k=3) == inside(top_p=0.8) == [0, 1, 3, 4]
    assert inside(top_k=5) == inside(top_k=7) == [0, 1, 3, 4, 5, 6]  # zeros are equal, signs or not
    assert inside(top_k=7, top_p=0.9999999, typical_p=0.9999999) == [0, 1, 3, 4, 5, 6]


def test_neutral_filters_keep_all_tokens_and_any_filter_keeps_one():
    logits = np.array([[0.0, -30.0, -80.0, -0.0]], np.float32)  # the first and the last are all
    assert np.isfinite(compiled(logits, together([{}]))).all()
    for nothing in ({"top_k": 1}, {"top_p": 0.0}, {"typical_p": 0.0}):
        inside = np.isfinite(compiled(logits, together([nothing])))
        np.testing.assert_array_equal(inside, [[True, False, False, True]])


def test_extreme_numbers_leave_a_distribution():
    logits = np.array([[3e38, -3e38, 0.0], [1e-30, 0.0, -1e-30], [-np.inf, -3e38, -np.inf]])
    logits = logits.astype(np.float32)
    for temperature in (1e-38, 1.0, 1e38):
        settings = Sampling(temperature, top_k=2, top_p=0.9, min_p=0.1, typical_p=0.9)
        p = jax.nn.softmax(filtered(logits, settings))
        np.testing.assert_allclose(np.sum(p, axis=-1), 1, rtol=1e-6)
        assert p[2, 1] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 2.0},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.97},
        {"temperature": 2.0, "min_p": 0.05, "typical_p": 0.8},
    ],
)
def test_draws_are_distributed_as_the_filtered_logits(settings):
    logits = np.log(np.array([0.4, 0.2, 0.13, 0.1, 0.07, 0.04, 0.03, 0.02, 0.01], np.float32))
    draws = draw(
        jnp.broadcast_to(jnp.asarray(logits), (20_000, len(logits))),
        jax.tree.map(jnp.asarray, Sampling(**OFF | settings)),
        jax.random.split(jax.random.key(3), 20_000),
    )
    assert draws.dtype == jnp.int32
    counts = np.bincount(draws, minlength=len(logits))
    assert chance(counts, by_sorting(logits, **settings)) > 0.001, counts


def test_a_row_of_temperature_0_is_greedy_and_no_row_depends_on_another():
    logits = np.zeros((40, VOCAB), np.float32)
    keys = jax.random.split(jax.random.key(8), 40)
    temperatures = np.tile(np.float32([0.0, 2.0]), 20)
    tokens = np.asarray(choose(logits, Sampling(temperature=temperatures), keys))
    assert not tokens[::2].any()  # all are equal: the lowest id
    assert len(set(tokens[1::2])) > 5
    np.testing.assert_array_equal(
        choose(logits[:3], Sampling(temperature=temperatures[7:10]), keys[7:10]), tokens[7:10]
    )


def test_other_numbers_compile_nothing():
    traced = 0

    @jax.jit
    def run(logits, sampling):
        nonlocal traced
        traced += 1
        return filtered(logits, sampling)

    logits = random_logits(2)
    for temperature, p in ((0.5, 0.9), (2.0, 0.1)):
        got = run(logits, Sampling(temperature=temperature, top_p=p))
        expected = filtered(logits, Sampling(temperature=temperature, top_p=p))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert traced == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1\.0 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1 must be a whole number, at least 0"),
        ({"top_k": 2.5}, r"top_k=2\.5"),
        ({"top_p": 0}, "top_p=0 must be above 0 and at most 1"),
        ({"top_p": 50}, "top_p=50"),
        ({"min_p": 1.1}, r"min_p=1\.1 must be from 0 \(off\) to 1"),
        ({"typical_p": 0.0}, r"typical_p=0\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


def test_sampling_needs_keys():
    with pytest.raises(InputError, match="needs keys"):
        choose(jnp.zeros((1, 3)), Sampling(temperature=1.0))


def test_token_log_probabilities_are_the_softmax_at_the_token():
    logits = jnp.array([[[0.0, 1.0], [5.0, 5.0]]], jnp.bfloat16)
    got = token_log_probabilities(logits, jnp.array([[1, 0]]))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [[-np.log1p(np.exp(-1.0)), -np.log(2.0)]], rtol=1e-6)


@pytest.mark.slow
def test_filters_are_those_of_transformers():
    torch = pytest.importorskip("torch", reason="pip install 't5lite[parity]' for transformers")
    transformers = pytest.importorskip(
        "transformers", reason="pip install 't5lite[parity]' for transformers"
    )
    warpers = {
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
        "typical_p": transformers.TypicalLogitsWarper,
    }
    random = np.random.default_rng(2)
    ranges = {  # where each is on
        "temperature": lambda: random.uniform(0.3, 3),
        "top_k": lambda: int(random.integers(1, 900)),
        "top_p": lambda: random.uniform(0.05, 0.99),
        "min_p": lambda: random.uniform(0.001, 0.5),
        "typical_p": lambda: random.uniform(0.05, 0.99),
    }
    rows = []
    for _ in range(200):
        names = [name for name in ranges if random.random() < 0.5]
        rows.append({name: ranges[name]() for name in names})
    logits = random.normal(0, 2, (len(rows), 1000)).astype(np.float32)
    got = np.asarray(compiled(logits, together(rows)))
    for row, settings in enumerate(rows):
        scores = torch.tensor(logits[row : row + 1])
        for name in warpers:
            if name in settings:
                scores = warpers[name](settings[name])(None, scores)
        expected = torch.softmax(scores, dim=-1).numpy()[0]
        np.testing.assert_array_equal(np.isfinite(got[row]), expected > 0, err_msg=str(settings))
        np.testing.assert_allclose(probabilities(got[row]), expected, atol=1e-6)
