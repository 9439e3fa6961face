"""What an encoder alone and a decoder alone must satisfy, whatever their positions and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import derivative, extend, logits, random_params

from t5lite.errors import InputError
from t5lite.layers import (
    AlibiSpec,
    LayerNormSpec,
    RelativeBiasSpec,
    SinusoidalPositionsSpec,
)
from t5lite.models import ComputeSpec, Model, forward_flops, override, preset

LENGTH, VOCAB = 12, 50


def tiny(name, stack, **changes):
    """A preset with three layers of width 16."""
    small = {
        "vocab": VOCAB,
        "embed": 16,
        "*.num_layers": 3,
        "*.dropout_rate": 0.0,
        "*.blocks.*.attention.num_heads": 4,
        "*.blocks.*.attention.head_dim": 6,
        "*.blocks.*.mlp.hidden": 24,
    }
    return override(name, small | {f"{stack}.{path}": value for path, value in changes.items()})


ENCODERS = {
    "bert": tiny("bert_nano", "encoder"),
    "alibi": tiny("bert_nano", "encoder", position_embedding=None, position_bias=AlibiSpec()),
    "sinusoidal_and_pre_norm": tiny(
        "bert_nano",
        "encoder",
        position_embedding=SinusoidalPositionsSpec(),
        final_norm=LayerNormSpec(),
        embedding_norm=None,
    ),
}
ENCODERS["sinusoidal_and_pre_norm"] = override(
    ENCODERS["sinusoidal_and_pre_norm"], {"encoder.blocks.*.norm_placement": "before"}
)
DECODERS = {
    "gpt2": tiny("gpt_nano", "decoder"),
    "llama": tiny("llama_nano", "decoder"),
    "alibi": tiny("gpt_nano", "decoder", position_embedding=None, position_bias=AlibiSpec()),
    "relative_bias": tiny(
        "gpt_nano",
        "decoder",
        position_embedding=None,
        position_bias=RelativeBiasSpec(8, 16, per_layer=True),
    ),
}
every_encoder = pytest.mark.parametrize("spec", ENCODERS.values(), ids=ENCODERS)
every_decoder = pytest.mark.parametrize("spec", DECODERS.values(), ids=DECODERS)


def tokens(seed=0, *, rows=2, length=LENGTH):
    """Ids from 3 on."""
    drawn = np.random.default_rng(seed).integers(3, VOCAB, (rows, length))
    return jnp.asarray(drawn, jnp.int32)


def read(rows):
    """Returns the decoder's inputs: rows shifted to the right, after the start token."""
    return jnp.pad(rows[:, :-1], ((0, 0), (1, 0)))


def moved_by(spec, batch, name, position):
    """Whether each hidden state `[length]` of row 1 moves with the embedding of one of its tokens.

    The derivative in a random direction: 0 where nothing flows, and else practically never.
    """
    params, model = random_params(spec), Model(spec)
    batch = batch | {name: batch[name].at[1, position].set(2)}  # which stands nowhere else
    table = params["token_embedding"]["embedding"]
    direction = jnp.zeros_like(table).at[2].set(1 + jnp.arange(16, dtype=jnp.float32))

    def outputs(table):
        return model.hidden(params | {"token_embedding": {"embedding": table}}, batch)[0]

    moved = derivative(outputs, table, direction)
    assert not np.any(moved[0])  # another row
    return np.any(moved[1], axis=-1).tolist()


def pack(rows):
    """Two rows in one, as packing has them."""
    _, length = rows.shape
    ids = jnp.repeat(jnp.arange(1, 3, dtype=jnp.int32), length)[None]
    return rows.reshape(1, -1), ids


# Encoders.


@every_encoder
def test_a_token_of_an_encoder_sees_all_others_but_no_padding(spec):
    batch = {"encoder_input_tokens": tokens()}
    assert moved_by(spec, batch, "encoder_input_tokens", 7) == [True] * LENGTH
    # Packing puts padding, and each further text, into another segment.
    segments = jnp.ones((2, LENGTH), jnp.int32).at[1, 7:].set(0)
    moved = moved_by(spec, batch | {"encoder_segment_ids": segments}, "encoder_input_tokens", 7)
    assert not any(moved[:7])


@every_encoder
def test_padding_changes_nothing_of_an_encoder(spec):
    params, rows = random_params(spec), tokens()
    padded = jnp.pad(rows, ((0, 0), (0, 5)))
    expected = logits(spec, params, {"encoder_input_tokens": rows})
    segments = {"encoder_segment_ids": (padded > 0).astype(jnp.int32)}
    result = logits(spec, params, {"encoder_input_tokens": padded, **segments})
    np.testing.assert_allclose(result[:, :LENGTH], expected, atol=2e-5)


