"""Specs: checks, JSON, overrides, differences."""

import json

import pytest
from tiny_models import SPECS, tiny

from t5lite.errors import InputError
from t5lite.layers import AttentionSpec, MlpSpec, RotarySpec, Spec
from t5lite.models import PRESETS, differences, load_spec, override, preset, save_spec


@pytest.mark.parametrize("spec", [*PRESETS.values(), *SPECS.values()], ids=[*PRESETS, *SPECS])
def test_a_spec_survives_its_file(tmp_path, spec):
    save_spec(tmp_path / "model.json", spec)
    assert load_spec(tmp_path / "model.json") == spec
    assert json.loads((tmp_path / "model.json").read_text())["format_version"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a model.json"),
        ('{"format_version": 1, "model": {}}', "format_version 1; .* train again"),
        ('{"format_version": 2, "model": {"type": "os.system"}}', "unknown spec type 'os.system'"),
        ('{"format_version": 2, "model": {"type": "MlpSpec", "hiden": 3}}', "did you mean hidden"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_spec(tmp_path / "model.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_spec(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MlpSpec(3.7), "MlpSpec.hidden = 3.7: expected int"),
        (lambda: MlpSpec(0), "must be at least 1"),
        (lambda: MlpSpec(3, "gelu_tan"), "did you mean gelu_tanh"),
        (lambda: MlpSpec(3, gated=1), "gated = 1: expected bool"),
        (lambda: AttentionSpec(4, 8, num_kv_heads=3), "a divisor of num_heads"),
        (lambda: tiny(**{"*.dropout_rate": 1.0}), "must be in"),
        (lambda: tiny(**{"decoder.blocks.*.cross_attention.rotary": RotarySpec()}),
         "cross_attention = .* without rotary"),
        (lambda: preset("t5_1_1_bass"), "did you mean t5_1_1_base"),
        (lambda: override("t5_nano", {"decoder.blocks.*.mlp.hiden": 4}), "did you mean hidden"),
        (lambda: override("t5_nano", {"decoder.blocks.2.mlp.hidden": 4}), "neither"),
        (lambda: override("t5_nano", {"embed.size": 4}), "nothing below"),
        (lambda: override("t5_nano", {"encoder.blocks.*.cross_attention": AttentionSpec(4, 8)}),
         "behind an encoder, and in no other: see ModelSpec.encoder"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_override_reaches_every_stack_and_block():
    spec = override("t5_nano", {"*.blocks.*.mlp.hidden": 96, "decoder.num_layers": 5})
    assert spec.encoder.blocks[0].mlp.hidden == spec.decoder.blocks[0].mlp.hidden == 96
    assert (spec.encoder.num_layers, spec.decoder.num_layers) == (2, 5)
    assert preset("t5_nano").decoder.num_layers == 2


def test_differences_name_each_value():
    old, new = preset("t5_nano"), override("t5_nano", {"embed": 64, "decoder.num_layers": 3})
    assert differences(old, new) == ["decoder.num_layers: 2 -> 3", "embed: 128 -> 64"]
    assert differences(old, old) == []


def test_a_spec_of_ones_own_is_registered_by_its_name():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class TestOnlySpec(Spec):
        width: int = 3

    assert Spec.from_json({"type": "TestOnlySpec", "width": 4}) == TestOnlySpec(4)
