"""Attention weights, losses and attributions are what they are said to be, in every topology."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES
from small_folders import add_tokenizer

import t5lite
from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.inference import Engine, Loaded, attention_maps, attribution
from t5lite.interop import Description
from t5lite.layers import AttentionSpec, LMHeadSpec, MlpSpec, RelativeBiasSpec
from t5lite.models import ComputeSpec, Model, ModelSpec, StackSpec, TransformerBlockSpec, override
from t5lite.objectives.masked_lm import mask_of
from t5lite.parallel import Layout, make_mesh

BYTES = Bytes(num_sentinels=2)
ONE = jax.devices()[:1]
SMALL = {"vocab": BYTES.size, "embed": 16, "*.num_layers": 2, "*.blocks.*.mlp.hidden": 8}
HEADS = {"*.blocks.*.attention.num_heads": 2, "*.blocks.*.attention.head_dim": 8}
CROSS = {"decoder.blocks.*.cross_attention.num_heads": 2}
SPECS = {
    "encoder_decoder": override("t5_nano", SMALL | HEADS | CROSS),  # tied, and scaled
    "decoder": override("gpt_nano", SMALL | HEADS | {"decoder.position_embedding.max_length": 12}),
    "encoder": override("bert_base", SMALL | HEADS),
}
TEXTS = {
    "encoder_decoder": ("the cat", "sat"),
    "decoder": ("a cat sat", None),
    "encoder": ("dogs", None),
}


def drawn(spec, seed=0):
    """Draws parameters, those too that begin as ones and zeros."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.3 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, Model(spec).shapes())


@functools.cache
def loaded(topology):
    spec, layout = SPECS[topology], Layout()
    mesh = make_mesh(layout, ONE)
    engine = Engine(Model(spec), BYTES, layout, mesh)
    return Loaded(engine, drawn(spec), Description(spec), folder="a folder")


@functools.cache
def looked_into(topology):
    return attention_maps(loaded(topology), *TEXTS[topology])


@functools.cache
def attributed(topology):
    return attribution(loaded(topology), *TEXTS[topology])


def batches(topology):
    """Returns the batches of one row that the outputs are read from, one or one for each."""
    text, targets = TEXTS[topology]
    ids = BYTES.encode(text)
    if topology == "decoder":
        return [{"decoder_input_tokens": np.array([[0, *ids]], np.int32)}], ids
    if topology == "encoder":
        rows = np.tile(np.array([[*ids, 1]], np.int32), (len(ids), 1))
        rows[np.arange(len(ids)), np.arange(len(ids))] = mask_of(BYTES)
        return [{"encoder_input_tokens": row[None]} for row in rows], ids
    outputs = [*BYTES.encode(targets), 1]
    batch = {
        "encoder_input_tokens": np.array([[*ids, 1]], np.int32),
        "decoder_input_tokens": np.array([[0, *outputs[:-1]]], np.int32),
    }
    return [batch], outputs


@functools.partial(jax.jit, static_argnums=0)
def log_probabilities(model, params, batch, scale):
    """Those of one row, with all token embeddings `scale` times as large as they are."""
    table = params["token_embedding"]["embedding"] * scale
    scaled = params | {"token_embedding": {"embedding": table}}
    hidden, _ = model.hidden(scaled, batch)
    return jax.nn.log_softmax(model.logits(params, hidden)[0])


def expected(topology, scale=1.0):
    """Returns the log-probability of each output."""
    model = loaded(topology)
    rows, outputs = batches(topology)
    message = [
        np.asarray(log_probabilities(model.model, model.params, row, jnp.float32(scale)))
        for row in rows
    ]
    return np.array([message[min(n, len(rows) - 1)][n, token] for n, token in enumerate(outputs)])


@pytest.mark.parametrize("topology", SPECS)
@pytest.mark.slow
def test_losses_are_those_of_the_logits(topology):
    inside = looked_into(topology)
    np.testing.assert_allclose(inside.losses, -expected(topology), rtol=1e-5)
    assert inside.outputs == [BYTES.piece(token) for token in batches(topology)[1]]
    for loss, piece, likeliest in zip(
        inside.losses, inside.outputs, inside.alternatives, strict=True
    ):
        chances = [chance for _, chance in likeliest]
        assert chances == sorted(chances, reverse=True)
        assert len(chances) == 5
        assert dict(likeliest).get(piece, np.exp(-loss)) == pytest.approx(np.exp(-loss), rel=1e-4)
        assert chances[0] >= np.exp(-loss) * (1 - 1e-5)


