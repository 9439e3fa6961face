import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.decoding import (
    Constraints,
    Output,
    Sampling,
    Settings,
    can_occur,
    generate,
    stops_of,
    token_table,
)
from t5lite.decoding.constraints import pack_sequences
from t5lite.errors import InputError

EOS, VOCAB = 1, 8
INF, ENDS = np.inf, np.int32([[1]])


@jax.jit
def apply(constraints, logits, generated):
    return constraints.apply(logits, generated, eos_ids=ENDS)


@jax.jit
def stopped(constraints, generated):
    return constraints.stopped(generated)


def generated(*rows, capacity=6, prompts=None):
    """Rows that have written these tokens; what stands behind them is noise."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (len(rows), capacity)).astype(np.int32)
    for row, tokens_of_row in zip(tokens, rows, strict=True):
        row[: len(tokens_of_row)] = tokens_of_row
    lengths = np.array([len(row) for row in rows], np.int32)
    prompts = None if prompts is None else jnp.asarray(pack_sequences(prompts, align="right"))
    return Output(jnp.asarray(tokens), jnp.asarray(lengths), prompts)


def normal(rows, vocab=VOCAB, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (rows, vocab)).astype(np.float32)


def allowed(constraints, rows, **more):
    """The tokens that each row may write next."""
    logits = apply(constraints, np.zeros((len(rows), VOCAB), np.float32), generated(*rows, **more))
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(logits)]


def test_no_rule_changes_nothing():
    logits = normal(2)
    got = apply(Constraints(), logits.astype(jnp.bfloat16), generated([3], []))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, logits.astype(jnp.bfloat16).astype(np.float32))
    assert not stopped(Constraints(), generated([3], [])).any()


def test_repetition_penalty_counts_the_prompt_and_differs_by_row():
    logits = np.tile(np.float32([2, -2, 4, -4, 0, 1, 3, -3]), (2, 1))
    before = generated([2, 3, 2], [7], prompts=[[0], [1, 0]])
    got = apply(Constraints(repetition_penalty=np.float32([2, 4])), logits, before)
    np.testing.assert_array_equal(
        got, [[1, -2, 2, -8, 0, 1, 3, -3], [0.5, -8, 4, -4, 0, 1, 3, -12]]
    )
    alone = apply(Constraints(repetition_penalty=2.0), logits[:1], generated([2, 3, 2]))
    np.testing.assert_array_equal(alone, [[2, -2, 2, -8, 0, 1, 3, -3]])


def test_presence_penalty_is_taken_once_and_leaves_the_prompt_alone():
    before = generated([2, 3, 2], [7], prompts=[[0], [1, 0]])
    zeros = np.zeros((2, VOCAB), np.float32)
    got = apply(Constraints(presence_penalty=1.5), zeros, before)
    expected = np.zeros((2, VOCAB))
    expected[[0, 0, 1], [2, 3, 7]] = -1.5
    np.testing.assert_array_equal(got, expected)
    got = apply(Constraints(presence_penalty=np.float32([-1.0, 0.0])), zeros, before)
    np.testing.assert_array_equal(got, [[0, 0, 1, 1, 0, 0, 0, 0], [0] * VOCAB])


def test_banned_tokens_of_all_rows_and_by_row():
    every = np.isin(range(VOCAB), [0, 5])
    assert allowed(Constraints(banned=every), [[], [2]]) == [[1, 2, 3, 4, 6, 7]] * 2
    own = np.stack([every, ~every])
    assert allowed(Constraints(banned=own), [[], [2]]) == [[1, 2, 3, 4, 6, 7], [0, 5]]


def test_the_end_may_not_come_too_early():
    rows = [[], [2], [2, 3], [2, 3, 4]]
    free, barred = list(range(VOCAB)), [0, *range(2, VOCAB)]
    assert allowed(Constraints(min_new_tokens=2), rows) == [barred, barred, free, free]
    item = np.int32([0, 1, 3, 3])
    assert allowed(Constraints(min_new_tokens=item), rows) == [free, free, barred, free]


def test_forced_tokens_override_all_rules():
    forced = jnp.array([[4, -1, 1]])
    rules = Constraints(forced=forced, min_new_tokens=5, banned=np.isin(range(VOCAB), [4]))
    rows = [[], [4], [4, 2], [4, 2, 1]]
    free = [0, 2, 3, 5, 6, 7]
    assert allowed(rules, rows) == [[4], free, [1], free]
    item = jnp.array([[2], [3], [-1], [5]])
    assert allowed(Constraints(forced=item), [[]] * 4) == [[2], [3], list(range(VOCAB)), [5]]


CHOICES = [[5, 1], [5, 6, 1], [5, 6, 7, 1], [3, 3, 3, 3, 1], [0, 1]]


@pytest.mark.parametrize("capacity", [3, 6])
def test_choices_are_continued_where_they_agree(capacity):
    """And EOS alone may follow where none does, or where one is complete."""
    rules = Constraints(choices=jnp.asarray(pack_sequences(CHOICES))[None])
    rows = [[], [5], [5, 6], [3, 3], [0], [5, 1], [5, 6, 1], [4], [3, 5]]
    expected = [[0, 3, 5], [1, 6], [1, 7], [3], [1], [1], [1], [1], [1]]
    assert allowed(rules, rows, capacity=capacity) == expected


def test_each_row_may_have_its_own_choices():
    choices = jnp.array([[[2, 1, -1], [-1, -1, -1]], [[3, 4, 1], [6, 1, -1]]])
    assert allowed(Constraints(choices=choices), [[], []]) == [[2], [3, 6]]


def test_choices_come_though_all_of_them_are_barred():
    rules = Constraints(
        choices=jnp.array([[[2, 1, -1], [3, 4, 1]]]),
        banned=np.isin(range(VOCAB), [4, 2]),
        min_new_tokens=6,
    )
    assert allowed(rules, [[], [2], [3], [7]]) == [[3], [1], [4], [1]]


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_every_choice_and_nothing_else_is_generated(temperature):
    rows = 200
    rules = Constraints(choices=jnp.asarray(pack_sequences(CHOICES))[None])
    settings = Settings(EOS, sampling=Sampling(temperature=temperature), constraints=rules)
    tables = jnp.asarray(normal(rows * VOCAB).reshape(rows, VOCAB, VOCAB))  # from the last token

    @jax.jit
    def run(settings, tables, keys):
        def step_fn(tokens, cache):
            return jnp.take_along_axis(tables, tokens[..., None], axis=1), cache

        return generate(step_fn, None, jnp.zeros(rows, jnp.int32), settings, capacity=6, keys=keys)

    tokens, lengths, *_ = run(settings, tables, jax.random.split(jax.random.key(0), rows))
    texts = {tuple(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)}
    assert texts == {tuple(choice) for choice in CHOICES}


def test_rules_combine_and_excluded_tokens_stay_excluded():
    """Penalties meet barred tokens, by hand; and the softmax is one."""
    logits = np.float32([[-INF, 9, 2, -2, 1, 0, 8, 4]])
    rules = Constraints(
        repetition_penalty=np.float32([2]),
        presence_penalty=np.float32(3),
        banned=np.isin(range(VOCAB), [6]),
        min_new_tokens=np.int32([4]),
        forced=jnp.array([[-1, 2]]),
    )
    got = apply(rules, logits, generated([0, 2, 6], prompts=[[3]]))
    np.testing.assert_array_equal(got, [[-INF, -INF, -2, -4, 1, 0, -INF, 4]])
    np.testing.assert_allclose(np.sum(jax.nn.softmax(got)), 1, rtol=1e-6)


PIECES = [b"a", b"ba", b"d", b"ab", b"\xc3", b"\xa9b", b"c", b"abcab"]
STOPS = [[b"c"], [b"aba", b"bb"], ["\u00e9".encode()], [b"abab", b"bab"], [b"abca", b"bc"]]


@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_rows_stop_where_their_text_first_holds_a_stop(stops):
    random = np.random.default_rng(4)
    rows = [random.integers(0, VOCAB, random.integers(1, 7)).tolist() for _ in range(400)]
    rules = Constraints(stops=stops_of(token_table(PIECES), *stops))

    def holds(row):
        return any(stop in b"".join(PIECES[token] for token in row) for stop in stops)

    rows = [row for row in rows if not holds(row[:-1])]  # the others have ended before
    expected = [holds(row) for row in rows]
    np.testing.assert_array_equal(stopped(rules, generated(*rows)), expected)
    assert 3 < sum(expected) < len(rows) - 3


def test_a_stop_is_possible_where_some_tokens_have_it():
    for stop in (b"bca", b"b\xc3\xa9ba"):
        assert can_occur(stop, PIECES)
    for stop in (b"\xc3\xc4", b"x"):
        assert not can_occur(stop, PIECES)


def test_an_answer_may_begin_with_other_text_than_its_first_token_has_later():
    rules = Constraints(stops=stops_of(token_table([b" a", b"b"], first=[b"a", b"b"]), b" a"))
    actual = stopped(rules, generated([0], [1, 0], [0, 1, 0], [1]))
    assert actual.tolist() == [False, True, True, False]


def brute_repeated(text, size):
    """The tokens that would complete an n-gram which a text has."""
    ends = tuple(text[len(text) - size + 1 :])
    if len(text) < size - 1:
        return set()
    grams = [tuple(text[at : at + size]) for at in range(len(text) - size + 1)]
    return {gram[-1] for gram in grams if gram[:-1] == ends}


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_no_n_gram_comes_twice_nor_one_of_the_prompt(size):
    random = np.random.default_rng(5)
    rows = [random.integers(0, 3, random.integers(0, 7)).tolist() for _ in range(60)]
    prompts = [random.integers(0, 3, random.integers(0, 5)).tolist() for _ in rows]
    rules = Constraints(no_repeat_ngram_size=size)
    every = set(range(VOCAB))
    for own in (prompts, None):
        texts = [[*p, *row] for p, row in zip(own or [[]] * len(rows), rows, strict=True)]
        expected = [sorted(every - brute_repeated(text, size)) for text in texts]
        assert allowed(rules, rows, prompts=own) == expected


def test_banned_sequences_are_never_completed():
    sequences = jnp.asarray(pack_sequences([[2, 3], [4], [3, 2, 5]], align="right"))[None]
    rules = Constraints(banned_sequences=sequences)
    actual = allowed(rules, [[], [2], [3, 2], [2]], prompts=[[], [7], [1], [0, 3]])
    assert actual == [[0, 1, 2, 3, 5, 6, 7], [0, 1, 2, 5, 6, 7], [0, 1, 2, 6, 7], [0, 1, 2, 6, 7]]


def test_banned_first_tokens_may_come_later_and_count_after_forced_ones():
    rules = Constraints(banned_first=np.isin(range(VOCAB), [0, 5]))
    assert allowed(rules, [[], [2]]) == [[1, 2, 3, 4, 6, 7], list(range(VOCAB))]
    rules = Constraints(banned_first=np.isin(range(VOCAB), [0, 5]), forced=jnp.array([[5, -1]]))
    assert allowed(rules, [[], [5], [5, 5]]) == [[5], [1, 2, 3, 4, 6, 7], list(range(VOCAB))]


def test_the_last_token_can_be_forced_at_each_row_s_limit():
    rules = Constraints(forced_last=jnp.array([EOS, -1]))
    before = generated([2, 3], [2, 3])
    zeros = np.zeros((2, VOCAB), np.float32)
    for limits, expected in ((np.int32([3, 3]), [1, VOCAB]), (np.int32([4, 3]), [VOCAB, VOCAB])):
        got = rules.apply(zeros, before, eos_ids=ENDS, limits=limits)
        assert np.isfinite(got).sum(axis=1).tolist() == expected


def test_every_eos_ends_a_row_and_waits_for_the_minimum():
    ends = jnp.array([[EOS, 6, -1, -1]])
    settings = Settings(eos_ids=ends, constraints=Constraints(min_new_tokens=2))
    assert settings.ended(generated([EOS], [2, 6], [6, 2])).tolist() == [True, True, False]
    got = settings.adjusted(jnp.zeros((2, VOCAB)), generated([2], [2, 3]))
    assert np.isneginf(got).tolist()[0] == [token in (EOS, 6) for token in range(VOCAB)]
    assert np.isfinite(got[1]).all()


def test_sequences_are_packed_to_either_side():
    np.testing.assert_array_equal(pack_sequences([[3], [], [1, 2]]), [[3, -1], [-1, -1], [1, 2]])
    right = pack_sequences([[3], [], [1, 2]], align="right")
    np.testing.assert_array_equal(right, [[-1, 3], [-1, -1], [1, 2]])
    assert right.dtype == np.int32
    assert pack_sequences([]).shape == (0, 0)
    with pytest.raises(InputError, match="unknown align 'lift'; did you mean left"):
        pack_sequences([[1]], align="lift")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty=0 must be above 0"),
        ({"presence_penalty": float("inf")}, "presence_penalty=inf must be finite"),
        ({"min_new_tokens": -3}, "min_new_tokens=-3 must be a whole number, at least 0"),
        ({"min_new_tokens": 1.5}, r"min_new_tokens=1\.5"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Constraints(**settings)


@pytest.mark.slow
def test_rules_are_those_of_transformers():
    torch = pytest.importorskip("torch", reason="pip install 't5lite[parity]' for transformers")
    transformers = pytest.importorskip(
        "transformers", reason="pip install 't5lite[parity]' for transformers"
    )
    random = np.random.default_rng(6)
    for _ in range(40):
        prompts, tokens = random.integers(2, VOCAB, (5, 4)), random.integers(2, VOCAB, (5, 3))
        logits = normal(5, seed=int(random.integers(1 << 30)))
        penalty, banned = random.uniform(0.5, 2), random.choice(np.arange(2, VOCAB), 2).tolist()
        least = int(random.integers(0, 6))
        rules = Constraints(
            repetition_penalty=penalty,
            banned=np.isin(range(VOCAB), banned),
            min_new_tokens=least,
            choices=jnp.asarray(
                np.concatenate([tokens[:2], random.integers(0, VOCAB, (2, 2))], axis=1), jnp.int32
            )[None],
        )
        choices = np.asarray(rules.choices[0]).tolist()

        def continued(_, row, choices=choices):
            following = row.tolist()[4:]
            return [choice[3] for choice in choices if choice[:3] == following] or [EOS]

        processors = transformers.LogitsProcessorList(
            [
                transformers.RepetitionPenaltyLogitsProcessor(penalty),
                transformers.SuppressTokensLogitsProcessor(banned),
                transformers.MinNewTokensLengthLogitsProcessor(4, least, EOS),
                transformers.PrefixConstrainedLogitsProcessor(continued, 1),
            ]
        )
        ids = torch.tensor(np.concatenate([prompts, tokens], axis=1))
        expected = processors(ids, torch.tensor(logits)).numpy()
        got = apply(rules, logits, generated(*tokens, prompts=prompts.tolist()))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
