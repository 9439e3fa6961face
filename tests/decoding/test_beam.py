"""Beam search finds what an exhaustive search finds, and what transformers' finds."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5lite
from t5lite.decoding import Constraints, Sampling, Settings, generate, stops_of, token_table
from t5lite.decoding.beam import CHUNK, beam_search, top_k
from t5lite.errors import InputError

EOS, VOCAB, WIDTH = 1, 45, 6
USUAL = np.array([EOS, 2, 3, 4])  # all others are all but impossible
rng = np.random.default_rng(3)
EMBEDDING = rng.normal(0, 1.5, (VOCAB, WIDTH)).astype(np.float32)
MIX = rng.normal(0, 0.7, (WIDTH, WIDTH)).astype(np.float32)
OUT = rng.normal(0, 1, (WIDTH, VOCAB)).astype(np.float32)
RARE = np.where(np.isin(np.arange(VOCAB), USUAL), 0, -60).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyCache:
    """A recurrent state, which all tokens read so far have shaped."""

    state: jax.Array

    @property
    def lengths(self):
        return jnp.zeros(len(self.state), jnp.int32)

    def rewind(self, lengths):
        return self

    def reorder(self, rows):
        return ToyCache(self.state[rows])

    def repeat(self, n):
        return ToyCache(jnp.repeat(self.state, n, axis=0))


def step(tokens, cache):
    state = jnp.tanh(cache.state @ MIX + jnp.asarray(EMBEDDING)[tokens[:, 0]])
    return (state @ OUT + jnp.asarray(RARE)[None])[:, None], ToyCache(state)


def empty_cache(batch):
    return ToyCache(jnp.zeros((batch, WIDTH), jnp.float32))


@functools.partial(
    jax.jit, static_argnames=("num_beams", "capacity", "early_stopping", "num_samples", "step")
)
def search(first, settings, *, step=step, **options):
    return beam_search(step, empty_cache(len(first)), first, settings, **options)


def every_answer(first, room, penalty):
    """Returns all answers of usual tokens and their scores, best first."""
    actual = []
    for length in range(1, room + 1):
        free = USUAL if length == room else [EOS]
        for tokens in itertools.product(*[USUAL[1:]] * (length - 1), free):
            state, total, last = np.zeros(WIDTH), 0.0, first
            for token in tokens:
                state = np.tanh(state @ MIX + EMBEDDING[last])
                logits = state @ OUT + RARE
                total += logits[token] - np.log(np.exp(logits).sum())
                last = token
            actual.append((total / length**penalty, total, tokens))
    return sorted(actual, reverse=True)


@pytest.mark.parametrize("early_stopping", [None, True])
def test_as_many_beams_as_paths_find_the_best(early_stopping):
    """With room for 4 tokens there are 27 ways to reach the last: 45 beams miss none."""
    first, penalties = jnp.array([2, 3, 4, 2]), [0.0, 1.0, 2.0, -1.0]
    out = search(
        first,
        Settings(eos_ids=(EOS,)),
        num_beams=VOCAB,
        capacity=4,
        num_samples=3,
        length_penalty=jnp.array(penalties),
        early_stopping=early_stopping,
    )
    for row, (start, penalty) in enumerate(zip(first, penalties, strict=True)):
        best = every_answer(int(start), 4, penalty)[:3]
        for index, (score, total, tokens) in enumerate(best, 3 * row):
            assert out.lengths[index] == len(tokens)
            np.testing.assert_array_equal(
                out.tokens[index], [*tokens, *[0] * (4 - len(tokens))], err_msg=f"{row} {index}"
            )
            np.testing.assert_allclose(out.scores[index], score, rtol=1e-4)
            np.testing.assert_allclose(out.log_probabilities[index], total, rtol=1e-4)
    assert out.tokens.dtype == out.lengths.dtype == jnp.int32
    # The penalty matters: the best answers are short and long.
    assert len({int(length) for length in out.lengths[:6]}) > 1


@pytest.mark.parametrize("early_stopping", [True, False])
def test_one_beam_is_greedy(early_stopping):
    first = jnp.arange(2, 10)
    settings = Settings(eos_ids=(EOS,), limits=jnp.array([9, 9, 9, 9, 2, 9, 9, 1]), pad_id=7)
    out = search(first, settings, num_beams=1, capacity=9, early_stopping=early_stopping)
    greedy = generate(step, empty_cache(8), first, settings, capacity=9)
    for name in ("tokens", "lengths", "log_probabilities"):
        ours, theirs = getattr(out, name), getattr(greedy, name)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name)
    assert len(set(np.asarray(out.lengths).tolist())) > 2


@pytest.mark.parametrize("penalty", [2.0, -1.0])
def test_who_waits_longer_finds_no_worse(penalty):
    first, settings = jnp.arange(2, 34), Settings(eos_ids=(EOS,))
    scores = [
        search(
            first,
            settings,
            num_beams=2,
            num_samples=2,
            capacity=10,
            length_penalty=penalty,
            early_stopping=early_stopping,
        ).scores
        for early_stopping in (True, False, None)
    ]
    assert (scores[1] >= scores[0]).all()
    assert (scores[2] >= scores[1]).all()
    assert (scores[1] > scores[0]).any()
    assert (scores[2] > scores[1]).any() == (penalty > 0)


def test_rows_with_settings_of_their_own_equal_each_row_alone():
    first, limits = jnp.array([2, 3, 4, 5]), jnp.array([12, 3, 7, 1])
    penalties = jnp.array([1.0, 0.0, -1.0, 2.0])
    options = {"num_beams": 3, "capacity": 12, "num_samples": 2}
    settings = Settings(
        eos_ids=(EOS,),
        limits=limits,
        constraints=Constraints(
            min_new_tokens=jnp.array([6, 0, 3, 0]),
            banned=jnp.zeros((4, VOCAB), bool).at[1, 2].set(True),
        ),
    )
    together = search(first, settings, length_penalty=penalties, **options)
    for row in range(4):
        rows = slice(row, row + 1)
        own = Settings(
            eos_ids=(EOS,),
            limits=limits[rows],
            constraints=jax.tree.map(lambda array, rows=rows: array[rows], settings.constraints),
        )
        alone = search(first[rows], own, length_penalty=penalties[rows], **options)
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[2 * row : 2 * row + 2], theirs, rtol=1e-5)
    lengths = np.asarray(together.lengths).reshape(4, 2)
    assert (lengths <= limits[:, None]).all()
    assert lengths[0].min() > 6
    assert not (np.asarray(together.tokens[2:4]) == 2).any()


def test_a_stop_sequence_ends_an_answer_as_eos_does():
    first, options = jnp.arange(2, 8), {"num_beams": 4, "capacity": 8, "num_samples": 4}
    free = search(first, Settings(eos_ids=(EOS,)), **options)
    stop = tuple(free.tokens[1, :2].tolist())
    constraints = Constraints(
        stops=stops_of(token_table([bytes([i]) for i in range(VOCAB)]), bytes(stop))
    )
    settings = Settings(eos_ids=(EOS,), constraints=constraints)
    out = search(first, settings, **options)
    stopped = 0
    for tokens, length in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True):
        pairs = list(itertools.pairwise(tokens[:length]))
        assert stop not in pairs[:-1]
        assert not any(tokens[length:])
        assert length == 8 or tokens[length - 1] == EOS or pairs[-1] == stop
        stopped += length < 8 and pairs[-1:] == [stop]
    assert stopped


def test_ranks_by_the_rules_and_reports_the_model_s_probability():
    """Few answers are possible, fewer than asked for."""
    choices = jnp.array([[[2, 3, EOS], [4, EOS, -1], [30, 31, EOS]]])
    settings = Settings(
        eos_ids=(EOS,),
        constraints=Constraints(choices=choices),
        logits_fn=lambda logits, generated: logits.at[:, 4].add(-50.0),
    )
    out = search(jnp.array([2]), settings, num_beams=5, num_samples=4, capacity=4)
    np.testing.assert_array_equal(out.tokens[:2], [[2, 3, EOS, 0], [4, EOS, 0, 0]])
    np.testing.assert_array_equal(out.lengths, [3, 2, 3, 0])
    np.testing.assert_array_equal(out.tokens[2:], [[30, 31, EOS, 0], [0, 0, 0, 0]])
    totals = {tokens: total for _, total, tokens in every_answer(2, 3, 1.0)}
    np.testing.assert_allclose(out.log_probabilities[1], totals[4, EOS], rtol=1e-4)
    np.testing.assert_allclose(out.scores[1], (totals[4, EOS] - 50) / 2, rtol=1e-4)
    assert out.scores[3] == -jnp.inf


def test_a_vocabulary_no_wider_than_the_beam():
    def narrow(tokens, cache):
        logits, cache = step(tokens % 4, cache)
        return logits[..., :4], cache

    out = search(jnp.array([2, 3]), Settings(eos_ids=(EOS,)), step=narrow, num_beams=4, capacity=5)
    assert np.isfinite(out.scores).all()
    assert (np.asarray(out.tokens) < 4).all()


def test_other_numbers_compile_nothing():
    traces = []

    @jax.jit
    def run(first, settings, penalty):
        traces.append(1)
        cache = empty_cache(2)
        return beam_search(
            step, cache, first, settings, num_beams=2, capacity=4, length_penalty=penalty
        )

    for limit, penalty in ((2, 1.0), (3, 0.5)):
        run(jnp.array([2, 3]), Settings(eos_ids=(EOS,), limits=limit), penalty)
    assert len(traces) == 1


@pytest.mark.parametrize("n", [40, 3 * CHUNK, 20 * CHUNK, 20 * CHUNK + 5])
def test_top_k_is_that_of_jax(n):
    scores = np.random.default_rng(n).integers(0, 9, (3, n)).astype(np.float32)  # many ties
    scores[1, 3:] = -np.inf
    for ours, theirs in zip(top_k(scores, 6), jax.lax.top_k(scores, 6), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"num_beams": 2, "num_samples": 3}, "num_samples=3"),
        ({"num_beams": 2, "num_samples": 0}, "num_samples=0"),
        ({"num_beams": 2, "capacity": 0}, "capacity=0"),
        ({"num_beams": VOCAB + 1}, f"num_beams=46 .* {VOCAB} tokens"),
        ({"num_beams": 2, "early_stopping": "never"}, "early_stopping='never'"),
        ({"num_beams": 2, "sampling": Sampling(temperature=1.0)}, "draws nothing"),
    ],
)
def test_refused(options, message):
    settings = Settings(eos_ids=(EOS,), sampling=options.pop("sampling", Sampling()))
    with pytest.raises(InputError, match=message):
        beam_search(step, empty_cache(1), jnp.array([2]), settings, **{"capacity": 3, **options})


PAD, MODEL_VOCAB, NEW = 0, 61, 12
SMALL = {"vocab_size": MODEL_VOCAB, "pad_token_id": PAD, "bos_token_id": 60, "eos_token_id": 60}
MODELS = {
    "GPT2LMHeadModel": {"n_positions": 29, "n_embd": 24, "n_layer": 2, "n_head": 3},
    "T5ForConditionalGeneration": {
        "d_model": 24,
        "d_kv": 7,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 3,
        "decoder_start_token_id": PAD,
    },
}


@pytest.fixture(scope="module", params=MODELS)
def opened(request, tmp_path_factory):
    """A random model of transformers', as they have it and as we do."""
    reason = "pip install 't5lite[parity]' for transformers"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    created = getattr(transformers, request.param)
    torch.manual_seed(1)
    theirs = created(created.config_class(**SMALL, **MODELS[request.param])).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():  # as they come, they write one token for ever
            if tensor.ndim > 1:
                tensor.copy_(3 * torch.randn(tensor.shape) / tensor.shape[-1] ** 0.5)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, t5lite.load(folder, dtype="float32", devices=jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_tokens_are_those_of_transformers(opened, early_stopping):
    import torch

    theirs, loaded = opened
    model, params = loaded.model, loaded.params
    rng = np.random.default_rng(7)
    lengths = np.array([9, 4, 6, 1, 9])
    prompts = [rng.integers(2, MODEL_VOCAB, n) for n in lengths]
    decoder = model.topology == "decoder"
    # transformers continues what is padded on the left; we, and encoders, read from the left.
    right = np.stack([np.pad(item, (0, 9 - len(item))) for item in prompts])
    left = np.stack([np.pad(item, (9 - len(item), 0)) for item in prompts])
    ids = left if decoder else right
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).astype(np.int64)}
    inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
    right = jnp.asarray(right, jnp.int32)
    if decoder:
        batch = {"decoder_input_tokens": right, "decoder_lengths": jnp.asarray(lengths, jnp.int32)}
        first = jnp.asarray([item[-1] for item in prompts], jnp.int32)
    else:
        batch = {
            "encoder_input_tokens": right,
            "encoder_segment_ids": (right > 0).astype(jnp.int32),
        }
        first = jnp.full(len(prompts), model.start_id, jnp.int32)

    @functools.partial(jax.jit, static_argnames="eos_id")
    def ours(params, penalty, eos_id):
        return beam_search(
            lambda tokens, cache: model.extend(params, tokens, cache),
            model.start(params, batch, max_length=9 + NEW),
            first,
            Settings(eos_ids=(eos_id,), pad_id=PAD),
            num_beams=4,
            num_samples=3,
            capacity=NEW,
            length_penalty=penalty,
            early_stopping=None if early_stopping == "never" else early_stopping,
        )

    # Tokens that are written often end an answer, so that many end, and not all at once.
    free = np.asarray(ours(params, 1.0, eos_id=-1).tokens)
    often = np.argsort(-np.bincount(free.ravel()))
    lengths_seen = set()
    for eos, penalty, samples in itertools.product(often[1:4:2], (0.0, 1.0, 2.0, -1.0), (1, 3)):
        output = theirs.generate(
            **inputs,
            num_beams=4,
            num_return_sequences=samples,
            length_penalty=penalty,
            early_stopping=early_stopping,
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=int(eos),
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
        )
        actual = ours(params, penalty, eos_id=int(eos))
        best = [array.reshape(-1, 3, *array.shape[1:])[:, :samples] for array in actual]
        tokens, lengths, _, scores = (array.reshape(-1, *array.shape[2:]) for array in best)
        expected = output.sequences.numpy()[:, 9 if decoder else 1 :]
        for row, length in enumerate(lengths):
            # They pad with the EOS where `pad_token_id` is 0.
            assert length == min([*np.flatnonzero(expected[row] == eos) + 1, NEW])
            np.testing.assert_array_equal(tokens[row, :length], expected[row, :length])
        np.testing.assert_allclose(scores, output.sequences_scores.numpy(), rtol=1e-4)
        lengths_seen |= set(lengths.tolist())
    assert NEW in lengths_seen
    assert len(lengths_seen) > 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_end_an_input_s_search_as_nan(bad):
    def broken(tokens, cache):
        logits, cache = step(tokens, cache)
        return jnp.where(tokens[:, :, None] == 40, bad, logits), cache

    settings = Settings(
        eos_ids=(EOS,), constraints=Constraints(forced=jnp.array([[3, -1], [40, -1], [4, -1]]))
    )
    out = search(jnp.array([2, 2, 2]), settings, step=broken, num_beams=3, capacity=4)
    np.testing.assert_array_equal(np.isnan(out.log_probabilities), [False, True, False])


def test_more_ends_leave_as_many_beams_to_run_on():
    """With every usual token but one an EOS, the other one runs on to the limit."""
    first, ends = jnp.array([2, 3]), (EOS, *USUAL[2:])
    one = search(first, Settings(eos_ids=ends), num_beams=4, capacity=5, num_samples=4)
    padded = search(
        first,
        Settings(eos_ids=jnp.int32([[*ends, -1, -1]])),
        num_beams=4,
        capacity=5,
        num_samples=4,
    )
    jax.tree.map(np.testing.assert_array_equal, one, padded)
    assert (np.asarray(one.lengths) > 0).all()
