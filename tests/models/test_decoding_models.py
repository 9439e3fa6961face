"""Caches of whole models: how much they keep, what can be taken back, what rows share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import logits, random_params, tiny
from varied_models import VARIED

from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.inference import Engine, Loaded
from t5lite.interop import Description
from t5lite.models import Model, override
from t5lite.parallel import Layout, make_mesh

WRITERS = {name: spec for name, spec in VARIED.items() if spec.decoder is not None}
WINDOW, DRAFT_LENGTH, ROWS = 3, 2, 3
WINDOWED = override(
    "llama_nano",
    {
        "vocab": 50,
        "embed": 16,
        "decoder.num_layers": 2,
        "decoder.blocks.*.attention.num_heads": 2,
        "decoder.blocks.*.attention.num_kv_heads": 1,
        "decoder.blocks.*.attention.head_dim": 8,
        "decoder.blocks.*.attention.window": WINDOW,
        "decoder.blocks.*.mlp.hidden": 24,
    },
)


def prompts_of(tokens, lengths):
    return {"decoder_input_tokens": tokens, "decoder_lengths": jnp.asarray(lengths, jnp.int32)}


def test_windows_keep_what_they_see_and_what_drafts_may_take():
    model, length = Model(WINDOWED), 40
    tokens = jax.ShapeDtypeStruct((ROWS, 7), jnp.int32)
    cache = jax.eval_shape(
        lambda params, tokens: model.start(
            params, prompts_of(tokens, [1] * ROWS), max_length=length, draft_length=DRAFT_LENGTH
        ),
        model.shapes(),
        tokens,
    )
    size = WINDOW + 1 + DRAFT_LENGTH
    assert {leaf.shape for leaf in jax.tree.leaves(cache.own)} == {(2, ROWS, 1, size, 8)}


@pytest.mark.parametrize("name", ["t5_1_1_nano", "llama_nano"])
def test_reordered_and_inserted_rows_are_rows_and_never_layers(name):
    """There are as many rows as layers in the stack."""
    spec = WINDOWED if name == "llama_nano" else tiny(name)
    model, params, rows = Model(spec), random_params(spec), spec.decoder.num_layers
    rng = np.random.default_rng(2)
    batch = prompts_of(rng.integers(1, 50, (rows, 4)).astype(np.int32), [4] * rows)
    if spec.encoder is not None:
        batch = {"encoder_input_tokens": batch["decoder_input_tokens"]}
    cache = model.start(params, batch, max_length=8)
    tokens = rng.integers(1, 50, (rows, 1)).astype(np.int32)
    order = jnp.arange(rows)[::-1].astype(jnp.int32)
    expected = model.extend(params, tokens, cache)[0]
    got = model.extend(params, tokens[::-1], cache.insert(order, cache))[0]
    np.testing.assert_allclose(got[::-1], expected, atol=1e-5)
    if spec.encoder is None:  # beams keep the encoder's row of their input
        got = model.extend(params, tokens[::-1], cache.reorder(order))[0]
        np.testing.assert_allclose(got[::-1], expected, atol=1e-5)


@pytest.mark.parametrize("prompt_lengths", [(9, 2, 5), (1, 1, 1)], ids=["ragged", "one_token"])
@pytest.mark.light("one_token")
def test_rewound_tokens_leave_no_trace(prompt_lengths):
    """After prompts longer than the window, rows keep different parts of each draft."""
    model, params = Model(WINDOWED), random_params(WINDOWED)
    rng, length = np.random.default_rng(1), 24
    tokens = rng.integers(1, 50, (ROWS, length)).astype(np.int32)
    whole = np.asarray(logits(WINDOWED, params, {"decoder_input_tokens": jnp.asarray(tokens)}))

    at, longest = np.array(prompt_lengths) - 1, max(prompt_lengths)
    start = functools.partial(
        model.start, max_length=length + DRAFT_LENGTH, draft_length=DRAFT_LENGTH
    )
    cache = jax.jit(start)(params, prompts_of(jnp.asarray(tokens[:, :longest]), prompt_lengths))
    extend = jax.jit(model.extend)
    while at.min() < length - DRAFT_LENGTH:
        n = 1 + DRAFT_LENGTH
        accepted = np.minimum(rng.integers(1, n + 1, ROWS), length - DRAFT_LENGTH - at).clip(0)
        fed = rng.integers(1, 50, (ROWS, n)).astype(np.int32)
        for row in range(ROWS):
            fed[row, : accepted[row]] = tokens[row, at[row] :][: accepted[row]]
        actual, cache = extend(params, fed, cache)
        for row in range(ROWS):
            expected = whole[row, at[row] :][: accepted[row]]
            np.testing.assert_allclose(actual[row, : accepted[row]], expected, atol=5e-5)
        at = at + accepted
        cache = cache.rewind(jnp.asarray(at, jnp.int32))
    with pytest.raises(InputError, match=r"a step of 4 tokens: .* start\(..., draft_length=3\)"):
        model.extend(params, jnp.ones((ROWS, 4), jnp.int32), cache)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.light("shared_on_both_sides")
def test_unstacked_it_is_the_same_model(name):
    spec = WRITERS[name]
    model, params = Model(spec), random_params(spec)
    apart = model.unstack(params)
    assert jax.tree.map(jnp.shape, apart) == jax.tree.map(jnp.shape, model.unstacked.shapes())
    batch = {
        f"{side}_input_tokens": jnp.asarray(
            np.random.default_rng(0).integers(1, spec.vocab, (2, 5)), jnp.int32
        )
        for side in ("encoder", "decoder")
    }
    if spec.num_token_types is not None:
        batch["token_types"] = jnp.zeros((2, 5), jnp.int32)
    actual, _ = jax.jit(model.unstacked.hidden)(apart, batch)
    np.testing.assert_allclose(actual, jax.jit(model.hidden)(params, batch)[0], atol=1e-5)


@pytest.mark.slow
def test_hypotheses_share_their_input():
    """Repeated and reordered rows read the encoder's one row, as if each row had its own."""
    spec = override(
        "t5_1_1_nano", {"vocab": 50, "embed": 16, "*.num_layers": 1, "*.blocks.*.mlp.hidden": 8}
    )
    model, params = Model(spec), random_params(spec)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.integers(1, 50, (2, 4)), jnp.int32)
    tokens = jnp.asarray(rng.integers(1, 50, (6, 2)), jnp.int32)

    def begin(inputs):
        return model.start(params, {"encoder_input_tokens": inputs}, max_length=4)

    shared, alone = begin(inputs).repeat(3), begin(jnp.repeat(inputs, 3, axis=0))
    assert jax.tree.leaves(shared.cross)[0].shape[1] == 2
    extend = jax.jit(model.extend)
    order = jnp.array([2, 0, 0, 4, 5, 3])  # within each input

    def two_steps(cache):
        first, cache = extend(params, tokens, cache)
        return first, extend(params, tokens[:, :1], cache.reorder(order))[0]

    for actual, expected in zip(two_steps(shared), two_steps(alone), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


OF_BYTES = {
    "vocab": 272,
    "embed": 16,
    "*.num_layers": 2,
    "*.blocks.*.attention.num_heads": 4,
    "*.blocks.*.attention.head_dim": 4,
    "*.blocks.*.mlp.hidden": 24,
}
CROSS = {
    "decoder.blocks.*.cross_attention.num_heads": 4,
    "decoder.blocks.*.cross_attention.head_dim": 4,
}
SPREAD = {
    "decoder": override("gpt_nano", OF_BYTES | {"decoder.position_embedding.max_length": 48}),
    "encoder_decoder": override("t5_1_1_nano", OF_BYTES | CROSS),
}
WAYS = {
    "greedy": {},
    "beam": {"num_beams": 3, "num_samples": 2},
    "drawn": {"temperature": 1.0, "top_p": 0.9, "num_samples": 2, "seed": 3},
    "drafted": {"draft": "prompt", "draft_length": 3},
}
LIGHT = {("encoder_decoder", "drafted"), ("decoder", "drawn")}


@pytest.mark.parametrize(
    ("topology", "variant"),
    [
        pytest.param(
            topology, variant, marks=[] if (topology, variant) in LIGHT else [pytest.mark.slow]
        )
        for topology in SPREAD
        for variant in WAYS
    ],
)
@pytest.mark.slow
def test_eight_devices_generate_the_text_of_one(topology, variant):
    model, rng = Model(SPREAD[topology]), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32),
        model.shapes(),
    )

    def answers(layout, devices=None):
        mesh = make_mesh(layout, devices)
        engine = Engine(model, Bytes(num_sentinels=5), layout, mesh)
        loaded = Loaded(engine, params, Description(model.spec))
        texts = ["a cat", "sat", "on the mat, a hat, a cat", "o"]
        return loaded.answers(texts, max_new_tokens=12, **WAYS[variant])

    spread = answers(Layout({"data": 2, "fsdp": 2, "tensor": 2}))
    for actual, expected in zip(spread, answers(Layout(), jax.devices()[:1]), strict=True):
        for one, second in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(one.tokens, second.tokens)
            assert one.score == pytest.approx(second.score, rel=1e-4)
