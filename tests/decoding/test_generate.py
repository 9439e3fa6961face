import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.decoding import generate
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
    each = jnp.asarray(VALUES)[places[None], cache.tokens]  # [batch, ROOM, VOCAB]
    ends = old[:, None] + jnp.arange(tokens.shape[1])[None]  # [batch, n]
    seen = (places[None, None] <= ends[..., None]).astype(jnp.float32)
    return jnp.einsum("bnr,brv->bnv", seen, each), cache


def decode(step_fn, cache, prompt, *, lengths=None, **settings):
    """`generate` as its callers run it: compiled as a whole."""
    run = jax.jit(
        lambda cache, prompt, lengths: generate(
            step_fn, cache, prompt, prompt_lengths=lengths, eos_id=EOS, **settings
        )
    )
    return run(cache, prompt, lengths)


# 2 → 3 → 4 → EOS and 5 → 6 → 5 → 6 …
CHAIN = jnp.log(jnp.full((VOCAB, VOCAB), 0.05).at[(2, 3, 4, 5, 6), (3, 4, EOS, 6, 5)].set(0.7))


def test_greedy_follows_the_table_and_pads_after_eos():
    out = decode(table_step(CHAIN), empty_cache(3), jnp.array([2, 5, 4]), max_new_tokens=5)
    np.testing.assert_array_equal(out.tokens, [[3, 4, 1, 0, 0], [6, 5, 6, 5, 6], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(out.lengths, [3, 5, 1])
    assert out.tokens.dtype == out.lengths.dtype == jnp.int32
    np.testing.assert_allclose(out.log_probabilities, np.log(0.7) * np.array([3, 5, 1]), rtol=1e-5)


def test_another_pad_id():
    out = decode(table_step(CHAIN), empty_cache(1), jnp.array([4]), max_new_tokens=3, pad_id=6)
    np.testing.assert_array_equal(out.tokens, [[1, 6, 6]])


@pytest.mark.parametrize(
    ("prompt", "expected"), [([4, 4], 1), ([2, 4], 3), ([2, 5], 6), ([5, 5], 6)]
)
def test_steps_no_further_than_needed(prompt, expected):
    """One prefill, then one step for each further token of the row that lasts longest."""
    calls = []

    def step(tokens, cache):
        jax.debug.callback(lambda lengths: calls.append(int(lengths[0])), cache.lengths)
        return table_step(CHAIN)(tokens, cache)

    out = decode(step, empty_cache(2), jnp.array(prompt), max_new_tokens=6)
    jax.block_until_ready(out)
    jax.effects_barrier()
    assert len(calls) == expected
    assert int(out.lengths.max()) == expected


def test_log_probability_is_that_of_the_whole_sequence_under_the_model():
    out = decode(
        history_step,
        empty_cache(4),
        jnp.full(4, 2),
        max_new_tokens=6,
        temperature=0.6,
        rng=jax.random.key(1),
    )
    fed = jnp.concatenate([jnp.full((4, 1), 2), out.tokens[:, :-1]], axis=1)
    logits, _ = history_step(fed, empty_cache(4))
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), out.tokens[..., None], axis=-1)[..., 0]
    written = np.arange(6)[None] < np.asarray(out.lengths)[:, None]
    np.testing.assert_allclose(
        out.log_probabilities, jnp.where(written, each, 0.0).sum(1), rtol=1e-5
    )


def test_sampled_paths_have_the_table_s_frequencies():
    batch = 4000
    out = decode(
        table_step(CHAIN),
        empty_cache(batch),
        jnp.full(batch, 2),
        max_new_tokens=2,
        temperature=1.0,
        rng=jax.random.key(0),
    )
    first, second = np.asarray(out.tokens).T
    assert abs(np.mean(first == 3) - 0.7) < 0.03
    assert abs(np.mean(second[first == 3] == 4) - 0.7) < 0.04


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ragged_prompts_equal_each_row_alone(temperature):
    prompts, lengths = np.array([[2, 3, 4, 5], [6, 5, 0, 0], [3, 0, 0, 0]]), np.array([4, 2, 1])
    # Gumbel noise by row, so that the draw does not depend on the batch.
    noise = np.random.default_rng(9).gumbel(size=(3, 8, VOCAB)).astype(np.float32)

    def run(rows):
        def noisy(logits, tokens, index):
            assert tokens.shape == (len(rows), 8)
            return logits + temperature * jnp.asarray(noise[rows])[:, index]

        width = int(lengths[rows].max())
        return decode(
            history_step,
            empty_cache(len(rows)),
            jnp.asarray(prompts[rows, :width]),
            lengths=jnp.asarray(lengths[rows]),
            max_new_tokens=8,
            logits_fn=noisy,
        )

    together = run([0, 1, 2])
    for row in range(3):
        alone = run([row])
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_array_equal(together.lengths[row], alone.lengths[0])
        np.testing.assert_allclose(
            together.log_probabilities[row], alone.log_probabilities[0], rtol=1e-4
        )


def test_a_prompt_continues_what_the_cache_holds():
    _, cache = history_step(jnp.array([[2, 6], [2, 6]]), empty_cache(2))
    settings = {"max_new_tokens": 5}
    split = decode(
        history_step,
        cache,
        jnp.array([[3, 4], [3, 0]]),
        lengths=jnp.array([2, 1]),
        **settings,
    )
    whole = decode(
        history_step,
        empty_cache(2),
        jnp.array([[2, 6, 3, 4], [2, 6, 3, 0]]),
        lengths=jnp.array([4, 3]),
        **settings,
    )
    np.testing.assert_array_equal(split.tokens, whole.tokens)


def test_logits_fn_shapes_the_choice_and_not_the_reported_probability():
    def never_four(logits, tokens, index):
        return logits.at[:, 4].set(-jnp.inf)

    out = decode(
        table_step(CHAIN),
        empty_cache(1),
        jnp.array([3]),
        max_new_tokens=1,
        logits_fn=never_four,
    )
    assert int(out.tokens[0, 0]) == 0
    np.testing.assert_allclose(out.log_probabilities, np.log(0.05), rtol=1e-5)


def test_compiles_once_for_new_prompts_parameters_and_keys():
    traces = []

    @functools.partial(jax.jit, static_argnames="batch")
    def run(table, prompt, rng, *, batch):
        traces.append(batch)
        return generate(
            table_step(table),
            empty_cache(batch),
            prompt,
            max_new_tokens=4,
            eos_id=EOS,
            temperature=1.0,
            rng=rng,
        )

    first = run(CHAIN, jnp.array([2, 5]), jax.random.key(0), batch=2)
    run(CHAIN * 2, jnp.array([5, 2]), jax.random.key(1), batch=2)
    again = run(CHAIN, jnp.array([2, 5]), jax.random.key(0), batch=2)
    assert traces == [2]
    np.testing.assert_array_equal(first.tokens, again.tokens)


def test_half_precision_logits_are_scored_in_float32():
    out = decode(
        table_step(CHAIN.astype(jnp.bfloat16)),
        empty_cache(1),
        jnp.array([2]),
        max_new_tokens=3,
    )
    assert out.log_probabilities.dtype == jnp.float32


def test_nothing_to_write_is_refused():
    with pytest.raises(InputError, match="max_new_tokens=0"):
        generate(table_step(CHAIN), empty_cache(1), jnp.array([2]), max_new_tokens=0, eos_id=EOS)
