"""What must hold for every kind of layer: who sees whom, packing, caches, and ways to compute.

Each model is compiled once for each way: batches have all their parts and one shape.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_models import random_params
from varied_models import (
    CAPPED_IN_WINDOWS,
    EMBED,
    FACTORISED_AND_SHARED,
    SIDE_BY_SIDE_AND_SHARED,
    UNEQUAL_WIDTHS_AND_EXPERTS,
    VARIED,
    VOCAB,
    WINDOWS_AFTER_A_FIRST_LAYER,
)

from t5lite.layers import MlpSpec
from t5lite.models import ComputeSpec, Model, forward_flops, override
from t5lite.parallel import Layout, make_mesh, shardings, with_layout

LENGTH, PLACE = 12, 7
DECODERS = {name: spec for name, spec in VARIED.items() if spec.topology == "decoder"}
GENERATORS = {name: spec for name, spec in VARIED.items() if spec.decoder is not None}
every_model = pytest.mark.parametrize("spec", VARIED.values(), ids=VARIED)


def sides(spec):
    return [side for side in ("encoder", "decoder") if getattr(spec, side) is not None]


def draw_tokens(seed, *shape):
    return np.random.default_rng(seed).integers(3, VOCAB, shape).astype(np.int32)


def make_batch(spec, tokens=None, *, segments=None, prefix=0):
    """A batch with all parts that the model reads; each argument stands for every side's.

    Args:
      spec: the model's.
      tokens: `[2, LENGTH]`; drawn if None.
      segments: likewise; one text a row if None.
      prefix: `[2, LENGTH]`, or how many tokens of every row are in its prefix.
    """
    shape = (2, LENGTH)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
    batch = {}
    for seed, side in enumerate(sides(spec)):
        batch[f"{side}_input_tokens"] = draw_tokens(seed, *shape) if tokens is None else tokens
        batch[f"{side}_segment_ids"] = np.ones(shape, np.int32) if segments is None else segments
    if spec.topology == "decoder":
        inside = places < prefix if isinstance(prefix, int) else prefix
        batch["decoder_causal_attention"] = np.asarray(inside, np.int32)
    if spec.num_token_types is not None:
        batch["token_types"] = (places % 3 == 1).astype(np.int32)
    return batch


@functools.partial(jax.jit, static_argnames=("spec", "compute"))
def outcome(spec, params, batch, compute=ComputeSpec()):
    """Hidden states, what heads say (but for poolers, which mix texts) and auxiliary losses."""
    model = Model(spec, compute)
    hidden, aux = model.hidden(params, batch)
    actual = {"hidden": hidden.astype(jnp.float32)}
    valid = jnp.ones(hidden.shape[:2], bool)
    for kind in model.heads:
        if kind == "lm":
            actual["lm"] = model.logits(params, hidden)
        else:
            actual[kind] = model.output(params, kind, hidden, valid)
    return actual, aux


def hidden(spec, batch):
    return np.asarray(outcome(spec, random_params(spec), batch)[0]["hidden"])


# Who sees whom.


def moved(spec, batch, name, position=PLACE):
    """Whether each hidden state of row 1 changes with its token at a place, and none of row 0."""
    changed = np.array(batch[name])
    changed[1, position] = 2  # which is drawn nowhere
    difference = np.abs(hidden(spec, batch | {name: changed}) - hidden(spec, batch)).max(axis=-1)
    assert np.all(difference[0] < 1e-6)
    return (difference[1] > 1e-5).tolist()


@every_model
@pytest.mark.light("capped_in_windows", "factorised_and_shared")
def test_tokens_see_whom_they_may(spec):
    after, all_of_them = [position >= PLACE for position in range(LENGTH)], [True] * LENGTH
    batch = make_batch(spec)
    if spec.encoder is not None:
        assert moved(spec, batch, "encoder_input_tokens") == all_of_them
    if spec.decoder is not None:
        assert moved(spec, batch, "decoder_input_tokens") == after
    if spec.topology == "decoder":
        longer, shorter = (make_batch(spec, prefix=size) for size in (PLACE + 1, PLACE))
        assert moved(spec, longer, "decoder_input_tokens") == all_of_them
        assert moved(spec, shorter, "decoder_input_tokens") == after


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_layers_of_windows_alone_see_as_far_as_their_windows_together(side):
    if side == "decoder":
        spec, reach = CAPPED_IN_WINDOWS, range(2 * 3 + 1)
    else:
        spec, reach = WINDOWS_AFTER_A_FIRST_LAYER, range(-2 * 2, 2 * 2 + 1)
    stack = getattr(spec, side)
    spec = spec.replace(
        **{side: stack.replace(num_layers=2, blocks=stack.blocks[:1], first_blocks=())}
    )
    position = 4
    actual = moved(spec, make_batch(spec), f"{side}_input_tokens", position)
    assert actual == [second - position in reach for second in range(LENGTH)]
    if side == "decoder":  # a prefix opens what is ahead, within the window
        actual = moved(spec, make_batch(spec, prefix=LENGTH), f"{side}_input_tokens", 8)
        assert actual == [abs(second - 8) <= 6 for second in range(LENGTH)]


@every_model
def test_packed_texts_are_as_if_alone_and_padding_is_unseen(spec):
    """Two texts in either order, and each in front of padding."""
    a, b = draw_tokens(10, 7), draw_tokens(11, 5)

    def places(*texts):
        return np.concatenate([np.arange(len(text), dtype=np.int32) for text in texts])

    together = make_batch(
        spec,
        np.stack([np.concatenate([a, b]), np.concatenate([b, a])]),
        segments=np.stack([np.repeat([1, 2], [7, 5]), np.repeat([1, 2], [5, 7])]).astype(np.int32),
        prefix=np.stack([places(a, b), places(b, a)]) < 3,
    )
    junk = draw_tokens(12, LENGTH)
    apart = make_batch(
        spec,
        np.stack([np.concatenate([a, junk[7:]]), np.concatenate([b, junk[5:]])]),
        segments=np.stack([np.arange(LENGTH) < 7, np.arange(LENGTH) < 5]).astype(np.int32),
        prefix=3,
    )
    if spec.num_token_types is not None:
        together["token_types"] = apart["token_types"] = np.zeros((2, LENGTH), np.int32)
    packed, alone = hidden(spec, together), hidden(spec, apart)
    for actual, expected in (
        (packed[0, :7], alone[0, :7]),
        (packed[1, 5:], alone[0, :7]),
        (packed[0, 7:], alone[1, :5]),
        (packed[1, :5], alone[1, :5]),
    ):
        np.testing.assert_allclose(actual, expected, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "prefix"), [*((name, False) for name in GENERATORS), *((n, True) for n in DECODERS)]
)
@pytest.mark.light("capped_in_windows")
def test_cached_decoding_is_the_full_forward_pass(name, prefix):
    """Behind prompts of 7 and 4 tokens, which a decoder alone may see in both directions."""
    spec = GENERATORS[name]
    alone = spec.topology == "decoder"
    params, model = random_params(spec), Model(spec)
    lengths = np.array([7, 4], np.int32) if alone else np.ones(2, np.int32)
    inside = np.arange(LENGTH)[None] < lengths[:, None]
    batch = make_batch(spec, prefix=inside * prefix)
    expected = outcome(spec, params, batch)[0]["lm"]

    tokens = batch["decoder_input_tokens"]
    prompts = {"decoder_input_tokens": (tokens * inside)[:, :8], "decoder_lengths": lengths}
    if alone:
        prompts["decoder_causal_attention"] = batch["decoder_causal_attention"][:, :8]
    else:
        prompts = {name: rows for name, rows in batch.items() if name.startswith("encoder")}
    cache, at = start(model, params, prompts), lengths - 1
    for _ in range(2):
        ahead = at[:, None] + np.arange(2)[None]
        actual, cache = extend(model, params, np.take_along_axis(tokens, ahead, 1), cache)
        reference = np.take_along_axis(np.asarray(expected), ahead[..., None], 1)
        np.testing.assert_allclose(actual, reference, atol=5e-5)
        at = at + 2
    assert cache.lengths.tolist() == at.tolist()


start = jax.jit(
    lambda model, *args: model.start(*args, max_length=LENGTH, draft_length=1), static_argnums=0
)
extend = jax.jit(lambda model, *args: model.extend(*args), static_argnums=0)


# Ways to compute.


def step(spec, compute):
    """Loss, all outcomes and gradients, of parameters and a batch."""

    def loss(params, batch):
        actual, aux = outcome(spec, params, batch, compute)
        total = sum(jnp.mean(jnp.sin(item)) for item in actual.values())
        return total + 10 * sum(aux.values(), jnp.float32(0)), (actual, aux)

    return jax.value_and_grad(loss, has_aux=True)


def close(actual, expected, **tolerances):
    jax.tree.map(
        functools.partial(
            np.testing.assert_allclose, **({"rtol": 1e-3, "atol": 2e-5} | tolerances)
        ),
        actual,
        expected,
    )


def test_unrolled_it_is_the_same():
    spec = CAPPED_IN_WINDOWS
    params, batch = random_params(spec), make_batch(spec)
    expected = outcome(spec, params, batch)
    close(outcome(spec, params, batch, ComputeSpec(scan=False)), expected)


@pytest.mark.slow
def test_unrolled_and_in_part_computed_again_it_is_the_same():
    """Values, auxiliary losses and gradients of every parameter, each used by two layers."""
    spec = SIDE_BY_SIDE_AND_SHARED
    stack = spec.decoder
    spec = spec.replace(decoder=stack.replace(num_layers=2, blocks=stack.blocks[1:]))
    params, batch = random_params(spec), make_batch(spec)
    expected = jax.jit(step(spec, ComputeSpec()))(params, batch)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected[1]))
    close(jax.jit(step(spec, ComputeSpec(scan=False, remat="minimal")))(params, batch), expected)


def on_eight_devices(fn, spec, params, batch):
    """Runs a function of parameters and a batch that is there twice, for four of its axes."""
    layout = Layout({"data": 2, "fsdp": 2, "tensor": 2})
    mesh = make_mesh(layout)
    placed = jax.device_put(params, shardings(Model(spec).axes(), layout.parameters, mesh))
    batch = {key: np.concatenate([rows, rows]) for key, rows in batch.items()}
    rows = shardings(PartitionSpec("batch", "length"), layout.activations, mesh)
    return with_layout(fn, layout, mesh)(placed, jax.device_put(batch, rows))


def test_on_eight_devices_values_are_the_same():
    spec = UNEQUAL_WIDTHS_AND_EXPERTS
    params, batch = random_params(spec), make_batch(spec)

    def run(params, batch):
        return outcome(spec, params, batch)

    actual, aux = on_eight_devices(run, spec, params, batch)
    close((jax.tree.map(lambda rows: rows[2:], actual), aux), outcome(spec, params, batch))


@pytest.mark.slow
def test_on_eight_devices_and_computed_again_gradients_are_the_same():
    spec = FACTORISED_AND_SHARED
    params, batch = random_params(spec), make_batch(spec)
    (expected, _), gradients = jax.jit(step(spec, ComputeSpec()))(params, batch)
    again = step(spec, ComputeSpec(remat="full"))
    (actual, _), actual_gradients = on_eight_devices(again, spec, params, batch)
    close((actual, actual_gradients), (expected, gradients))


@every_model
@pytest.mark.light("factorised_and_shared")
def test_parameters_may_be_bfloat16_while_computing_in_float32(spec):
    """They give what the same numbers do as float32."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(spec))
    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    batch = make_batch(spec)
    actual, expected = outcome(spec, half, batch), outcome(spec, full, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype("float32")}
    close(actual, expected, rtol=1e-5, atol=1e-5)
    rounded = np.abs(expected[0]["hidden"] - hidden(spec, batch)).max()
    assert rounded > 1e-3  # so that this could fail


