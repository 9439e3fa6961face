import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from t5lite.decoding import (
    Constraints,
    Sampling,
    Settings,
    decode,
    filtered,
    start,
    stops_of,
    token_table,
)
from t5lite.decoding.drafts import DraftMemory, ModelDraft, PromptLookup
from t5lite.decoding.output import Output
from t5lite.decoding.speculative import Speculation, speculate
from t5lite.errors import InputError
from t5lite.models import Model, override

EOS, VOCAB, SIZE = 1, 7, 24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyCache:
    """Every token seen so far, and the number of steps taken."""

    tokens: jax.Array
    lengths: jax.Array
    steps: jax.Array

    @classmethod
    def of(cls, tokens, lengths) -> "ToyCache":
        tokens = jnp.pad(jnp.asarray(tokens, jnp.int32), ((0, 0), (0, SIZE - len(tokens[0]))))
        return cls(tokens, jnp.asarray(lengths, jnp.int32), jnp.int32(0))

    def rewind(self, lengths):
        return dataclasses.replace(self, lengths=lengths)


@functools.cache
def toy_step(seed: int, noise: float = 0.0, vocab: int = VOCAB):
    """The next token's logits depend on every token before it and on its place."""
    table = np.random.default_rng(seed).normal(0, 1.2, (SIZE, vocab, vocab))
    table += noise * np.random.default_rng(seed + 100).normal(0, 1, table.shape)

    def step(tokens, cache):
        rows, n = tokens.shape
        places = jnp.arange(SIZE, dtype=jnp.int32)
        at = cache.lengths[:, None] + jnp.arange(n, dtype=jnp.int32)[None]
        new = jnp.zeros((rows, SIZE), jnp.int32).at[jnp.arange(rows)[:, None], at].set(tokens)
        here = (places[None] >= at[:, :1]) & (places[None] <= at[:, -1:])
        remaining = jnp.where(here, new, cache.tokens)
        item = jnp.asarray(table, jnp.float32)[places[None], remaining]  # [rows, SIZE, vocab]
        seen = (places[None, None] <= at[..., None]).astype(jnp.float32)
        logits = jnp.einsum("bnr,brv->bnv", seen, item)
        return logits, ToyCache(remaining, cache.lengths + n, cache.steps + 1)

    return step


# Four prompts of 3, 1, 4 and 2 tokens, all but the last of them in the cache.
PROMPTS = np.array([[2, 3, 4, -1], [5, -1, -1, -1], [6, 5, 2, 3], [4, 2, -1, -1]], np.int32)
HELD = np.sum(PROMPTS >= 0, axis=1) - 1
FIRST = PROMPTS[np.arange(4), HELD]
DRAFTS = {
    "near": ModelDraft(toy_step(0, 0.3)),
    "worthless": ModelDraft(toy_step(77)),
    "itself": ModelDraft(toy_step(0)),
    "lookup": PromptLookup(),
}


def started(room, keys=None, rows=slice(None)):
    cache = ToyCache.of(np.maximum(PROMPTS, 0)[rows], HELD[rows])
    prompts = jnp.asarray(PROMPTS[rows])
    return start(cache, jnp.asarray(FIRST[rows]), capacity=room, keys=keys, prompts=prompts)


@functools.partial(jax.jit, static_argnames=("step_fn", "draft", "draft_length"))
def spoken(speculation, settings, draft, *, step_fn=toy_step(0), draft_length=3, steps=None):
    return speculate(step_fn, speculation, settings, draft, draft_length=draft_length, steps=steps)


@functools.partial(jax.jit, static_argnames="step_fn")
def plain(state, settings, *, step_fn=toy_step(0)):
    return decode(step_fn, state, settings).generated


def opening(state, draft):
    """A speculation in which a draft model has read the same prompts as the model."""
    lookup = isinstance(draft, PromptLookup)
    return Speculation.of(state, None if lookup else DraftMemory.of(state.cache))


def assert_same(generated, expected):
    np.testing.assert_array_equal(generated.tokens, expected.tokens)
    np.testing.assert_array_equal(generated.lengths, expected.lengths)
    np.testing.assert_allclose(
        generated.log_probabilities, expected.log_probabilities, rtol=2e-5, atol=1e-5
    )


PIECES = token_table([bytes([i]) for i in range(VOCAB)])


def not_twice(logits, output):
    """Bars the token before, which only the written ones up to here can tell."""
    last = jnp.take_along_axis(output.tokens, jnp.maximum(output.lengths - 1, 0)[:, None], axis=1)
    same = jnp.arange(logits.shape[1], dtype=jnp.int32)[None] == last
    return jnp.where(same & (output.lengths > 0)[:, None], -jnp.inf, logits)


