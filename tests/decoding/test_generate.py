import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.decoding import Constraints, Sampling, Settings, generate, start
from t5lite.decoding import decode as decode_on
from t5lite.errors import InputError

EOS, VOCAB, ROOM = 1, 7, 24
VALUES = np.random.default_rng(5).normal(0, 2, (ROOM, VOCAB, VOCAB)).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyCache:
    """Every token seen so far, and the number of steps taken."""

    tokens: jax.Array
    lengths: jax.Array
    steps: jax.Array

    def rewind(self, lengths):
        return dataclasses.replace(self, lengths=lengths)


def empty_cache(batch):
    return ToyCache(jnp.zeros((batch, ROOM), jnp.int32), jnp.zeros(batch, jnp.int32), jnp.int32(0))


def append(tokens, cache):
    write = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))
    return ToyCache(
        write(cache.tokens, tokens, cache.lengths),
        cache.lengths + tokens.shape[1],
        cache.steps + 1,
    )


def table_step(table):
    """The next token's logits depend on the last token alone."""
    return lambda tokens, cache: (table[tokens], append(tokens, cache))


def history_step(tokens, cache):
    """The next token's logits depend on every token before it and on its place."""
    cache, old = append(tokens, cache), cache.lengths
    places = jnp.arange(ROOM)
    item = jnp.asarray(VALUES)[places[None], cache.tokens]  # [batch, ROOM, VOCAB]
    ends = old[:, None] + jnp.arange(tokens.shape[1])[None]  # [batch, n]
    seen = (places[None, None] <= ends[..., None]).astype(jnp.float32)
    return jnp.einsum("bnr,brv->bnv", seen, item), cache


def prompted(step_fn, prompts, lengths):
    """Caches that hold all but the last token of each prompt, and those last tokens."""
    _, cache = step_fn(jnp.asarray(prompts), empty_cache(len(prompts)))
    last = jnp.asarray(lengths, jnp.int32) - 1
    first = jnp.take_along_axis(jnp.asarray(prompts, jnp.int32), last[:, None], axis=1)[:, 0]
    return cache.rewind(last), first


def keys_of(seed, rows):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))


def decode(step_fn, cache, first, *, capacity, keys=None, **settings):
    """`generate` as its callers run it: compiled as a whole."""
    settings = Settings(eos_ids=(EOS,), **settings)
    run = jax.jit(
        lambda cache, first, settings, keys: generate(
            step_fn, cache, first, settings, capacity=capacity, keys=keys
        )
    )
    return run(cache, jnp.asarray(first, jnp.int32), settings, keys)


# 2 → 3 → 4 → EOS and 5 → 6 → 5 → 6 …
CHAIN = jnp.log(jnp.full((VOCAB, VOCAB), 0.05).at[(2, 3, 4, 5, 6), (3, 4, EOS, 6, 5)].set(0.7))


