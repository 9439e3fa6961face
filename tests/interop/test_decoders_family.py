"""GPT-2, GPT-NeoX, LLaMA and Mistral: what their configs say, and what is refused."""

import json

import jax
import numpy as np
import pytest
from parity_cases.decoders import COUNTS, GPT2, GPT_NEOX, LLAMA, MISTRAL
from saved_models import save_huggingface

import t5lite
from t5lite.errors import InputError
from t5lite.interop.huggingface.families import family_of
from t5lite.interop.huggingface.files import open_tensors, write_tensors
from t5lite.layers import RotarySpec
from t5lite.models import Model, preset


def spec_of(config):
    """Returns the spec of a config; these families ask the weights nothing."""
    return family_of(config["model_type"]).spec(config, None)


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_config_is_the_preset_and_comes_back(name):
    spec = spec_of(COUNTS[name][0])
    assert spec == preset(name)
    assert spec_of(family_of(spec.family).config(spec)) == spec


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gpt2", {"model_type": "gpt2"}),
        ("llama2_7b", {"model_type": "llama", "rms_norm_eps": 1e-5}),
        ("mistral_7b_v0_1", {"model_type": "mistral", "rms_norm_eps": 1e-5}),
        ("gpt_neox_20b", {"model_type": "gpt_neox", "hidden_act": "gelu_fast"}),
    ],
)
def test_what_a_config_leaves_out_is_the_default(name, config):
    assert spec_of(config) == preset(name)


SCALINGS = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_positions_read_alike_in_both_forms(kind):
    scaling = {"rope_type": kind, **SCALINGS[kind]}
    old = {**LLAMA, "rope_theta": 300.0, "rope_scaling": scaling}
    older = {**LLAMA, "rope_theta": 300.0, "rope_scaling": {"type": kind, **SCALINGS[kind]}}
    new = {**LLAMA, "rope_parameters": {"rope_theta": 300.0, **scaling}}
    spec = spec_of(new)
    rotary = spec.decoder.blocks[0].attention.rotary
    assert spec_of(old) == spec == spec_of(older)
    assert rotary.theta == 300.0
    assert (rotary.scaling is None) == (kind == "default")
    assert spec_of(family_of("llama").config(spec)) == spec


def test_partial_positions_read_alike_in_both_forms():
    old = {**GPT_NEOX, "rotary_pct": 0.5, "rotary_emb_base": 300}
    parameters = {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5}
    new = {**GPT_NEOX, "rope_parameters": parameters}
    assert spec_of(old) == spec_of(new)
    assert spec_of(old).decoder.blocks[0].attention.rotary == RotarySpec(300.0, 0.5)


def test_yarn_takes_its_length_from_the_config():
    scaling = {"rope_type": "yarn", "factor": 4.0}
    spec = spec_of({**LLAMA, "rope_scaling": scaling, "max_position_embeddings": 77})
    assert spec.decoder.blocks[0].attention.rotary.scaling.original_length == 77


def test_start_ids():
    assert spec_of({**LLAMA, "bos_token_id": 5}).start_id == 5
    assert spec_of({**LLAMA, "bos_token_id": None, "eos_token_id": [7, 8]}).start_id == 7
    assert spec_of({**LLAMA, "bos_token_id": 97, "eos_token_id": None}).start_id == 0


def test_a_window_counts_distances():
    assert spec_of({**MISTRAL, "sliding_window": 4}).decoder.blocks[0].attention.window == 3


def test_precision_is_no_part_of_the_model():
    assert spec_of({**GPT2, "reorder_and_upcast_attn": True}) == spec_of(GPT2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.*'dynamic'"),
        ({**LLAMA, "rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.*'longrope'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor .* None"),
        ({**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({**LLAMA, "hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu'"),
        (
            {**LLAMA, "architectures": ["LlamaForMultipleChoice"]},
            "LlamaForMultipleChoice.*LlamaForCausalLM, LlamaModel, LlamaForS",
        ),
        (
            {**MISTRAL, "sliding_window": 4, "layer_types": ["full_attention"]},
            "layer_types.*'full_attention'",
        ),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention = True"),
        ({**GPT2, "architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
    ],
)
def test_an_unsupported_config_is_named(config, message):
    with pytest.raises(InputError, match=message):
        spec_of(config)


def test_files_without_prefix_and_with_masks_open(tmp_path):
    """As the hub's GPT-2 is: the model with its head, in the names of the one without."""
    rng = np.random.default_rng(0)
    base = spec_of({**GPT2, "architectures": ["GPT2Model"]})
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), Model(base).shapes()
    )
    save_huggingface(tmp_path, base, params)
    source = open_tensors(tmp_path)
    tensors = {name: np.array(source.read(name)) for name in source.tensors()}
    assert "wte.weight" in tensors
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = np.ones((1, 1, 29, 29), np.uint8)
        tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    write_tensors(
        tmp_path,
        [
            (name, jax.ShapeDtypeStruct(array.shape, array.dtype), lambda array=array: array)
            for name, array in tensors.items()
        ],
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **GPT2}))
    loaded = t5lite.load(tmp_path, devices=jax.devices()[:1])
    assert loaded.spec == spec_of(GPT2)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
