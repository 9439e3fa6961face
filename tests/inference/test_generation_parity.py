"""Every family writes what transformers writes: families × cached, greedy, beam, score.

Models are those of `test_parity.py`, small and random, and answer three ragged prompts of ids, each
under two settings. References are committed; live ones, of fresh seeds, need transformers.
"""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generation_parity import (
    EARLY_STOPPING,
    GENERATIVE,
    LENGTH_PENALTIES,
    MAX_NEW_TOKENS,
    NUM_BEAMS,
    PROMPT_LENGTHS,
    REPETITION_PENALTIES,
)
from parity_cases import CASES, REFERENCED

import t5lite
from t5lite.decoding import Constraints, Settings
from t5lite.inference.batching import compiled
from t5lite.inference.scoring import token_scores
from t5lite.layers import MoeSpec

REFERENCES = pathlib.Path(__file__).parents[1] / "interop" / "references"
COMMITTED = [name for name in REFERENCED if name in GENERATIVE]
ROWS, PROMPT_LENGTHS = len(REPETITION_PENALTIES), np.tile(np.int32(PROMPT_LENGTHS), 2)
LOGITS, SCORE = 5e-5, 2e-4
TIE = 1e-4  # float noise may decide between logits so close together
# Of fresh seeds: how many rows noise may decide, and how much larger it may be.
NUM_TIES, ROOM = 3, 4
DRAFT_LENGTH = 2
installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
live = pytest.mark.skipif(not installed, reason="pip install 't5lite[parity]' for transformers")


def open_roomy(folder):
    """Returns a model whose experts take every token; see `generation_parity.without_drops`."""
    loaded = t5lite.load(folder, dtype="float32", devices=jax.devices()[:1])
    if not loaded.spec.num_expert_layers:
        return loaded
    spec = loaded.spec
    for side in ("encoder", "decoder"):
        stack = getattr(spec, side)
        blocks = tuple(block.replace(mlp=roomy(block.mlp)) for block in stack.blocks)
        spec = spec.replace(**{side: stack.replace(blocks=blocks)})
    model = dataclasses.replace(loaded.model, spec=spec)
    return dataclasses.replace(loaded, engine=dataclasses.replace(loaded.engine, model=model))


def roomy(mlp):
    return mlp.replace(capacity=None) if isinstance(mlp, MoeSpec) else mlp


@functools.cache
def committed(name):
    """Returns a model, and what transformers' writes."""
    folder = REFERENCES / name
    return open_roomy(folder), dict(np.load(folder / "generated.npz"))


def prompts_of(loaded, expected):
    """Returns all rows' prompts as the model reads them, start token included."""
    tokens = np.tile(expected["prompts"].astype(np.int32), (2, 1))
    seeds = {"seeds": np.zeros((ROWS, 2), np.uint32)}
    if loaded.model.topology == "decoder":
        return seeds | {"decoder_input_tokens": tokens, "decoder_lengths": PROMPT_LENGTHS}
    segments = (np.arange(tokens.shape[1]) < PROMPT_LENGTHS[:, None]).astype(np.int32)
    return seeds | {"encoder_input_tokens": tokens, "encoder_segment_ids": segments}


def sizes_of(prompts):
    """Returns the sizes of the state: the last token is never read."""
    width = prompts["decoder_input_tokens"].shape[1] if "decoder_lengths" in prompts else 1
    return {"cache_length": width + MAX_NEW_TOKENS - 1, "capacity": MAX_NEW_TOKENS}


def texts_of(loaded, expected):
    """Returns what the decoder reads and has written in each row, and where the latter begins."""
    prompts = np.tile(expected["prompts"], (2, 1))
    begins = PROMPT_LENGTHS
    if loaded.model.topology == "encoder_decoder":
        prompts, begins = np.full((ROWS, 1), loaded.model.start_id), np.ones(ROWS, np.int32)
    texts = [
        np.concatenate([prompts[row, : begins[row]], expected["tokens"][row]]).astype(np.int32)
        for row in range(ROWS)
    ]
    return texts, begins


def settings_of(expected):
    penalties = Constraints(repetition_penalty=REPETITION_PENALTIES)
    return Settings(eos_ids=(int(expected["eos_id"]),), constraints=penalties)


def inside(expected):
    """Returns `[rows, MAX_NEW_TOKENS]` bool, where greedy answers have a token."""
    return np.arange(MAX_NEW_TOKENS) < expected["lengths"][:, None]


