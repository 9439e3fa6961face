"""Configs that are malformed, and specs that no config holds: field, value and file are named."""

import dataclasses
import re

import jax
import pytest
from small_folders import copied

import t5lite
from t5lite.errors import InputError
from t5lite.interop import huggingface
from t5lite.interop.huggingface.families import MODULES, family_of, gpt2
from t5lite.interop.tensors import Arrays
from t5lite.models import BlockSpec, preset

ONE = jax.devices()[:1]
LLAMA = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", {"hidden_size": "4096"}, "hidden_size = '4096': must be an integer"),
        ("llama", {"num_hidden_layers": None}, "num_hidden_layers = None: must be an integer"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads = 0: must be at least 1"),
        ("llama", {"num_key_value_heads": [2]}, r"num_key_value_heads = \[2\]: must be an integer"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6': must be a number"),
        ("llama", {"attention_bias": "no"}, "attention_bias = 'no': must be true or false"),
        ("llama", {"attention_dropout": 1.5}, r"attention_dropout = 1.5: must be in \[0, 1\)"),
        ("llama", {"hidden_act": ["silu"]}, r"hidden_act = \['silu'\]: must be a string"),
        ("llama", {"architectures": "LlamaModel"}, "architectures = 'LlamaModel': must be a list"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear': must be an object"),
        (
            "llama",
            {"rope_parameters": None, "rope_theta": "big"},
            "rope_theta must be a number, not 'big'",
        ),
        (
            "llama",
            {"rope_scaling": {**LLAMA, "original_max_position_embeddings": "8k"}},
            "rope_scaling: original_max_position_embeddings must be an integer, not '8k'",
        ),
        ("bert", {"hidden_size": 50}, "hidden_size = 50 is not a multiple of num_attention_heads"),
        ("bert", {"pad_token_id": "[PAD]"}, r"pad_token_id = '\[PAD\]': must be an integer"),
        ("bert_classes", {"id2label": ["a", "b"]}, r"id2label = \['a', 'b'\]: must be an object"),
        ("gpt2", {"n_layer": 2.5}, "n_layer = 2.5: must be an integer"),
        (
            "t5gemma",
            {"encoder": {"num_hidden_layers": "two"}},
            r"encoder.num_hidden_layers = 'two'",
        ),
        ("t5_1_1", {"num_heads": True}, "num_heads = True: must be an integer"),
    ],
)
def test_a_malformed_config_names_field_value_and_file(case, changes, message, tmp_path):
    folder = copied(case, tmp_path / "model", **changes)
    with pytest.raises(InputError, match=f"^{message}") as raised:
        t5lite.load(folder, devices=ONE)
    assert str(folder / "config.json") in str(raised.value)


@pytest.mark.parametrize("model_type", MODULES)
def test_every_field_of_a_table_refuses_another_type(model_type):
    family = family_of(model_type)
    for name, field in family.fields.items():
        if field.kind is not object:
            with pytest.raises(InputError, match=f"^{re.escape(name)} = "):
                family.spec({"model_type": model_type, name: (1, 2)}, Arrays({}, lambda _: None))


@dataclasses.dataclass(frozen=True)
class MyBlockSpec(BlockSpec):
    """A layer that transformers has no class for."""


@pytest.mark.parametrize("name", ["gpt2", "bert_base", "t5_small", "bart_base"])
def test_a_block_of_ones_own_is_named(name):
    spec = preset(name)
    side = "decoder" if name == "gpt2" else "encoder"
    stack = getattr(spec, side).replace(blocks=(MyBlockSpec(),), position_bias=None)
    with pytest.raises(InputError, match=rf"^{side}\.blocks\.0 = MyBlockSpec: .*{spec.family!r}"):
        huggingface.describe(spec.replace(**{side: stack}))


@pytest.mark.parametrize("family", ["bart", "gpt2", "gpt_neox"])
def test_a_gated_mlp_is_named(family):
    spec = preset("t5_1_1_base" if family == "bart" else "llama2_7b")
    with pytest.raises(
        InputError, match=rf"(?s)^ModelSpec.family = '{family}': .*mlp\.gated: True"
    ):
        huggingface.describe(spec.replace(family=family))


def test_a_programming_error_is_not_swallowed(monkeypatch):
    def broken(spec):
        raise TypeError("ours")

    family = dataclasses.replace(gpt2.FAMILIES["gpt2"], tensors=broken)
    monkeypatch.setitem(gpt2.FAMILIES, "gpt2", family)
    with pytest.raises(TypeError, match="ours"):
        huggingface.describe(preset("gpt2"))