RULES = Constraints(
    repetition_penalty=jnp.array([1.0, 1.5, 1.2, 2.0]),
    presence_penalty=0.4,
    min_new_tokens=2,
    banned=jnp.zeros(VOCAB, bool).at[0].set(True),
    stops=stops_of(PIECES, bytes([3, 6]), bytes([2, 4, 5])),
    no_repeat_ngram_size=3,
)


@pytest.mark.parametrize(
    ("draft", "draft_length", "rules"),
    [
        ("near", 3, "few"),
        ("itself", 4, "few"),
        ("near", 1, "many"),
        ("near", 5, "many"),
        ("worthless", 3, "many"),
        ("itself", 3, "many"),
        ("lookup", 3, "many"),
    ],
)
def test_greedy_speculation_equals_decode(draft, draft_length, rules):
    settings = {
        "few": Settings(EOS, limits=jnp.array([3, 12, 1, 7])),
        "many": Settings(EOS, jnp.array([12, 9, 12, 5]), constraints=RULES, logits_fn=not_twice),
    }[rules]
    state, draft = started(12), DRAFTS[draft]
    expected = plain(state, settings)
    out = spoken(opening(state, draft), settings, draft, draft_length=draft_length)
    assert_same(out.generated, expected)
    assert bool(jnp.all(out.state.done))
    assert out.generated.tokens.dtype == out.generated.lengths.dtype == jnp.int32
    np.testing.assert_array_equal(out.state.cache.lengths, HELD + np.asarray(expected.lengths))
    # As many steps of the model as the row takes that lasts longest, each worth at least a token
    # and at most all proposals and one.
    assert int(out.state.cache.steps) == int(out.turns.max())
    assert bool(jnp.all(out.turns <= expected.lengths))
    assert bool(jnp.all(out.turns + out.accepted >= expected.lengths))
    if draft is DRAFTS["itself"]:
        assert float(out.acceptance_rate) == 1.0
        np.testing.assert_array_equal(out.turns, -(-expected.lengths // (draft_length + 1)))


@pytest.mark.parametrize(("draft", "temperature"), [("near", 0.8), ("lookup", None)])
def test_turn_by_turn_is_all_at_once(draft, temperature):
    settings = Settings(EOS, sampling=Sampling(temperature))
    draft = DRAFTS[draft]
    state = started(12, jax.random.split(jax.random.key(3), 4))
    whole = spoken(opening(state, draft), settings, draft, steps=99)
    parts, seen = opening(state, draft), np.zeros(4, int)
    for turn in range(1, int(whole.turns.max()) + 1):
        parts = spoken(parts, settings, draft, steps=1)
        lengths = np.asarray(parts.generated.lengths)
        assert np.all((lengths > seen) | np.asarray(whole.turns < turn))
        seen = lengths
    assert_same(parts.generated, whole.generated)
    for name in ("turns", "judged", "accepted"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    behind_the_end = np.arange(12)[None] >= seen[:, None]
    assert not np.any(np.asarray(parts.generated.tokens)[behind_the_end])


def test_a_row_alone_is_the_row_in_a_batch():
    sampling = Sampling(jnp.array([0.7, 0.0, 1.5, 1.0]), top_p=jnp.array([0.9, 0.5, 1.0, 0.8]))
    rules = Constraints(presence_penalty=jnp.array([0.0, 1.0, 0.5, 2.0]))
    settings = Settings(EOS, jnp.array([12, 8, 12, 10]), sampling, rules)
    keys = jax.random.split(jax.random.key(1), 4)
    state, draft = started(12, keys), DRAFTS["near"]
    together = spoken(opening(state, draft), settings, draft)
    greedy = dataclasses.replace(settings, sampling=Sampling())
    np.testing.assert_array_equal(together.generated.tokens[1], plain(state, greedy).tokens[1])

    def row_of(tree, row):
        return jax.tree.map(lambda x: x[row : row + 1] if jnp.shape(x)[:1] == (4,) else x, tree)

    for row in range(4):
        state = started(12, keys[row : row + 1], slice(row, row + 1))
        alone = spoken(opening(state, draft), row_of(settings, row), draft)
        assert_same(alone.generated, row_of(together.generated, row))


PLACES, FEW, MANY = 3, 5, 20_000
OVERALL = {
    "temperature": Settings(EOS, sampling=Sampling(1.3)),
    "filters": Settings(EOS, sampling=Sampling(0.9, top_k=4, top_p=0.9)),
    "rules": Settings(
        EOS,
        sampling=Sampling(1.1, min_p=0.05),
        constraints=Constraints(presence_penalty=0.8, min_new_tokens=2),
    ),
}
STEPS = {seed: toy_step(seed, 0.0, FEW) for seed in (11, 12)} | {"near": toy_step(11, 0.5, FEW)}


def joint(settings, step_fn):
    """The exact probability of every answer, by what is written: paths of one tree."""
    paths = np.array(list(itertools.product(range(FEW), repeat=PLACES)), np.int32)
    fed = jnp.asarray(np.insert(paths[:, :-1], 0, 2, axis=1))
    logits, _ = step_fn(fed, ToyCache.of(np.zeros((len(paths), 1)), np.zeros(len(paths))))
    chances = []
    for index in range(PLACES):
        output = Output(jnp.asarray(paths), jnp.full(len(paths), index, jnp.int32))
        allowed = filtered(settings.adjusted(logits[:, index], output), settings.sampling)
        item = np.asarray(jax.nn.softmax(allowed), np.float64)
        chances.append(item[np.arange(len(paths)), paths[:, index]])
    total = {}
    for path, chance in zip(paths.tolist(), np.transpose(chances), strict=True):
        length = path.index(EOS) + 1 if EOS in path else PLACES
        total[(*path[:length], *[0] * (PLACES - length), length)] = np.prod(chance[:length])
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draft", "draft_length", "rules"),
    [
        (ModelDraft(STEPS["near"]), 1, "filters"),
        (ModelDraft(STEPS["near"]), 2, "rules"),
        (ModelDraft(STEPS[12]), 3, "temperature"),
        (PromptLookup(ngram=2), 3, "rules"),
    ],
)
def test_answers_have_exactly_the_model_s_distribution(draft, draft_length, rules):
    settings, step_fn = OVERALL[rules], STEPS[11]
    keys = jax.random.split(jax.random.key(2), MANY)
    # Prompts are known to the lookup alone, and suggest tokens that are unlikely or never come.
    prompts = jnp.asarray(np.random.default_rng(0).integers(0, FEW, (MANY, 6)), jnp.int32)
    prompts = prompts.at[:, -1].set(2)
    state = start(
        ToyCache.of(np.zeros((MANY, 1)), np.zeros(MANY)),
        jnp.full(MANY, 2),
        capacity=PLACES,
        keys=keys,
        prompts=prompts,
    )
    out = spoken(opening(state, draft), settings, draft, step_fn=step_fn, draft_length=draft_length)
    rate = float(out.acceptance_rate)
    assert 0.1 < rate < 0.95, rate
    exact = joint(settings, step_fn)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    answers = np.column_stack([out.generated.tokens, out.generated.lengths])
    counts = dict.fromkeys(exact, 0)
    for answer, count in zip(*np.unique(answers, axis=0, return_counts=True), strict=True):
        counts[tuple(answer.tolist())] += int(count)
    expected = MANY * np.array(list(exact.values()))
    observed = np.array(list(counts.values()))
    assert not np.any(observed[expected == 0])
    rare = expected < 5
    if np.any(expected[rare] > 0):
        expected = np.append(expected[~rare], expected[rare].sum())
        observed = np.append(observed[~rare], observed[rare].sum())
    else:
        expected, observed = expected[~rare], observed[~rare]
    assert len(expected) > 15
    expected *= observed.sum() / expected.sum()
    pvalue = stats.chisquare(observed, expected).pvalue
    assert pvalue > 1e-3


def lookup_by_hand(text: list[int], ngram: int, length: int) -> list[int]:
    for n in range(min(ngram, len(text) - 1), 0, -1):
        for end in range(len(text) - 2, n - 2, -1):
            if text[end + 1 - n : end + 1] == text[-n:]:
                followed = text[end + 1 :]
                return [followed[i % len(followed)] for i in range(length)]
    return [text[-1]] * length


@pytest.mark.parametrize("ngram", [1, 3])
def test_lookup_finds_the_latest_of_the_longest_matches(ngram):
    rng = np.random.default_rng(4)
    rows, length = 200, 5
    parts = {"references": 9, "prompts": 8, "tokens": 10}
    arrays = {name: rng.integers(0, 4, (rows, n)).astype(np.int32) for name, n in parts.items()}
    arrays["references"][rng.random((rows, 9)) < 0.3] = -1  # gaps anywhere
    arrays["prompts"][np.arange(8)[None] < rng.integers(0, 8, rows)[:, None]] = -1
    lengths = rng.integers(0, 11, rows).astype(np.int32)
    state = start(None, jnp.zeros(rows), capacity=10, prompts=jnp.asarray(arrays["prompts"]))
    output = Output(jnp.asarray(arrays["tokens"]), jnp.asarray(lengths), state.output.prompts)
    state = dataclasses.replace(state, output=output)
    draft = PromptLookup(ngram, jnp.asarray(arrays["references"]))
    tokens, probabilities, _ = draft.propose(None, state, Settings(EOS), None, length=length)
    assert probabilities is None
    assert tokens.dtype == jnp.int32
    for row in range(rows):
        text = [token for name in ("references", "prompts") for token in arrays[name][row]]
        text = [int(token) for token in text if token >= 0]
        text += arrays["tokens"][row, : lengths[row]].tolist()
        assert tokens[row].tolist() == lookup_by_hand(text, ngram, length), (row, text)


def test_lookup_of_nothing_is_still_a_token():
    state = start(None, jnp.array([3]), capacity=1)
    tokens = PromptLookup().propose(None, state, Settings(EOS), None, length=2).tokens
    np.testing.assert_array_equal(tokens, [[0, 0]])


TINY = {
    "vocab": 40,
    "embed": 16,
    "*.num_layers": 2,
    "*.blocks.*.attention.num_heads": 2,
    "*.blocks.*.attention.head_dim": 8,
    "*.blocks.*.mlp.hidden": 24,
}
T5 = {"decoder.blocks.*.cross_attention.num_heads": 2, "*.position_bias.num_buckets": 8}
SPECS = {
    "decoder": override("llama_nano", TINY),
    "windows": override("llama_nano", TINY | {"decoder.blocks.*.attention.window": 3}),
    "encoder_decoder": override(
        "t5_1_1_nano", TINY | T5 | {"decoder.blocks.*.cross_attention.head_dim": 8}
    ),
}


def drawn_params(model, *, noise: float):
    """The same parameters for every noise, and further away from them the more of it."""
    rng, far = np.random.default_rng(0), np.random.default_rng(1)

    def draw(leaf):
        centre = rng.normal(0, 0.4, leaf.shape)
        return jnp.asarray(centre + noise * far.normal(0, 0.4, leaf.shape), jnp.float32)

    return jax.tree.map(draw, model.shapes())


@pytest.mark.parametrize("topology", SPECS)
@pytest.mark.light("windows")
def test_models_and_their_caches(topology):
    model, room, length = Model(SPECS[topology]), 14, 3
    params, small = drawn_params(model, noise=0.0), drawn_params(model, noise=0.03)
    rng = np.random.default_rng(6)
    texts = jnp.asarray(rng.integers(2, 40, (3, 6)), jnp.int32)
    if topology == "encoder_decoder":
        tokens = texts.at[1, 4:].set(0)
        segments = (tokens > 0).astype(jnp.int32)
        batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": segments}
        first, longest = jnp.zeros(3, jnp.int32), 1
    else:
        lengths = jnp.array([6, 3, 1], jnp.int32)
        batch = {"decoder_input_tokens": texts, "decoder_lengths": lengths}
        first, longest = jnp.take_along_axis(texts, lengths[:, None] - 1, axis=1)[:, 0], 6

    @jax.jit
    def run(params, small, settings):
        def step_fn(params):
            return lambda tokens, cache: model.extend(params, tokens, cache)

        def cache_of(params):
            return model.start(
                params, batch, max_length=longest + room + length, draft_length=length
            )

        state = start(cache_of(params), first, capacity=room)
        draft = ModelDraft(step_fn(small))
        return decode(step_fn(params), state, settings).generated, speculate(
            step_fn(params),
            Speculation.of(state, DraftMemory.of(cache_of(small))),
            settings,
            draft,
            draft_length=length,
        )

    settings = Settings(EOS, limits=jnp.array([14, 9, 12]))
    expected, out = run(params, small, settings)
    assert_same(out.generated, expected)
    assert 0.3 < float(out.acceptance_rate) < 1
    assert int(out.turns.max()) < int(expected.lengths.max())
    expected, out = run(params, params, settings)
    assert_same(out.generated, expected)
    assert float(out.acceptance_rate) == 1


def test_unsupported_requests_are_refused():
    state, draft = started(4), DRAFTS["near"]
    with pytest.raises(InputError, match="draft_length=0"):
        spoken(opening(state, draft), Settings(EOS), draft, draft_length=0)
    with pytest.raises(InputError, match="keys"):
        spoken(opening(state, draft), Settings(EOS, sampling=Sampling(1.0)), draft)
    with pytest.raises(InputError, match="ngram=0"):
        PromptLookup(ngram=0)
    other = ModelDraft(STEPS[11])
    state = started(4, jax.random.split(jax.random.key(0), 4))
    with pytest.raises(InputError, match="5 tokens: the model has 7"):
        spoken(opening(state, other), Settings(EOS, sampling=Sampling(1.0)), other)