@pytest.mark.parametrize("topology", SPECS)
def test_rows_of_weights_sum_to_one_and_none_looks_ahead(topology):
    inside = looked_into(topology)
    sizes = {stack: len(tokens) for stack, tokens in inside.tokens.items()}
    shapes = {stack: (size, size) for stack, size in sizes.items()}
    if len(sizes) == 2:
        shapes["cross"] = (sizes["decoder"], sizes["encoder"])
    assert list(inside.maps) == list(shapes)
    for kind, maps in inside.maps.items():
        assert [item.shape for item in maps] == [(2, *shapes[kind])] * 2
        for item in maps:
            assert item.dtype == np.float32
            np.testing.assert_allclose(item.sum(-1), 1, rtol=1e-5)
            assert item.std() > 0.01
            assert np.any(np.triu(item, 1)) == (kind != "decoder")


def test_one_head_by_hand():
    spec = override(SPECS["decoder"], {"*.num_layers": 1, "*.blocks.*.attention.num_heads": 1})
    params = drawn(spec)
    tokens = np.array([[0, 5, 9, 5]], np.int32)
    ((weights,),) = Model(spec).attention(params, {"decoder_input_tokens": tokens}).values()
    params = jax.tree.map(np.asarray, params)
    layer = jax.tree.map(lambda leaf: leaf[0], params["decoder"]["layers"]["block_0"])
    positions = params["decoder"]["position_embedding"]["embedding"]
    x = params["token_embedding"]["embedding"][tokens[0]] + positions[:4]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * layer["attention_norm"]["scale"] + layer["attention_norm"]["bias"]
    query, key = (
        x @ layer["attention"][name]["kernel"][:, 0] + layer["attention"][name]["bias"][0]
        for name in ("query", "key")
    )
    logits = np.where(np.tri(4) > 0, query @ key.T / np.sqrt(8), -np.inf)
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    by_hand = exponents / exponents.sum(-1, keepdims=True)
    np.testing.assert_allclose(weights[0, 0], by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compute", [ComputeSpec(), ComputeSpec(scan=False, attention="chunked")])
def test_layers_are_in_order(compute):
    """One layer before the pattern, two turns of it, and a remainder; heads differ by block."""
    two, three = (TransformerBlockSpec(AttentionSpec(heads, 4), MlpSpec(8)) for heads in (2, 3))
    bias = RelativeBiasSpec(8, 16, per_layer=True)
    stack = StackSpec(6, (two, three), True, first_blocks=(three,), position_bias=bias)
    model = Model(ModelSpec("t5", 20, 8, decoder=stack, heads=(LMHeadSpec(),)), compute)
    tokens = jnp.asarray([[0, 3, 4, 5, 6]], jnp.int32)
    look = jax.jit(lambda params: model.attention(params, {"decoder_input_tokens": tokens}))
    params = drawn(model.spec)
    for layer in range(6):
        # A layer of no queries and no bias looks at all alike.
        path, turn = stack.location(layer)
        part, block = path.split("/")
        changed = jax.tree.map(lambda leaf: leaf, params)
        actual = changed["decoder"][part][block]
        for module, name in (("attention", "query"), ("position_bias", "embedding")):
            branch = actual[module]
            leaves, tree = jax.tree.flatten(branch[name])
            zeroed = [leaf * 0 if turn is None else leaf.at[turn].set(0) for leaf in leaves]
            branch[name] = jax.tree.unflatten(tree, zeroed)
        weights = jax.device_get(look(changed)["decoder"])
        assert [item.shape[1] for item in weights] == [3, 2, 3, 2, 3, 2]
        uniform = np.tri(5) / np.arange(1, 6)[:, None]
        even = [bool(np.abs(item[0] - uniform).max() < 1e-6) for item in weights]
        assert even == [item == layer for item in range(6)]


def test_turns_that_share_parameters_are_apart():
    spec = override(SPECS["encoder"], {"encoder.shared_layers": True})
    batch = {"encoder_input_tokens": jnp.asarray([[3, 4, 5, 6]], jnp.int32)}
    first, second = Model(spec).attention(drawn(spec), batch)["encoder"]
    assert np.abs(np.asarray(first - second)).max() > 0.01


@pytest.mark.parametrize("topology", SPECS)
@pytest.mark.light("decoder")
def test_attributions_of_an_output_sum_to_its_slope(topology):
    slope = (expected(topology, 1.002) - expected(topology, 0.998)) / 0.004
    sums = attributed(topology).sum(axis=1)
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(sums, slope, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("topology", ["decoder", "encoder_decoder"])
def test_attribution_is_causal(topology):
    inside, actual = looked_into(topology), attributed(topology)
    width = len(inside.tokens["decoder"])
    assert actual.shape == (len(inside.outputs), sum(map(len, inside.tokens.values())))
    causal = np.tri(len(inside.outputs), width) > 0
    assert not np.any(actual[:, -width:][~causal])
    assert np.all(actual[:, -width:][causal])
    assert np.all(actual[:, :-width])


def test_an_encoder_without_logits_shows_its_weights():
    encoder = loaded("encoder")
    spec = override(SPECS["encoder"], {"heads": ()})
    params = {k: v for k, v in encoder.params.items() if not k.endswith("_head")}
    engine = dataclasses.replace(encoder.engine, model=Model(spec))
    bare = Loaded(engine, params, Description(spec), folder="here")
    inside = attention_maps(bare, "dogs")
    assert inside.no_losses == "here has no head for tokens"
    assert (inside.outputs, len(inside.losses), inside.alternatives) == ([], 0, [])
    np.testing.assert_allclose(inside.maps["encoder"][1], looked_into("encoder").maps["encoder"][1])
    with pytest.raises(InputError, match="nothing is predicted: here has no head"):
        attribution(bare, "dogs")


@pytest.mark.parametrize(
    ("topology", "text", "targets", "problem"),
    [
        ("decoder", "", None, "the text is empty"),
        ("decoder", "cats", "dogs", "targets = 'dogs': are for encoder-decoders, and a folder"),
        ("encoder", "cats", "dogs", "holds one encoder; give the text alone"),
        ("decoder", "a cat sat on it", None, "a sequence of 16 tokens.* learned positions for 12"),
        ("encoder_decoder", "<extra_id_7>", "a", "<extra_id_7> in a text"),
    ],
)
@pytest.mark.parametrize("look", [attention_maps, attribution])
def test_mistakes(look, topology, text, targets, problem):
    with pytest.raises(InputError, match=problem):
        look(loaded(topology), text, targets)


def test_no_vocabulary():
    one = loaded("decoder")
    engine = dataclasses.replace(one.engine, vocabulary=None)
    bare = Loaded(engine, one.params, Description(one.spec), folder="here")
    with pytest.raises(InputError, match="no tokenizer in here"):
        attention_maps(bare, "a")


installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="pip install 't5lite[parity]' for transformers")
@pytest.mark.parametrize(
    "name",
    [
        "modernbert",
        "switch",
        "gpt_neox",
        "t5gemma_widths",
        "gpt2",
        "llama",
        "gemma2",
        "t5_1_1",
        "t5_shallow_decoder",
        "bart",
        "t5gemma",
        "bert",
        "albert",
    ],
)
def test_attention_equals_transformers(name, tmp_path):
    import torch
    from parity import build

    config = CASES[name]
    theirs = build(config, seed=3)
    theirs.save_pretrained(tmp_path)
    add_tokenizer(tmp_path)
    ours = t5lite.load(tmp_path, dtype="float32", devices=ONE)
    vocabulary, topology = ours.vocabulary, ours.model.topology
    text, targets = "the cat", "sat" if topology == "encoder_decoder" else None
    inside, actual = attention_maps(ours, text, targets), attribution(ours, text, targets)

    def tensor(ids):
        return torch.tensor([ids])

    ids = vocabulary.encode(text)
    places, outputs, start = range(len(ids)), ids, ours.model.start_id
    read = {"": [start, *ids] if topology == "decoder" else vocabulary.frame(ids)}
    if topology == "encoder_decoder":
        outputs = list(ours.prompts.targets(vocabulary.encode(targets)))
        places, read["decoder_"] = range(len(outputs)), [start, *outputs[:-1]]
    with torch.no_grad():
        provided = {f"{side}input_ids": tensor(part) for side, part in read.items()}
        message = theirs(**provided, output_attentions=True)
    names = {
        "encoder": "encoder_attentions" if "decoder_" in read else "attentions",
        "decoder": "decoder_attentions" if "decoder_" in read else "attentions",
        "cross": "cross_attentions",
    }
    for kind, maps in inside.maps.items():
        for mine, other in zip(maps, getattr(message, names[kind]), strict=True):
            np.testing.assert_allclose(mine, other[0].numpy(), atol=2e-5)

    for index, (position, output) in enumerate(zip(places, outputs, strict=True)):
        rows = {side: list(part) for side, part in read.items()}
        if topology == "encoder":
            position += 1  # [CLS] stands before
            rows[""][position] = vocabulary.mask_id
        inputs = {}
        for side, part in rows.items():
            stack = theirs.get_decoder() if side else theirs.get_input_embeddings()
            table = stack.get_input_embeddings() if side else stack
            inputs[f"{side}inputs_embeds"] = table(tensor(part)).detach().requires_grad_()
        chance = theirs(**inputs).logits[0, position].log_softmax(-1)[output]
        chance.backward()
        parts = [(item.grad * item).sum(-1)[0].detach().numpy() for item in inputs.values()]
        assert -chance.item() == pytest.approx(inside.losses[index], abs=1e-4)
        np.testing.assert_allclose(actual[index], np.concatenate(parts), atol=2e-4)
