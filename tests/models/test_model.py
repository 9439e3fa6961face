"""What every model must satisfy, whatever its spec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import SPECS, derivative, extend, logits, random_batch, random_params, start, tiny

from t5lite.models import PRESETS, ComputeSpec, Model, forward_flops, preset
from t5lite.models.transformer import positions_of


@pytest.mark.light("tied")
def test_a_decoder_position_sees_only_what_came_before(spec):
    params, batch, model = random_params(spec), random_batch(), Model(spec)
    table = params["token_embedding"]["embedding"]
    # Token 2 stands at decoder position 5 of row 1 and nowhere else.
    tokens = batch["decoder_input_tokens"].at[1, 5].set(2)

    def outputs(table):
        moved = params | {"token_embedding": {"embedding": table}}
        return model.hidden(moved, batch | {"decoder_input_tokens": tokens})[0]

    direction = jnp.zeros_like(table).at[2].set(1.0)
    moved = derivative(outputs, table, direction)
    assert not np.any(moved[0])
    assert not np.any(moved[1, :5])
    assert np.all(np.any(moved[1, 5:], axis=-1))


def test_padding_of_the_encoder_changes_nothing(spec):
    params, batch = random_params(spec), random_batch()
    longer = jnp.pad(batch["encoder_input_tokens"], ((0, 0), (0, 4)))
    expected = logits(spec, params, batch)
    segments = (longer > 0).astype(jnp.int32)
    padded = batch | {"encoder_input_tokens": longer, "encoder_segment_ids": segments}
    np.testing.assert_allclose(logits(spec, params, padded), expected, atol=1e-5)


def test_packed_rows_give_what_single_rows_give(spec):
    params, batch = random_params(spec), random_batch(batch=2)
    batch["encoder_input_tokens"] = batch["encoder_input_tokens"].at[0, -3:].set(7)
    batch["encoder_segment_ids"] = jnp.ones_like(batch["encoder_input_tokens"])
    alone = logits(spec, params, batch)

    def one_row(tokens):
        return tokens.reshape(1, -1)

    def ids(tokens):
        return jnp.repeat(jnp.arange(1, 3, dtype=jnp.int32), tokens.shape[1])[None]

    packed = {name: one_row(tokens) for name, tokens in batch.items()} | {
        "encoder_segment_ids": ids(batch["encoder_input_tokens"]),
        "decoder_segment_ids": ids(batch["decoder_input_tokens"]),
    }
    together = logits(spec, params, packed).reshape(alone.shape)
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_cached_decoding_is_the_full_forward_pass(spec):
    params, batch = random_params(spec), random_batch()
    model, tokens = Model(spec), batch["decoder_input_tokens"]
    cache = start(model, params, batch)
    parts, at = [], 0
    for n in (3, 1, 1, 1, 1):
        part, cache = extend(model, params, tokens[:, at : at + n], cache)
        parts, at = [*parts, part], at + n
    np.testing.assert_allclose(
        jnp.concatenate(parts, axis=1), logits(spec, params, batch), atol=2e-5
    )
    assert cache.lengths.tolist() == [7, 7]


def test_a_rewound_cache_forgets_and_a_reordered_one_swaps():
    # Three layers of two kinds: with and without a leading axis of layers.
    spec = SPECS["two_kinds_of_blocks"]
    params, batch = random_params(spec), random_batch()
    # Same inputs in both rows, as for two beams.
    for name in ("encoder_input_tokens", "encoder_segment_ids"):
        batch[name] = jnp.tile(batch[name][1:], (2, 1))
    model, tokens = Model(spec), batch["decoder_input_tokens"]
    empty = start(model, params, batch)
    _, three = extend(model, params, tokens[:, :3], empty)
    expected, four = extend(model, params, tokens[:, 3:4], three)
    _, cache = extend(model, params, tokens[:, 4:5], four)
    rewound, _ = extend(model, params, tokens[:, 3:4], cache.rewind(jnp.array([3, 3], jnp.int32)))
    np.testing.assert_allclose(rewound, expected, atol=1e-5)
    swapped, _ = extend(
        model, params, tokens[::-1, 5:6], cache.reorder(jnp.array([1, 0], jnp.int32))
    )
    straight, _ = extend(model, params, tokens[:, 5:6], cache)
    np.testing.assert_allclose(swapped, straight[::-1], atol=1e-5)


@pytest.mark.parametrize(("remat", "scan"), [("full", True), ("minimal", False)])
@pytest.mark.light("minimal-False")
def test_remat_and_scan_change_neither_value_nor_gradient(remat, scan):
    spec = SPECS["tied"]
    params, batch = random_params(spec), random_batch()

    def value_and_grad(compute):
        def total(params):
            return jnp.mean(jnp.square(logits(spec, params, batch, compute)))

        return jax.jit(jax.value_and_grad(total))(params)

    expected = value_and_grad(ComputeSpec())
    actual = value_and_grad(ComputeSpec(remat=remat, scan=scan))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected
    )


def test_bfloat16_computes_in_bfloat16_and_stays_close():
    spec = tiny()
    params, batch = random_params(spec), random_batch()
    model = Model(spec, ComputeSpec(dtype="bfloat16"))
    hidden, _ = jax.jit(model.hidden)(params, batch)
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(model.logits, params, hidden).dtype == jnp.float32
    full, _ = jax.jit(Model(spec).hidden)(params, batch)
    assert np.mean(np.abs(hidden.astype(jnp.float32) - full)) < 0.03


def test_dropout_needs_train_and_depends_on_its_key():
    spec = tiny(**{"*.dropout_rate": 0.3})
    params, batch = random_params(spec), random_batch()

    def run(seed, train):
        return logits(spec, params, batch, rngs={"dropout": jax.random.key(seed)}, train=train)

    assert np.array_equal(run(0, False), run(1, False))
    assert np.array_equal(run(0, True), run(0, True))
    assert not np.allclose(run(0, True), run(1, True))


@pytest.mark.parametrize(
    ("name", "count"),
    [  # transformers' counts of the released models
        ("t5_small", 60_506_624),
        ("t5_base", 222_903_552),
        ("t5_large", 737_668_096),
        ("t5_3b", 2_851_598_336),
        ("t5_11b", 11_307_321_344),
        ("t5_1_1_small", 76_961_152),
        ("t5_1_1_base", 247_577_856),
        ("t5_1_1_large", 783_150_080),
        ("t5_1_1_xl", 2_849_757_184),
        ("t5_1_1_xxl", 11_135_332_352),
    ],
)
def test_published_sizes(name, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(Model(preset(name)).shapes())) == count


def is_spec(leaf):
    return isinstance(leaf, jax.sharding.PartitionSpec)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.light("umt5_base", "llama2_13b", "switch_base_8")
def test_every_parameter_axis_has_a_name(name):
    model = Model(preset(name))

    def check(axes, shape):
        assert len(axes) == len(shape.shape)
        assert all(axes)

    jax.tree.map(check, model.axes(), model.shapes(), is_leaf=is_spec)


def test_initialisers_have_the_published_standard_deviations():
    params = jax.jit(Model(preset("t5_1_1_nano")).init)(jax.random.key(0))
    layer = params["encoder"]["layers"]["block_0"]
    embed, heads, head_dim = 128, 4, 32
    spread = {
        embed**-0.5 * head_dim**-0.5: layer["attention"]["query"]["kernel"],
        embed**-0.5: layer["attention"]["key"]["kernel"],
        (heads * head_dim) ** -0.5 * 1.0: layer["attention"]["output"]["kernel"],
        320**-0.5: layer["mlp"]["down"]["kernel"],
        1.0: params["token_embedding"]["embedding"],
    }
    for expected, kernel in spread.items():
        assert float(jnp.std(kernel)) == pytest.approx(expected, rel=0.03)


def test_flops_are_those_of_an_unrolled_compile(spec):
    batch = random_batch()
    compute = ComputeSpec(scan=False)
    shapes = Model(spec).shapes()
    compiled = jax.jit(lambda p, b: logits(spec, p, b, compute)).lower(shapes, batch).compile()
    counted = 2 * forward_flops(spec, encoder_length=9, decoder_length=7)  # two rows
    # XLA counts norms, softmax and masks too, which weigh much in a model this small.
    assert counted < compiled.cost_analysis()["flops"] < 1.6 * counted


def test_positions_are_those_within_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]], jnp.int32)
    batch = {"encoder_input_tokens": jnp.zeros_like(segments), "encoder_segment_ids": segments}
    expected = [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert positions_of(batch, "encoder").tolist() == expected
    # Rows of one text each have the same positions, whatever the ids: no array of the batch's.
    batch["encoder_lengths"] = jnp.array([3, 8], jnp.int32)
    assert positions_of(batch, "encoder").tolist() == [list(range(8))]