def test_greedy_follows_the_table_and_pads_after_eos():
    out = decode(table_step(CHAIN), empty_cache(3), [2, 5, 4], capacity=5)
    np.testing.assert_array_equal(out.tokens, [[3, 4, 1, 0, 0], [6, 5, 6, 5, 6], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(out.lengths, [3, 5, 1])
    assert out.tokens.dtype == out.lengths.dtype == jnp.int32
    np.testing.assert_allclose(out.log_probabilities, np.log(0.7) * np.array([3, 5, 1]), rtol=1e-5)


def test_another_pad_id():
    out = decode(table_step(CHAIN), empty_cache(1), [4], capacity=3, pad_id=6)
    np.testing.assert_array_equal(out.tokens, [[1, 6, 6]])


@pytest.mark.parametrize(
    ("first", "limits", "expected"),
    [([4, 4], 6, 1), ([2, 4], 6, 3), ([2, 5], 6, 6), ([5, 5], 6, 6), ([5, 5], [2, 4], 4)],
)
def test_steps_no_further_than_needed(first, limits, expected):
    """A step for each token of the row that lasts longest; `limits` may differ by row."""
    calls = []

    def step(tokens, cache):
        jax.debug.callback(lambda lengths: calls.append(int(lengths[0])), cache.lengths)
        return table_step(CHAIN)(tokens, cache)

    out = decode(step, empty_cache(2), first, capacity=6, limits=jnp.asarray(limits))
    jax.block_until_ready(out)
    jax.effects_barrier()
    assert len(calls) == expected
    assert int(out.lengths.max()) == expected


def test_log_probability_is_that_of_the_whole_sequence_under_the_model():
    out = decode(
        history_step,
        empty_cache(4),
        [2] * 4,
        capacity=6,
        sampling=Sampling(temperature=0.6),
        keys=keys_of(1, 4),
    )
    fed = jnp.concatenate([jnp.full((4, 1), 2), out.tokens[:, :-1]], axis=1)
    logits, _ = history_step(fed, empty_cache(4))
    item = jnp.take_along_axis(jax.nn.log_softmax(logits), out.tokens[..., None], axis=-1)[..., 0]
    generated = np.arange(6)[None] < np.asarray(out.lengths)[:, None]
    np.testing.assert_allclose(
        out.log_probabilities, jnp.where(generated, item, 0.0).sum(1), rtol=1e-5
    )


def test_sampled_paths_have_the_table_s_frequencies():
    batch = 4000
    out = decode(
        table_step(CHAIN),
        empty_cache(batch),
        [2] * batch,
        capacity=2,
        sampling=Sampling(temperature=1.0),
        keys=keys_of(0, batch),
    )
    first, second = np.asarray(out.tokens).T
    assert abs(np.mean(first == 3) - 0.7) < 0.03
    assert abs(np.mean(second[first == 3] == 4) - 0.7) < 0.04


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_ragged_prompts_equal_each_row_alone(drawn):
    prompts, lengths = np.array([[2, 3, 4, 5], [6, 5, 0, 0], [3, 0, 0, 0]]), np.array([4, 2, 1])
    keys = keys_of(9, 3)

    def run(rows):
        width = int(lengths[rows].max())
        options = {}
        if drawn:  # at temperatures of their own
            heat = jnp.asarray([0.5, 1.0, 2.0], jnp.float32)[np.array(rows)]
            options = {"sampling": Sampling(temperature=heat), "keys": keys[np.array(rows)]}
        cache, first = prompted(history_step, prompts[rows, :width], lengths[rows])
        return decode(history_step, cache, first, capacity=8, **options)

    together = run([0, 1, 2])
    for row in range(3):
        alone = run([row])
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_array_equal(together.lengths[row], alone.lengths[0])
        np.testing.assert_allclose(
            together.log_probabilities[row], alone.log_probabilities[0], rtol=1e-4
        )


@pytest.mark.parametrize("steps", [1, 3])
def test_in_parts_it_is_the_same(steps):
    """As a terminal shows it, a few steps at a time; what is given back goes on where it was."""
    settings = Settings(eos_ids=(EOS,), sampling=Sampling(temperature=jnp.ones(3)))
    first = jnp.array([2, 5, 4], jnp.int32)
    whole = generate(
        history_step, empty_cache(3), first, settings, capacity=7, keys=(keys := keys_of(3, 3))
    )
    part = jax.jit(
        lambda state, steps: decode_on(history_step, state, settings, steps=steps), donate_argnums=0
    )
    state, turns = start(empty_cache(3), first, capacity=7, keys=keys), 0
    while not bool(state.done.all()):
        state, turns = part(state, steps), turns + 1
        assert int(state.output.lengths.max()) == min(7, turns * steps)
    np.testing.assert_array_equal(state.generated.tokens, whole.tokens)
    np.testing.assert_array_equal(state.generated.lengths, whole.lengths)


def test_rules_shape_the_choice_and_not_the_reported_probability():
    def never_four(logits, generated):
        assert generated.tokens.shape == (1, 1)
        return logits.at[:, 4].set(-jnp.inf)

    for rule in (
        {"logits_fn": never_four},
        {"constraints": Constraints(banned=jnp.arange(VOCAB) == 4)},
    ):
        out = decode(table_step(CHAIN), empty_cache(1), [3], capacity=1, **rule)
        assert int(out.tokens[0, 0]) == 0
        np.testing.assert_allclose(out.log_probabilities, np.log(0.05), rtol=1e-5)


def test_compiles_once_for_new_prompts_parameters_keys_and_numbers():
    traces = []

    @functools.partial(jax.jit, static_argnames="batch")
    def run(table, first, settings, keys, *, batch):
        traces.append(batch)
        return generate(
            table_step(table), empty_cache(batch), first, settings, capacity=4, keys=keys
        )

    def options(temperature, top_k, limit):
        sampling = Sampling(temperature=temperature, top_k=top_k)
        return Settings(eos_ids=(EOS,), sampling=sampling, limits=limit)

    first = run(CHAIN, jnp.array([2, 5]), options(1.0, 3, 4), keys_of(0, 2), batch=2)
    run(CHAIN * 2, jnp.array([5, 2]), options(0.5, 2, 3), keys_of(1, 2), batch=2)
    again = run(CHAIN, jnp.array([2, 5]), options(1.0, 3, 4), keys_of(0, 2), batch=2)
    assert traces == [2]
    np.testing.assert_array_equal(first.tokens, again.tokens)


def test_half_precision_logits_are_scored_in_float32():
    out = decode(table_step(CHAIN.astype(jnp.bfloat16)), empty_cache(1), [2], capacity=3)
    assert out.log_probabilities.dtype == jnp.float32


def test_nothing_to_write_is_refused():
    with pytest.raises(InputError, match="capacity=0"):
        decode(table_step(CHAIN), empty_cache(1), [2], capacity=0)


def no_way_on(logits, generated):
    """Bars everything in rows that have written 5 and 6."""
    stuck = (generated.lengths == 2) & (generated.tokens[:, 1] == 6)
    return jnp.where(stuck[:, None], -jnp.inf, logits)


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_a_row_without_an_allowed_token_ends_as_stuck(temperature):
    out = decode(
        table_step(CHAIN * 100),
        empty_cache(2),
        [2, 6],
        capacity=6,
        keys=keys_of(0, 2),
        logits_fn=no_way_on,
        sampling=Sampling(temperature=temperature),
    )
    np.testing.assert_array_equal(out.lengths, [3, 3])
    np.testing.assert_array_equal(out.stuck, [False, True])
    assert np.isfinite(out.log_probabilities).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_logits_that_are_not_finite_end_a_row_as_nan(bad, temperature):
    table = (CHAIN * 100).at[6, 3].set(bad)
    sampling = Sampling(temperature=temperature)
    out = decode(
        table_step(table), empty_cache(2), [2, 5], capacity=6, keys=keys_of(0, 2), sampling=sampling
    )
    np.testing.assert_array_equal(out.lengths, [3, 2])
    np.testing.assert_array_equal(np.isnan(out.log_probabilities), [False, True])


def primitives(jaxpr):
    """Names of the primitives of a jaxpr, those of branches and inner loops left out."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name in ("jit", "pjit", "closed_call", "custom_jvp_call"):
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            yield from primitives(getattr(inner, "jaxpr", inner))


def test_a_greedy_step_is_the_model_one_maximum_and_three_writes():
    """Rules and draws stand in one branch, which greedy batches without options skip."""
    state = start(
        empty_cache(2), jnp.full(2, 2), capacity=8, keys=keys_of(0, 2), prompts=jnp.full((2, 3), -1)
    )
    step_fn = lambda tokens, cache: (jnp.asarray(VALUES)[0][tokens], cache)  # noqa: E731
    jaxpr = jax.make_jaxpr(functools.partial(decode_on, step_fn))(state, Settings.neutral(2, VOCAB))
    (loop,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "while")
    names = [*primitives(loop.params["body_jaxpr"].jaxpr)]
    assert names.count("cond") == 1
    assert names.count("scatter") == 3  # the token and its two log-probabilities
    slow = {
        "sort",
        "top_k",
        "while",
        "scan",
        "cumsum",
        "threefry2x32",
        "random_bits",
        "random_fold_in",
    }
    assert not slow & {*names}