@every_encoder
def test_packed_texts_of_an_encoder_are_as_if_alone(spec):
    params, rows = random_params(spec), tokens()
    alone = logits(spec, params, {"encoder_input_tokens": rows})
    together, segments = pack(rows)
    packed = {
        "encoder_input_tokens": together,
        "encoder_segment_ids": segments,
    }
    result = logits(spec, params, packed).reshape(alone.shape)
    np.testing.assert_allclose(result, alone, atol=2e-5)


def test_token_types_differ_and_are_0_by_default():
    spec, rows = ENCODERS["bert"], tokens()
    params = random_params(spec)

    def with_types(value):
        batch = {"encoder_input_tokens": rows, "token_types": jnp.full_like(rows, value)}
        return logits(spec, params, batch)

    plain = logits(spec, params, {"encoder_input_tokens": rows})
    np.testing.assert_array_equal(with_types(0), plain)
    assert not np.allclose(with_types(1), plain, atol=1e-2)


def test_an_encoder_cannot_generate():
    model = Model(ENCODERS["bert"])
    with pytest.raises(InputError, match="choose a model with a decoder"):
        model.start(model.shapes(), {"encoder_input_tokens": tokens()}, max_length=3)


# Decoders.


@every_decoder
def test_a_token_of_a_decoder_sees_only_those_before_it(spec):
    batch = {"decoder_input_tokens": read(tokens())}
    moved = moved_by(spec, batch, "decoder_input_tokens", 5)
    assert moved == [position >= 5 for position in range(LENGTH)]


@every_decoder
@pytest.mark.light("llama")
def test_tokens_of_a_prefix_see_each_other_and_nothing_after_it(spec):
    inside = jnp.broadcast_to(jnp.arange(LENGTH)[None] < 6, (2, LENGTH)).astype(jnp.int32)
    batch = {"decoder_input_tokens": read(tokens()), "decoder_causal_attention": inside}
    assert moved_by(spec, batch, "decoder_input_tokens", 5) == [True] * LENGTH
    moved = moved_by(spec, batch, "decoder_input_tokens", 7)
    assert moved == [position >= 7 for position in range(LENGTH)]


@every_decoder
@pytest.mark.light("llama", "relative_bias")
def test_packed_texts_of_a_decoder_are_as_if_alone(spec):
    params, rows = random_params(spec), read(tokens())
    inside = jnp.zeros_like(rows).at[:, :4].set(1)
    together, segments = pack(rows)
    arrays = {"decoder_segment_ids": segments}
    for prefix in ({}, {"decoder_causal_attention": inside}):
        alone = logits(spec, params, {"decoder_input_tokens": rows} | prefix)
        packed = {name: item.reshape(1, -1) for name, item in prefix.items()} | arrays
        result = logits(spec, params, packed | {"decoder_input_tokens": together})
        np.testing.assert_allclose(result.reshape(alone.shape), alone, atol=2e-5)


@every_decoder
@pytest.mark.parametrize("prefix", [False, True], ids=["causal", "prefix"])
@pytest.mark.light("llama", "relative_bias")
def test_cached_decoding_is_the_full_forward_pass(spec, prefix):
    """Prompts of 6 and 3 tokens after the start, then 5 more each, in steps of 3, 1 and 1."""
    params, model, rows = random_params(spec), Model(spec), tokens(rows=2)
    lengths = jnp.array([7, 4], jnp.int32)
    places = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32)[None], rows.shape)
    inside = (places < lengths[:, None]).astype(jnp.int32)
    read_tokens = read(rows)
    seen = {"decoder_causal_attention": inside} if prefix else {}
    expected = logits(spec, params, {"decoder_input_tokens": read_tokens} | seen)

    prompts = {
        "decoder_input_tokens": jnp.where(inside[:, :7] > 0, read_tokens[:, :7], 0),
        "decoder_lengths": lengths,
        **{name: item[:, :7] for name, item in seen.items()},
    }
    start = jax.jit(lambda params, batch: model.start(params, batch, max_length=LENGTH))
    cache, at = start(params, prompts), lengths - 1
    assert cache.lengths.tolist() == at.tolist()
    for n in (3, 1, 1):
        ahead = at[:, None] + jnp.arange(n, dtype=jnp.int32)[None]
        result, cache = extend(model, params, jnp.take_along_axis(read_tokens, ahead, 1), cache)
        reference = jnp.take_along_axis(expected, ahead[..., None], 1)
        np.testing.assert_allclose(result, reference, atol=5e-5)
        at = at + n


def test_prompts_and_cache_must_fit():
    model = Model(DECODERS["gpt2"])
    batch = {"decoder_input_tokens": tokens(), "decoder_lengths": jnp.full(2, 3, jnp.int32)}
    params = random_params(DECODERS["gpt2"])
    with pytest.raises(InputError, match="max_length = 5: prompts are up to 12"):
        model.start(params, batch, max_length=5)
    with pytest.raises(InputError, match="learned positions for 256"):
        model.start(params, batch, max_length=257)