# The columns of the table.


def check_greedy(loaded, expected, fresh=False):
    """Tokens are equal up to the first that noise decided; mostly there is none."""
    params, prompts = loaded.decoding_params, prompts_of(loaded, expected)
    functions = loaded.engine.functions
    state = functions.prefill(params, prompts, **sizes_of(prompts))
    steps = np.int32(MAX_NEW_TOKENS)
    _, (actual, _) = functions.decode(params, state, settings_of(expected), steps)

    tied = inside(expected) & (expected["margins"] < TIE)
    certain = np.cumsum(tied, axis=1) == 0
    np.testing.assert_array_equal(
        np.where(certain, actual.tokens, 0), np.where(certain, expected["tokens"], 0)
    )
    whole = certain.all(axis=1)
    assert whole.sum() >= ROWS - NUM_TIES * fresh
    np.testing.assert_array_equal(np.asarray(actual.lengths)[whole], expected["lengths"][whole])
    sums = expected["log_probabilities"].sum(axis=1, where=inside(expected))
    np.testing.assert_allclose(np.asarray(actual.log_probabilities)[whole], sums[whole], rtol=SCORE)


def check_beam(stopping, loaded, expected, fresh=False):
    """All that is found is equal, and in the same order."""
    prompts = prompts_of(loaded, expected)
    actual = loaded.engine.functions.search(
        loaded.decoding_params,
        prompts,
        settings_of(expected),
        LENGTH_PENALTIES,
        num_beams=NUM_BEAMS,
        num_samples=NUM_BEAMS,
        early_stopping=EARLY_STOPPING[stopping],
        **sizes_of(prompts),
    )
    sums_found = np.asarray(actual.log_probabilities).reshape(ROWS, NUM_BEAMS)
    actual = jax.tree.map(lambda a: np.asarray(a).reshape(ROWS, NUM_BEAMS, *a.shape[1:]), actual)
    tokens, lengths, scores = (
        expected[f"{name}_{stopping}"] for name in ("tokens", "lengths", "scores")
    )
    whole = (actual.tokens == tokens).all(axis=(1, 2)) & (actual.lengths == lengths).all(axis=1)
    assert whole.sum() >= ROWS - NUM_TIES * fresh
    np.testing.assert_allclose(actual.scores[whole], scores[whole], rtol=SCORE)
    own = REPETITION_PENALTIES == 1  # scores that are the model's alone
    sums = actual.scores * actual.lengths ** LENGTH_PENALTIES[:, None]
    np.testing.assert_allclose(sums_found[own], sums[own], rtol=SCORE)


def check_score(loaded, expected, fresh=False):
    """Each token of the greedy answers is as likely as it is to transformers."""
    texts, begins = texts_of(loaded, expected)
    longest = max(map(len, texts))
    rows = np.stack([np.pad(text, (0, longest - len(text))) for text in texts])
    ends = begins + expected["lengths"]
    scored = begins[:, None] - 1 + np.arange(MAX_NEW_TOKENS, dtype=np.int32)
    batch = prompts_of(loaded, expected) | {
        "decoder_input_tokens": rows[:, :-1],
        "decoder_target_tokens": rows[:, 1:],
        "decoder_segment_ids": (np.arange(1, longest) < ends[:, None]).astype(np.int32),
        "scored": scored,
    }
    compute = compiled(token_scores, loaded.model, loaded.layout, loaded.mesh)
    actual, mask = np.asarray(compute(loaded.params, batch)[0]), inside(expected)
    target = expected["log_probabilities"]
    np.testing.assert_allclose(actual[mask], target[mask], rtol=SCORE, atol=SCORE)


