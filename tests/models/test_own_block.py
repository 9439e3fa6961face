"""The seam of blocks: one of a user's own does all that the built-in one does, or is refused.

It stands between layers of attention, so that a stack, its scan and its cache hold both kinds.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gated_linear_attention import GatedLinearAttentionSpec
from tiny_models import random_params

from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.inference import Engine, Loaded
from t5lite.interop import Description, save
from t5lite.layers import AttentionSpec, LMHeadSpec, MlpSpec, RotarySpec
from t5lite.models import (
    ComputeSpec,
    Model,
    ModelSpec,
    StackSpec,
    TransformerBlockSpec,
    forward_flops,
    load_spec,
    save_spec,
)
from t5lite.parallel import Layout, make_mesh

EMBED, VOCAB, LENGTH, MLP = 16, 384, 10, MlpSpec(24)
OWN = GatedLinearAttentionSpec(MLP, num_heads=2, head_dim=4)
ATTENTION = TransformerBlockSpec(AttentionSpec(2, 8, rotary=RotarySpec()), MLP)
# A pattern of two, twice, and a layer after it.
SPEC = ModelSpec(
    "own", VOCAB, EMBED, decoder=StackSpec(5, (OWN, ATTENTION), causal=True), heads=(LMHeadSpec(),)
)
ALONE = SPEC.replace(decoder=StackSpec(2, (OWN,), causal=True))
RNG = np.random.default_rng(0)


def tokens_of(rows=3, length=LENGTH):
    return jnp.asarray(RNG.integers(3, VOCAB, (rows, length)), jnp.int32)


@functools.partial(jax.jit, static_argnames=("spec", "compute"))
def logits(spec, params, batch, compute=ComputeSpec()):
    model = Model(spec, compute)
    return model.logits(params, model.hidden(params, batch)[0])


def test_a_token_depends_on_no_later_one():
    params, tokens = random_params(ALONE), tokens_of()
    model = Model(ALONE)

    def norm_at(embedding):
        hidden, _ = model.hidden(
            params | {"token_embedding": {"embedding": embedding}}, {"decoder_input_tokens": tokens}
        )
        return jnp.sum(jnp.square(hidden[0, 4]))

    gradient = jax.jit(jax.grad(norm_at))(params["token_embedding"]["embedding"])
    moving = {int(token) for token in np.flatnonzero(np.abs(gradient).sum(axis=1))}
    assert moving == {int(token) for token in tokens[0, :5]}


def test_packed_texts_are_as_if_alone():
    params, tokens = random_params(SPEC), tokens_of(1)
    segments = jnp.asarray([[1] * 4 + [2] * 5 + [0]], jnp.int32)
    packed = logits(
        SPEC,
        params,
        {
            "decoder_input_tokens": tokens,
            "decoder_segment_ids": segments,
        },
    )
    for begin, end in ((0, 4), (4, 9)):
        alone = logits(SPEC, params, {"decoder_input_tokens": tokens[:, begin:end]})
        np.testing.assert_allclose(packed[:, begin:end], alone, atol=2e-5)


@pytest.mark.parametrize("spec", [SPEC, ALONE], ids=["hybrid", "alone"])
def test_cached_steps_are_the_full_pass_in_ragged_rows(spec):
    """With as many rows as layers, which a permutation of the wrong axis would mix up."""
    params, tokens = random_params(spec), tokens_of(2)
    whole = logits(spec, params, {"decoder_input_tokens": tokens})
    lengths, order = np.array([5, 2]), jnp.array([1, 0], jnp.int32)
    stacked = Model(spec)
    for model, own in ((stacked, params), (stacked.unstacked, stacked.unstack(params))):
        prompts = {"decoder_input_tokens": tokens[:, :5], "decoder_lengths": jnp.asarray(lengths)}
        cache = jax.jit(model.start, static_argnames="max_length")(own, prompts, max_length=LENGTH)
        extend = jax.jit(model.extend)
        swapped = cache.reorder(order)
        for step in range(LENGTH - 5):
            fed = tokens[jnp.arange(2), jnp.asarray(lengths + step - 1)][:, None]
            message, cache = extend(own, fed, cache)
            second, swapped = extend(own, fed[order], swapped)
            np.testing.assert_array_equal(message[order], second)
            for row in range(2):
                expected = whole[row, lengths[row] + step - 1]
                np.testing.assert_allclose(message[row, 0], expected, atol=5e-5)


def test_it_trains_scanned_or_not_rematerialised_or_not():
    tokens = np.tile(np.arange(3, 3 + LENGTH, dtype=np.int32), (4, 1))
    batch = {
        "decoder_input_tokens": jnp.asarray(tokens),
        "decoder_target_tokens": jnp.asarray(np.roll(tokens, -1, axis=1)),
    }

    def loss_of(compute):
        model = Model(SPEC, compute)

        def loss(params):
            hidden, _ = model.hidden(params, batch)
            log_probabilities = jax.nn.log_softmax(model.logits(params, hidden))
            chosen = jnp.take_along_axis(
                log_probabilities, batch["decoder_target_tokens"][..., None], axis=-1
            )
            return -jnp.mean(chosen)

        return jax.jit(jax.value_and_grad(loss))

    params = Model(SPEC).init(jax.random.key(0))
    step = loss_of(ComputeSpec())
    first, gradients = step(params)
    value, second = loss_of(ComputeSpec(scan=False, remat="full"))(params)
    assert float(value) == pytest.approx(float(first), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, second)
    for _ in range(30):
        loss, gradients = step(params)
        params = jax.tree.map(
            lambda leaf, slope: leaf - jnp.float32(0.3) * slope, params, gradients
        )
    assert float(loss) < 0.5 * float(first)


def test_it_counts_its_products():
    size = OWN.num_heads * OWN.head_dim
    own = 5 * 2 * LENGTH * EMBED * size + 4 * LENGTH * size * OWN.head_dim
    own += 2 * 2 * LENGTH * EMBED * MLP.hidden
    assert forward_flops(ALONE, decoder_length=LENGTH, num_logits=0) == 2 * own
    attention = forward_flops(
        SPEC.replace(decoder=StackSpec(2, (ATTENTION,), causal=True)),
        decoder_length=LENGTH,
        num_logits=0,
    )
    assert forward_flops(SPEC, decoder_length=LENGTH, num_logits=0) == 3 * own + attention


def test_it_is_saved_and_loaded_with_its_model(tmp_path):
    save_spec(tmp_path / "model.json", SPEC)
    assert load_spec(tmp_path / "model.json") == SPEC


def test_it_writes_and_a_draft_is_refused(tmp_path):
    mesh = make_mesh(Layout(), jax.devices()[:1])
    engine = Engine(Model(SPEC), Bytes(), Layout(), mesh)
    loaded = Loaded(engine, random_params(SPEC), Description(SPEC))
    texts = ["a cat", "dogs sat on mats"]
    together = loaded.generate(texts, max_new_tokens=6)
    assert together == [loaded.generate([text], max_new_tokens=6)[0] for text in texts]
    assert loaded.generate(texts, max_new_tokens=6, num_beams=2)
    with pytest.raises(InputError, match="GatedLinearAttentionSpec keeps a state"):
        loaded.generate(texts, max_new_tokens=6, draft="prompt")
    with pytest.raises(InputError, match="no position bias"):
        OWN.make(
            EMBED,
            dtype=jnp.dtype("float32"),
            dropout_rate=0.0,
            causal=False,
            position_bias=None,
            kernel="auto",
        )


@pytest.mark.slow
def test_a_verb_imports_its_module_by_a_flag(tmp_path):
    vocabulary = Bytes(num_sentinels=ALONE.vocab - 259)
    save(tmp_path / "run", Description(ALONE, vocabulary=vocabulary), random_params(ALONE))
    command = [sys.executable, "-m", "t5lite.main", "generate", "--model_dir=run"]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])

    def generate(*flags):
        return subprocess.run(
            [*command, "--max_new_tokens=2", "a cat", *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )

    refused = generate()
    assert refused.returncode == 2
    assert "--module=gated_linear_attention" in refused.stderr
    answered = generate("--module=gated_linear_attention")
    assert answered.returncode == 0, answered.stderr
    misspelt = generate("--module=gated")
    assert misspelt.returncode == 2
    assert "cannot import module 'gated'" in misspelt.stderr


def test_a_spec_that_is_not_a_block_is_refused():
    with pytest.raises(InputError, match=r"StackSpec.blocks = .*: must be a tuple of BlockSpecs"):
        StackSpec(2, (MLP,), causal=True)