# Both.

BOTH = {"encoder": ENCODERS["bert"], "decoder": DECODERS["llama"]}


@pytest.mark.parametrize("side", BOTH)
@pytest.mark.parametrize(("remat", "scan"), [("full", True), ("none", False)])
@pytest.mark.light("full-True-decoder")
def test_remat_and_scan_change_neither_value_nor_gradient(side, remat, scan):
    spec = BOTH[side]
    params, batch = random_params(spec), {f"{side}_input_tokens": tokens()}

    def value_and_gradient(compute):
        def total(params):
            return jnp.mean(jnp.square(logits(spec, params, batch, compute)))

        return jax.jit(jax.value_and_grad(total))(params)

    expected = value_and_gradient(ComputeSpec())
    actual = value_and_gradient(ComputeSpec(remat=remat, scan=scan))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.mark.parametrize("scan", [True, False])
def test_stochastic_depth_leaves_sublayers_out_in_training_alone(scan):
    """With three layers of which the last is nearly always left out, its parameters matter less."""
    spec = override(DECODERS["llama"], {"decoder.stochastic_depth_rate": 0.999})
    params, batch = random_params(spec), {"decoder_input_tokens": read(tokens(rows=64))}
    compute = ComputeSpec(scan=scan)

    def run(params, seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return logits(spec, params, batch, compute, rngs=rngs, train=train)

    np.testing.assert_array_equal(run(params, 0, False), run(params, 1, False))
    assert not np.allclose(run(params, 0, True), run(params, 1, True), atol=1e-3)
    moved = jax.tree.map(lambda leaf: leaf.at[-1].mul(-1.0), params["decoder"]["layers"])
    second = params | {"decoder": params["decoder"] | {"layers": moved}}
    same = np.isclose(run(params, 0, True), run(second, 0, True), atol=1e-6).all(axis=(1, 2))
    assert same.mean() > 0.9  # of 64 examples, each drawn by itself, for two sublayers
    assert not np.isclose(run(params, 0, False), run(second, 0, False), atol=1e-6).all()


@pytest.mark.parametrize(
    ("name", "count"),
    [  # transformers' counts of the released models, heads included
        ("bert_base", 109_514_298),
        ("bert_large", 335_174_458),
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
    ],
)
def test_published_sizes(name, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(Model(preset(name)).shapes())) == count


@pytest.mark.parametrize(
    ("name", "published", "digits"),
    [  # never released; counts in Brown et al. 2020, table D.1, Chowdhery et al. 2022, table 1, ...
        ("gpt3_125m", 125e6, 3),
        ("gpt3_350m", 356e6, 3),
        ("gpt3_760m", 760e6, 3),
        ("gpt3_1_3b", 1.32e9, 3),
        ("gpt3_2_7b", 2.65e9, 3),
        ("gpt3_6_7b", 6.66e9, 3),
        ("gpt3_13b", 12.85e9, 4),
        ("gpt3_175b", 174.6e9, 4),
        ("palm_8b", 8.63e9, 3),
        ("palm_62b", 62.50e9, 4),
        ("palm_540b", 540.35e9, 4),  # .36 with a second norm a layer
        ("mt_nlg_530b", 530e9, 3),  # ... and Smith et al. 2022, §3.1
    ],
)
def test_sizes_that_were_only_described(name, published, digits):
    count = sum(leaf.size for leaf in jax.tree.leaves(Model(preset(name)).shapes()))
    assert count == pytest.approx(published, rel=0.5 * 10.0 ** (1 - digits))


@pytest.mark.parametrize("side", BOTH)
def test_flops_are_those_of_an_unrolled_compile(side):
    # Wide enough that matrix products dominate.
    wide = {"embed": 64, "*.blocks.*.mlp.hidden": 256, "*.blocks.*.attention.head_dim": 16}
    spec, compute = override(BOTH[side], wide), ComputeSpec(scan=False)
    batch = {f"{side}_input_tokens": tokens()}
    lowered = jax.jit(lambda p, b: logits(spec, p, b, compute)).lower(Model(spec).shapes(), batch)
    counted = 2 * forward_flops(spec, **{f"{side}_length": LENGTH})  # two rows
    assert counted < lowered.compile().cost_analysis()["flops"] < 1.3 * counted


def test_logits_that_are_not_computed_are_not_counted():
    spec = BOTH["encoder"]
    whole, few, none = (
        forward_flops(spec, encoder_length=LENGTH, num_logits=n) for n in (None, 3, 0)
    )
    assert whole - none == 2 * LENGTH * 16 * VOCAB
    assert few - none == 2 * 3 * 16 * VOCAB
    assert forward_flops(spec.replace(heads=()), encoder_length=LENGTH) == none