def check_cached(loaded, expected, fresh=False):
    """Texts fed a few tokens at a time, behind drafts taken back, against rows of two texts each.

    The full forward pass of those also says what a loop without a cache would have written.
    """
    noise = LOGITS * (ROOM if fresh else 1)
    model, alone = loaded.model, loaded.model.topology == "decoder"
    texts, begins = texts_of(loaded, expected)
    prompts = np.tile(expected["prompts"], (2, 1))
    read = [row[:n] for row, n in zip(prompts, PROMPT_LENGTHS, strict=True)]
    sides = {"decoder": texts} if alone else {"decoder": texts, "encoder": read}
    rooms = {side: getattr(model.spec, side).max_length or 10**6 for side in sides}
    # Learned positions may not reach as far as two texts.
    packed = all(2 * max(map(len, sides[side])) <= rooms[side] for side in sides)
    batch = {}
    for side, own in sides.items():
        batch |= pack(side, own, packed)
    both = np.asarray(forward(model, loaded.params, batch))
    first = [both[row, : len(text)] for row, text in enumerate(texts)]
    second = first
    if packed:
        following = [len(texts[row - 1]) for row in range(ROWS)]
        second = [both[row - 1, following[row] :][: len(text)] for row, text in enumerate(texts)]

    for row in np.flatnonzero(REPETITION_PENALTIES == 1):
        chosen = first[row][begins[row] - 1 : -1].argmax(axis=-1)
        sure = inside(expected)[row] & (expected["margins"][row] >= TIE)
        np.testing.assert_array_equal(chosen[sure], expected["tokens"][row][sure])

    rng, ends = np.random.default_rng(0), np.array([len(text) for text in texts])
    n, room = 1 + DRAFT_LENGTH, int(ends.max()) + DRAFT_LENGTH + 1
    params, at = loaded.decoding_params, begins - 1
    cache = start(model.unstacked, params, prompts_of(loaded, expected), room)
    while np.any(at < ends):
        counts = np.minimum(rng.integers(1, n + 1, ROWS), ends - at)
        fed = rng.integers(3, model.spec.vocab, (ROWS, n)).astype(np.int32)
        for row, text in enumerate(texts):
            fed[row, : counts[row]] = text[at[row] :][: counts[row]]
        actual, cache = extend(model.unstacked, params, fed, cache)
        for row in range(ROWS):
            for target in (first[row], second[row]):
                target = target[at[row] :][: counts[row]]
                np.testing.assert_allclose(actual[row, : counts[row]], target, atol=noise, rtol=0)
        at = at + counts
        cache = cache.rewind(jnp.asarray(at, jnp.int32))


def pack(side, texts, packed):
    """Returns a batch whose rows are a text and, if packed, the next one."""
    nothing = texts[0][:0]
    pairs = [
        (text, texts[(row + 1) % ROWS] if packed else nothing) for row, text in enumerate(texts)
    ]
    longest = max(len(a) + len(b) for a, b in pairs)
    batch = {}
    for name, of in (
        ("input_tokens", lambda text, number: text),
        ("segment_ids", lambda text, number: np.full(len(text), number)),
        ("positions", lambda text, number: np.arange(len(text))),
    ):
        rows = [np.concatenate([of(a, 1), of(b, 2)]) for a, b in pairs]
        rows = [np.pad(row, (0, longest - len(row))) for row in rows]
        batch[f"{side}_{name}"] = np.stack(rows).astype(np.int32)
    return batch


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
    return model.logits(params, model.hidden(params, batch)[0])


@functools.partial(jax.jit, static_argnums=(0, 3))
def start(model, params, batch, max_length):
    read = {name: array for name, array in batch.items() if name != "seeds"}
    return model.start(params, read, max_length=max_length, draft_length=DRAFT_LENGTH)


@functools.partial(jax.jit, static_argnums=0)
def extend(model, params, tokens, cache):
    return model.extend(params, tokens, cache)


COLUMNS = {
    "cached": check_cached,
    "greedy": check_greedy,
    **{f"beam_{stopping}": functools.partial(check_beam, stopping) for stopping in EARLY_STOPPING},
    "score": check_score,
}
HEAVY = ("beam_at_once",)  # as heavy as the others together, and much like one of them
TABLE = [
    pytest.param(name, column, marks=[pytest.mark.slow] if column in HEAVY else [])
    for name in COMMITTED
    for column in COLUMNS
]


@pytest.mark.parametrize(("name", "column"), TABLE)
@pytest.mark.light("t5_1_1", "mistral")
def test_a_committed_reference(name, column):
    COLUMNS[column](*committed(name))


@live
@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATIVE)
def test_live(name, tmp_path):
    from generation_parity import generated, without_drops
    from parity import build

    config = CASES[name]
    seed = int(np.random.default_rng().integers(2, 1 << 30))  # fresh ones, told where it fails
    print(f"seed {seed}")
    theirs = build(config | without_drops(config), seed)
    theirs.save_pretrained(tmp_path)
    loaded, expected = open_roomy(tmp_path), generated(theirs, seed)
    for check in COLUMNS.values():
        check(loaded, expected, fresh=True)
