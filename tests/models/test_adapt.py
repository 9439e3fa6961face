"""Models made of other models: encoder-decoders, experts, and layers in other places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import logits, random_params

from t5lite.errors import InputError
from t5lite.layers import (
    LayerNormSpec,
    LMHeadSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    RelativeBiasSpec,
    SinusoidalPositionsSpec,
)
from t5lite.layers.moe import MoeSpec
from t5lite.models import Model, ModelSpec, override, preset
from t5lite.models.adapt import join, repattern, to_encoder_decoder, upcycle
from t5lite.models.adapt.parameters import with_blocks

LENGTH, VOCAB = 9, 40
KEY = jax.random.key(3)
CROSS_OUTPUT = ("cross_attention/output/", "cross_attention_output_norm/")


def small(name: str, **changes) -> ModelSpec:
    """A preset with three layers of width 16."""
    base = {
        "vocab": VOCAB,
        "embed": 16,
        "*.num_layers": 3,
        "*.dropout_rate": 0.0,
        "*.blocks.*.attention.num_heads": 4,
        "*.blocks.*.attention.head_dim": 6,
        "*.blocks.*.mlp.hidden": 24,
    }
    return override(name, base | changes)


T5 = small("t5_1_1_nano", **{"decoder.blocks.*.cross_attention.head_dim": 6})


def with_two_kinds(spec: ModelSpec, side: str, **changes) -> ModelSpec:
    """Three layers of two alternating blocks, so that one is a remainder."""
    stack = getattr(spec, side)
    second = override(spec, {f"{side}.blocks.*.{path}": value for path, value in changes.items()})
    return spec.replace(**{side: stack.replace(blocks=stack.blocks + getattr(second, side).blocks)})


GPT, LLAMA, BERT = small("gpt_nano"), small("llama_nano"), small("bert_nano")
LLAMA_IN_WINDOWS = with_two_kinds(
    LLAMA, "decoder", **{"attention.window": 2, "attention.logits_softcap": 5.0}
)
GPT_RELATIVE, GPT_RELATIVE_PER_LAYER = (
    small(
        "gpt_nano",
        **{
            "decoder.position_embedding": None,
            "decoder.position_bias": RelativeBiasSpec(8, 32, per_layer=per_layer),
        },
    )
    for per_layer in (False, True)
)
GEMMA_LIKE = override(
    LLAMA_IN_WINDOWS,
    {
        "family": "gemma2",
        "decoder.blocks.*.norm_placement": "around",
        "decoder.blocks.*.attention.query_key_norm": LayerNormSpec(),
        "decoder.embedding_scale": 4.0,
        "heads": (LMHeadSpec(tied=True, softcap=9.0),),
    },
)
WITH_A_FIRST_LAYER = LLAMA_IN_WINDOWS.replace(
    decoder=LLAMA_IN_WINDOWS.decoder.replace(
        num_layers=5,
        first_blocks=(LLAMA.decoder.blocks[0].replace(attention_norm=False),),
    )
)
SHARED_LAYERS = override(GPT, {"decoder.shared_layers": True})
DECODERS = {
    "gpt2": GPT,
    "llama_in_windows": LLAMA_IN_WINDOWS,
    "gemma_like": GEMMA_LIKE,
    "relative_bias": GPT_RELATIVE,
    "relative_bias_per_layer": GPT_RELATIVE_PER_LAYER,
    "first_layer": WITH_A_FIRST_LAYER,
    "shared_layers": SHARED_LAYERS,
}
QUICK = ("gpt2", "llama_in_windows", "gemma_like")  # the others are compiled by the slow tests
every_decoder = pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, spec in DECODERS.items()
    ],
)


def tokens(seed=0, *, rows=2, length=LENGTH):
    drawn = np.random.default_rng(seed).integers(3, VOCAB, (rows, length))
    return jnp.asarray(drawn, jnp.int32)


def both(seed=0):
    return {"encoder_input_tokens": tokens(seed), "decoder_input_tokens": tokens(seed + 1)}


def by_path(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def zeroed(params, *parts):
    """The parameters with zeros wherever their paths hold one of `parts`."""

    def choose(path, leaf):
        name = "/".join(key.key for key in path)
        return jnp.zeros_like(leaf) if any(part in name for part in parts) else leaf

    return jax.tree_util.tree_map_with_path(choose, params)


def encoded(spec, params, inputs):
    batch = {"encoder_input_tokens": inputs}
    run = jax.jit(lambda p: Model(spec)._module.apply({"params": p}, batch, method="encode"))
    return run(params)


def hidden(spec, params, batch):
    return jax.jit(lambda params: Model(spec).hidden(params, batch)[0])(params)


def assert_fits(spec, params):
    reference = Model(spec).shapes()
    assert jax.tree.structure(params) == jax.tree.structure(reference)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, reference)
    leaves = jax.tree.leaves(params)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)


def close(actual, expected, atol=2e-5):
    np.testing.assert_allclose(actual, expected, atol=atol)


# Encoder-decoders.


@every_decoder
@pytest.mark.light("gpt2")
def test_without_cross_attention_the_new_decoder_is_the_old_one(spec):
    params, batch = random_params(spec), both()
    new_spec, new_params = to_encoder_decoder(spec, params, rng=KEY)
    assert new_spec.topology == "encoder_decoder"
    assert_fits(new_spec, new_params)
    expected = logits(spec, params, {"decoder_input_tokens": batch["decoder_input_tokens"]})
    close(logits(new_spec, zeroed(new_params, *CROSS_OUTPUT), batch), expected)
    assert not np.allclose(logits(new_spec, new_params, batch), expected, atol=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "gemma_like", "first_layer"])
@pytest.mark.light("gpt2")
def test_the_new_encoder_is_the_old_decoder_with_all_tokens_in_its_prefix(name):
    spec, inputs = DECODERS[name], tokens()
    params = random_params(spec)
    new_spec, new_params = to_encoder_decoder(spec, params, rng=KEY)
    batch = {"decoder_input_tokens": inputs, "decoder_causal_attention": jnp.ones_like(inputs)}
    close(encoded(new_spec, new_params, inputs), hidden(spec, params, batch))


@pytest.mark.parametrize("spec", [GPT_RELATIVE, GPT_RELATIVE_PER_LAYER], ids=["one", "per_layer"])
def test_relative_biases_of_a_new_encoder_are_the_same_on_both_sides(spec):
    inputs = tokens()
    new_spec, new_params = to_encoder_decoder(spec, random_params(spec))
    states = encoded(new_spec, new_params, inputs)
    close(encoded(new_spec, new_params, inputs[:, ::-1])[:, ::-1], states)
    # The first layer of the last token sees the same in both: all tokens are before it.
    one_layer = override(spec, {"decoder.num_layers": 1})
    params = random_params(one_layer)
    new_spec, new_params = to_encoder_decoder(one_layer, params)
    expected = hidden(one_layer, params, {"decoder_input_tokens": inputs})
    close(encoded(new_spec, new_params, inputs)[:, -1], expected[:, -1])


def test_cross_attention_is_self_attention_without_its_places_or_drawn():
    spec = GEMMA_LIKE
    params = random_params(spec)
    copied_spec, copied = to_encoder_decoder(spec, params)
    assert copied_spec.family == "t5gemma"
    for block in copied_spec.decoder.every_block:
        assert block.cross_attention.rotary is None
        assert block.cross_attention.window is None
        assert block.cross_attention.logits_softcap == block.attention.logits_softcap
    source = by_path(params["decoder"])
    crossed = {path: leaf for path, leaf in by_path(copied["decoder"]).items() if "/cross_" in path}
    assert any("key_norm" in path for path in crossed)
    assert any("cross_attention_output_norm" in path for path in crossed)
    for path, leaf in crossed.items():
        np.testing.assert_array_equal(leaf, source[path.replace("/cross_", "/")])
    fresh_spec, fresh = to_encoder_decoder(spec, params, cross_attention="fresh", rng=KEY)
    assert fresh_spec == copied_spec
    for path, leaf in by_path(fresh["decoder"]).items():
        drawn = "cross_attention/" in path
        assert np.array_equal(leaf, by_path(copied["decoder"])[path]) != drawn, path


def test_an_encoder_becomes_an_encoder_decoder():
    """Of norms before sublayers, as an absent sublayer leaves no trace there."""
    spec = override(
        BERT,
        {
            "encoder.position_embedding": SinusoidalPositionsSpec(),
            "encoder.final_norm": LayerNormSpec(),
            "encoder.blocks.*.norm_placement": "before",
        },
    )
    params, batch = random_params(spec), both()
    new_spec, new_params = to_encoder_decoder(spec, params, rng=KEY)
    assert_fits(new_spec, new_params)
    assert new_spec.heads == (LMHeadSpec(tied=True),)
    inputs = batch["encoder_input_tokens"]
    expected = hidden(spec, params, {"encoder_input_tokens": inputs})
    close(encoded(new_spec, new_params, inputs), expected)
    causal = spec.replace(
        encoder=None, decoder=spec.encoder.replace(causal=True), heads=(LMHeadSpec(tied=True),)
    )
    causal_params = {
        "token_embedding": params["token_embedding"],
        "token_type_embedding": params["token_type_embedding"],
        "decoder": params["encoder"],
    }
    batch_of_one = {"decoder_input_tokens": batch["decoder_input_tokens"]}
    expected = logits(causal, causal_params, batch_of_one)
    close(logits(new_spec, zeroed(new_params, *CROSS_OUTPUT), batch), expected)


def test_relative_biases_of_a_new_decoder_are_those_of_earlier_keys():
    """The last token of one layer sees all others before it, in a decoder as in an encoder."""
    spec = override(
        BERT,
        {
            "encoder.position_embedding": None,
            "encoder.position_bias": RelativeBiasSpec(8, 32),
            "encoder.num_layers": 1,
            "encoder.blocks.*.norm_placement": "before",
        },
    )
    params, inputs = random_params(spec), tokens()
    new_spec, new_params = to_encoder_decoder(spec, params, cross_attention="copied")
    assert new_spec.decoder.position_bias.num_buckets == 4
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": inputs}
    actual = hidden(new_spec, zeroed(new_params, *CROSS_OUTPUT), batch)
    expected = hidden(spec, params, {"encoder_input_tokens": inputs})
    close(actual[:, -1], expected[:, -1])
    assert not np.allclose(actual[:, 0], expected[:, 0], atol=1e-2)


def test_heads_that_the_old_model_has_are_kept_and_others_drawn():
    params = random_params(BERT)
    _, new_params = to_encoder_decoder(BERT, params, heads=BERT.heads, rng=KEY)
    np.testing.assert_array_equal(new_params["lm_head"]["bias"], params["lm_head"]["bias"])
    second = MaskedLMHeadSpec(activation="relu")
    new_spec, drawn = to_encoder_decoder(BERT, params, heads=(second,), rng=KEY)
    assert_fits(new_spec, drawn)
    assert not np.any(drawn["lm_head"]["bias"])
    _, llama = to_encoder_decoder(LLAMA, random_params(LLAMA))
    expected = random_params(LLAMA)["lm_head"]["projection"]["kernel"]
    np.testing.assert_array_equal(llama["lm_head"]["projection"]["kernel"], expected)


def test_an_encoder_may_have_its_own_table():
    params = random_params(GPT)
    spec, separate = to_encoder_decoder(GPT, params, shared_embedding=False)
    assert_fits(spec, separate)
    _, shared = to_encoder_decoder(GPT, params)
    changed = separate | {"encoder_embedding": {"embedding": jnp.ones((VOCAB, 16))}}
    expected = logits(to_encoder_decoder(GPT, params)[0], shared, both())
    close(logits(spec, separate, both()), expected, atol=0)
    assert not np.allclose(logits(spec, changed, both()), expected, atol=1e-2)


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.slow
def test_two_models_become_one(width):
    """BERT's encoder with token types, of the same width or a larger one, and GPT's decoder."""
    bert = override(BERT, {"embed": width})
    sources = (bert, random_params(bert)), (GPT, random_params(GPT, seed=1))
    spec, params = join(*sources, rng=KEY)
    assert_fits(spec, params)
    assert spec.encoder.embed == (None if width == 16 else 24)
    batch = both()
    inputs = {"encoder_input_tokens": batch["encoder_input_tokens"]}
    close(encoded(spec, params, *inputs.values()), hidden(*sources[0], inputs))
    expected = logits(*sources[1], {"decoder_input_tokens": batch["decoder_input_tokens"]})
    close(logits(spec, zeroed(params, *CROSS_OUTPUT), batch), expected)


def test_the_encoder_of_an_encoder_decoder_can_be_joined_again():
    params = random_params(T5)
    spec, joined = join((T5, params), (GPT, random_params(GPT)), rng=KEY)
    inputs = tokens()
    close(encoded(spec, joined, inputs), encoded(T5, params, inputs))
    with pytest.raises(InputError, match="decoder must be a decoder or an encoder alone"):
        join((GPT, random_params(GPT)), (T5, params))


def test_models_that_cannot_be_joined():
    gpt, bert = (GPT, random_params(GPT)), (BERT, random_params(BERT))
    wide_spec = override(BERT, {"embed": 24})
    wide = (wide_spec, random_params(wide_spec))
    with pytest.raises(InputError, match="cross_attention must be 'fresh' where"):
        join(wide, gpt, cross_attention="copied", rng=KEY)
    with pytest.raises(InputError, match="shared_embedding must be False where"):
        join(wide, gpt, shared_embedding=True, rng=KEY)
    second = override(BERT, {"vocab": 41})
    with pytest.raises(InputError, match=r"vocab must be the same in both: 41 .* 40"):
        join((second, random_params(second)), gpt)
    with pytest.raises(InputError, match="rng must be a PRNG key"):
        join(bert, gpt)
    with pytest.raises(InputError, match="it has both already"):
        to_encoder_decoder(T5, random_params(T5))
    with pytest.raises(InputError, match="cross_attention must be one of copied, fresh"):
        to_encoder_decoder(*gpt, cross_attention="none")
    with pytest.raises(InputError, match=r"params has decoder/.* of the same model"):
        to_encoder_decoder(BERT, gpt[1])
    with pytest.raises(InputError, match=r"params: .* has shape \(16,\) where the spec makes \(24"):
        to_encoder_decoder(wide_spec, bert[1])
    parallel = override(GPT, {"decoder.blocks.*.parallel": True})
    with pytest.raises(InputError, match="parallel = True: must be False with cross-attention"):
        to_encoder_decoder(parallel, random_params(parallel))
    typed = override(BERT, {"encoder.position_embedding": SinusoidalPositionsSpec()})
    with pytest.raises(InputError, match="num_token_types must be None"):
        join((typed, random_params(typed)), gpt, rng=KEY)


# Patterns.


@pytest.mark.parametrize(
    ("spec", "period", "num_first"),
    [(GPT, 2, 0), (GPT, 2, 1), (GPT, 4, 0), (GPT, 1, 3), (SHARED_LAYERS, 2, 0)],
    ids=["remainder", "first_layer", "remainder_alone", "first_layers_alone", "once_shared"],
)
@pytest.mark.slow
def test_layers_in_other_places_are_the_same_model(spec, period, num_first):
    params, batch = random_params(spec), {"decoder_input_tokens": tokens()}
    block = spec.decoder.blocks[0]
    stack = spec.decoder.replace(
        blocks=(block,) * period, first_blocks=(block,) * num_first, shared_layers=False
    )
    moved = params | {"decoder": repattern(params["decoder"], spec.decoder, stack)}
    new = spec.replace(decoder=stack)
    assert_fits(new, moved)
    expected = logits(spec, params, batch)
    close(logits(new, moved, batch), expected)
    if spec is GPT:
        back = repattern(moved["decoder"], stack, spec.decoder)
        jax.tree.map(np.testing.assert_array_equal, back, params["decoder"])
    else:
        with pytest.raises(InputError, match="shared_layers must stay False"):
            repattern(moved["decoder"], stack, spec.decoder)


def test_patterns_that_do_not_fit():
    params, stack = random_params(LLAMA_IN_WINDOWS)["decoder"], LLAMA_IN_WINDOWS.decoder
    with pytest.raises(InputError, match="num_layers must stay 3 in another pattern; it is 4"):
        repattern(params, stack, stack.replace(num_layers=4))
    wider = override(GPT, {"decoder.blocks.*.mlp.hidden": 32}).decoder.blocks
    two = GPT.replace(decoder=GPT.decoder.replace(blocks=GPT.decoder.blocks + wider))
    with pytest.raises(InputError, match=r"blocks must be equal where .*: layers/block_0"):
        repattern(random_params(two)["decoder"], two.decoder, GPT.decoder)
    with pytest.raises(InputError, match="blocks must be 3, one a layer; there are 1"):
        with_blocks(GPT.decoder, GPT.decoder.blocks)


# Experts.

DENSE = {
    "gpt2": GPT,
    "llama_in_windows": LLAMA_IN_WINDOWS,
    "t5_tied": override(T5, {"heads": preset("t5_nano").heads, "*.num_layers": 5}),
    "bert": BERT,
}


@pytest.mark.parametrize(
    ("name", "layers"),
    [*((name, "alternate") for name in DENSE), ("t5_tied", "all"), ("gpt2", (0, 2))],
)
@pytest.mark.light("t5_tied-all")
def test_experts_that_are_copies_compute_the_dense_model(name, layers):
    spec = DENSE[name]
    params, batch = random_params(spec), both()
    new_spec, new_params = upcycle(
        spec, params, num_experts=3, layers=layers, capacity_factor=None, rng=KEY
    )
    assert_fits(new_spec, new_params)
    chosen = {"alternate": (1, 3), "all": range(9)}.get(layers, layers)
    for stack in (new_spec.encoder, new_spec.decoder):
        for layer, block in enumerate(stack.every_block if stack else ()):
            assert isinstance(block.mlp, MoeSpec if layer in chosen else MlpSpec)
    close(logits(new_spec, new_params, batch), logits(spec, params, batch), atol=1e-4)


def test_every_other_layer_repeats_with_period_two():
    spec, params = upcycle(GPT, random_params(GPT), num_experts=4, rng=KEY)
    assert [type(block.mlp) for block in spec.decoder.blocks] == [MlpSpec, MoeSpec]
    experts = params["decoder"]["layers"]["block_1"]["mlp"]["experts"]["up"]["kernel"]
    assert experts.shape == (1, 4, 16, 24)
    assert spec.decoder.blocks[1].mlp.normalize_weights
    assert spec.decoder.blocks[1].mlp.capacity_factor == 2.0


def test_routers_differ_between_layers_and_have_the_papers_standard_deviation():
    wide = override(GPT, {"embed": 64})
    params = upcycle(wide, random_params(wide), num_experts=64, layers="all", rng=KEY)[1]
    kernel = params["decoder"]["layers"]["block_0"]["mlp"]["router"]["kernel"]
    assert kernel.shape == (3, 64, 64)
    assert not np.allclose(kernel[0], kernel[1])
    assert abs(float(kernel.std()) - 0.02) < 0.001


def test_noise_separates_experts_by_its_standard_deviation():
    spec = override(T5, {"*.blocks.*.mlp.hidden": 200})
    dense = random_params(spec)
    noisy = upcycle(spec, dense, num_experts=3, layers="all", noise_stddev=0.1, rng=KEY)[1]
    for side in ("encoder", "decoder"):
        old, new = (tree[side]["layers"]["block_0"]["mlp"] for tree in (dense, noisy))
        kernel = new["experts"]["down"]["kernel"]
        difference = kernel - old["down"]["kernel"][:, None].repeat(3, 1)
        ratio = difference.std(axis=(2, 3)) / old["down"]["kernel"].std(axis=(1, 2))[:, None]
        np.testing.assert_allclose(ratio, 0.1, rtol=0.1)
        assert not np.allclose(kernel[:, 0], kernel[:, 1])


def test_one_expert_a_token_is_the_dense_layer_only_in_proportion():
    params, batch = random_params(GPT), {"decoder_input_tokens": tokens()}
    expected = logits(GPT, params, batch)

    def outputs(**options):
        new = upcycle(GPT, params, top_k=1, layers="all", capacity_factor=None, rng=KEY, **options)
        return logits(*new, batch)

    close(outputs(num_experts=1), expected)
    assert not np.allclose(outputs(num_experts=4), expected, atol=1e-2)
    # Four equally likely experts: as if the MLP's output were a quarter.
    new_spec, new = upcycle(
        GPT, params, num_experts=4, top_k=1, layers="all", capacity_factor=None, rng=KEY
    )
    even = logits(new_spec, zeroed(new, "router"), batch)
    block = params["decoder"]["layers"]["block_0"]
    quarter = block["mlp"] | {"down": jax.tree.map(lambda leaf: leaf / 4, block["mlp"]["down"])}
    layers = {"layers": {"block_0": block | {"mlp": quarter}}}
    close(even, logits(GPT, params | {"decoder": params["decoder"] | layers}, batch))


def test_shared_layers_stay_shared_where_all_change():
    params, batch = random_params(SHARED_LAYERS), {"decoder_input_tokens": tokens()}
    options = {"num_experts": 2, "capacity_factor": None, "rng": KEY}
    new_spec, new = upcycle(SHARED_LAYERS, params, layers="all", **options)
    assert new_spec.decoder.shared_layers
    close(logits(new_spec, new, batch), logits(SHARED_LAYERS, params, batch))
    with pytest.raises(InputError, match="layers must be the same in each repeat"):
        upcycle(SHARED_LAYERS, params, **options)


def test_one_stack_alone_can_change_and_fields_of_the_experts_be_given():
    spec, params = upcycle(
        T5,
        random_params(T5),
        num_experts=2,
        stacks=["decoder"],
        capacity_factor=1.25,
        router_z_coefficient=0.0,
        rng=KEY,
    )
    assert spec.encoder == T5.encoder
    moe = spec.decoder.blocks[1].mlp
    assert (moe.capacity_factor, moe.router_z_coefficient) == (1.25, 0.0)
    assert_fits(spec, params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (3,)}, "layers must be 'alternate', 'all', or numbers in 0 .. 2"),
        ({"layers": "every"}, "layers must be 'alternate'"),
        ({"layers": ()}, "layers must be 'alternate'"),
        ({"stacks": ["encoder"]}, "stacks must be some of decoder"),
        ({"noise_stddev": -1.0}, "noise_stddev must be at least 0"),
        ({"top_k": 3}, "top_k = 3: must be at most num_experts"),
        ({"top_k": 1, "normalize_weights": True}, "normalize_weights"),
    ],
)
def test_bad_arguments_of_upcycling(options, message):
    with pytest.raises(InputError, match=message):
        upcycle(GPT, random_params(GPT), **{"num_experts": 2, "rng": KEY} | options)


def test_experts_are_not_upcycled_again():
    sparse = upcycle(GPT, random_params(GPT), num_experts=2, layers="all", rng=KEY)
    with pytest.raises(InputError, match=r"must be dense before .* decoder, layer 1 is not"):
        upcycle(*sparse, num_experts=2, rng=KEY)