def test_bfloat16_is_close():
    spec = UNEQUAL_WIDTHS_AND_EXPERTS
    batch = make_batch(spec)
    actual, _ = outcome(spec, random_params(spec), batch, ComputeSpec("bfloat16"))
    assert np.mean(np.abs(actual["hidden"] - hidden(spec, batch))) < 0.05


@pytest.mark.parametrize(
    "spec", [SIDE_BY_SIDE_AND_SHARED, UNEQUAL_WIDTHS_AND_EXPERTS], ids=["shared", "both_sides"]
)
def test_auxiliary_losses_are_the_mean_over_layers_with_experts(spec):
    """A router of zeros sends all tokens to the first of three experts, with a third's weight."""

    def zero(path, leaf):
        return jnp.zeros_like(leaf) if "router" in jax.tree_util.keystr(path) else leaf

    params = jax.tree_util.tree_map_with_path(zero, random_params(spec))
    _, aux = outcome(spec, params, make_batch(spec))
    expected = {"load_balancing": 0.01, "router_z": 0.001 * np.log(3) ** 2}
    assert {name: float(loss) for name, loss in aux.items()} == pytest.approx(expected, rel=1e-5)


# Flops.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["capped_in_windows", "factorised_and_shared", "unequal_widths_and_experts"]
)
def test_flops_are_those_of_an_unrolled_program(name):
    # Wide enough that matrix products dominate.
    wide = {"embed": 96, "vocab": 256, "*.blocks.*.attention.head_dim": 32}
    spec = override(VARIED[name].replace(heads=VARIED[name].heads[:1]), wide)
    if spec.encoder is not None and spec.encoder.embed is not None:
        spec = override(spec, {"encoder.embed": 128})

    def run(params, batch):
        model = Model(spec, ComputeSpec(scan=False))
        return model.logits(params, model.hidden(params, batch)[0])

    lowered = jax.jit(run).lower(Model(spec).shapes(), make_batch(spec))
    lengths = {f"{side}_length": LENGTH for side in sides(spec)}
    counted = 2 * forward_flops(spec, **lengths)  # two rows
    assert counted < lowered.cost_analysis()["flops"] < 1.3 * counted


def test_flops_of_a_pattern_are_those_of_its_layers():
    spec = CAPPED_IN_WINDOWS
    stack, lengths = spec.decoder, {"decoder_length": LENGTH, "num_logits": 0}

    def alone(block):
        return forward_flops(
            spec.replace(decoder=stack.replace(num_layers=1, blocks=(block,), first_blocks=())),
            **lengths,
        )

    (first,), (near, everywhere) = stack.first_blocks, stack.blocks
    expected = alone(first) + 2 * alone(near) + 2 * alone(everywhere)
    assert forward_flops(spec, **lengths) == expected
    assert alone(first) < alone(near) == alone(everywhere)
    experts = SIDE_BY_SIDE_AND_SHARED.decoder.blocks[1].mlp  # each with room for a whole row
    products = 2 * LENGTH * (EMBED * experts.num_experts + experts.num_experts * 2 * EMBED * 12)
    without = near.replace(mlp=MlpSpec(1))
    assert alone(near.replace(mlp=experts)) - alone(without) == products - 4 * LENGTH * EMBED


def test_flops_of_other_widths():
    lengths = {"encoder_length": LENGTH, "decoder_length": 5, "num_logits": 0}
    narrow = FACTORISED_AND_SHARED
    projected = forward_flops(narrow, **lengths) - forward_flops(
        narrow.replace(embedding_size=None), **lengths
    )
    assert projected == 2 * LENGTH * 8 * EMBED
    wide = UNEQUAL_WIDTHS_AND_EXPERTS
    alone = wide.replace(
        embed=24, encoder=wide.encoder.replace(embed=None), decoder=None, shared_embedding=True
    )
    equal = wide.replace(encoder=wide.encoder.replace(embed=None))
    equal_alone = alone.replace(embed=EMBED)
    read = (forward_flops(wide, **lengths) - forward_flops(alone, **lengths)) - (
        forward_flops(equal, **lengths) - forward_flops(equal_alone, **lengths)
    )
    keys_and_values = 2 * 2 * 8  # two heads of each
    assert read == wide.decoder.num_layers * 2 * LENGTH * (24 - EMBED) * keys_and_values
