"""Specs: checks, JSON, overrides, differences."""

import json

import pytest
from tiny_models import SPECS, tiny
from varied_models import (
    CAPPED_IN_WINDOWS,
    FACTORISED_AND_SHARED,
    UNEQUAL_WIDTHS_AND_EXPERTS,
    VARIED,
)

from t5lite.errors import InputError
from t5lite.layers import (
    AttentionSpec,
    LMHeadSpec,
    MlpSpec,
    RelativeBiasSpec,
    RotarySpec,
    Spec,
)
from t5lite.models import PRESETS, differences, load_spec, override, preset, save_spec

ALL = PRESETS | SPECS | VARIED


@pytest.mark.parametrize("spec", ALL.values(), ids=ALL)
def test_a_spec_survives_its_file(tmp_path, spec):
    save_spec(tmp_path / "model.json", spec)
    assert load_spec(tmp_path / "model.json") == spec
    assert json.loads((tmp_path / "model.json").read_text())["format_version"] == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a model.json"),
        ('{"format_version": 1, "model": {}}', "format_version 1; .* train again"),
        ('{"format_version": 5, "model": {"type": "os.system"}}', "unknown spec type 'os.system'"),
        ('{"format_version": 5, "model": {"type": "MlpSpec", "hiden": 3}}', "did you mean hidden"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_spec(tmp_path / "model.json")


def test_a_file_from_before_blocks_were_a_protocol_opens(tmp_path):
    path = tmp_path / "model.json"
    save_spec(path, PRESETS["t5_small"])
    text = path.read_text().replace('"TransformerBlockSpec"', '"BlockSpec"')
    path.write_text(text.replace('"format_version": 6', '"format_version": 4'))
    assert load_spec(path) == PRESETS["t5_small"]


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
         "after an encoder, and in no other: see ModelSpec.encoder"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def decoder(**changes):
    return CAPPED_IN_WINDOWS.decoder.replace(**changes)


def block(**changes):
    return CAPPED_IN_WINDOWS.decoder.blocks[0].replace(**changes)


FEWER_HEADS = block(attention=AttentionSpec(2, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: block(norm_placement="inside"), "norm_placement = 'inside': expected"),
        (lambda: block(attention_norm=False), "attention_norm = False: must be True unless norms"),
        (lambda: block(parallel=True), "parallel = True: must be False .* unless norms go before"),
        (lambda: block(norm_placement="before", parallel=True,
                       cross_attention=AttentionSpec(4, 8)),
         "parallel = True: must be False with cross-attention"),
        (lambda: block(cross_attention=AttentionSpec(4, 8, window=3)),
         "cross_attention = .* without rotary and window"),
        (lambda: decoder(num_layers=0), "num_layers = 0: must be at least 1"),
        (lambda: decoder(num_layers=1, first_blocks=(block(), block())),
         "num_layers = 1: must be at least its first_blocks"),
        (lambda: decoder(num_layers=4, shared_layers=True),
         "num_layers = 4: must be whole repeats of the pattern with shared_layers"),
        (lambda: decoder(blocks=()), "at least one block"),
        (lambda: decoder(first_blocks=(FEWER_HEADS,), position_bias=RelativeBiasSpec(8, 16)),
         "of equally many heads where they share one position bias"),
        (lambda: decoder(embed=0), "StackSpec.embed = 0: must be at least 1"),
        (lambda: CAPPED_IN_WINDOWS.replace(decoder=decoder(embed=24)),
         "StackSpec.embed = 24: must be None in the last stack, of ModelSpec.embed"),
        (lambda: CAPPED_IN_WINDOWS.replace(start_id=50), r"start_id = 50: must be in 0 \.\. 49"),
        (lambda: CAPPED_IN_WINDOWS.replace(start_id=-1), r"start_id = -1: must be in 0 \.\. 49"),
        (lambda: CAPPED_IN_WINDOWS.replace(shared_embedding=False),
         "shared_embedding = False: must be True for one stack alone"),
        (lambda: CAPPED_IN_WINDOWS.replace(embedding_size=8),
         "embedding_size = 8: must be None with a decoder"),
        (lambda: FACTORISED_AND_SHARED.replace(heads=(LMHeadSpec(tied=True),)),
         "embedding_size = 8: must be None with tied logits"),
        (lambda: UNEQUAL_WIDTHS_AND_EXPERTS.replace(num_token_types=2),
         "num_token_types = 2: must be None where widths differ"),
        (lambda: UNEQUAL_WIDTHS_AND_EXPERTS.replace(shared_embedding=True),
         "StackSpec.embed = 24: must be None with a shared embedding"),
        (lambda: CAPPED_IN_WINDOWS.replace(
             decoder=decoder(first_blocks=(block(cross_attention=AttentionSpec(4, 8)),))),
         "after an encoder, and in no other: see ModelSpec.decoder"),
    ],
)  # fmt: skip
def test_layers_that_do_not_go_together_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_position_bias_of_each_layers_own_allows_different_heads():
    own = RelativeBiasSpec(8, 16, per_layer=True)
    assert decoder(first_blocks=(FEWER_HEADS,), position_bias=own).position_bias == own


def test_override_reaches_every_stack_and_block():
    spec = override("t5_nano", {"*.blocks.*.mlp.hidden": 96, "decoder.num_layers": 5})
    assert spec.encoder.blocks[0].mlp.hidden == spec.decoder.blocks[0].mlp.hidden == 96
    assert (spec.encoder.num_layers, spec.decoder.num_layers) == (2, 5)
    assert preset("t5_nano").decoder.num_layers == 2


def test_differences_name_each_value():
    old, new = preset("t5_nano"), override("t5_nano", {"embed": 64, "decoder.num_layers": 3})
    layers, embed = differences(old, new)
    assert (layers.path, layers.old, layers.new) == ("decoder.num_layers", 2, 3)
    assert str(embed) == "embed: 128 -> 64"
    assert differences(old, old) == []


def test_a_spec_of_ones_own_is_registered_by_its_name():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class TestOnlySpec(Spec):
        width: int = 3

    assert Spec.from_json({"type": "TestOnlySpec", "width": 4}) == TestOnlySpec(4)


def test_a_name_belongs_to_one_module():
    """Or a checkpoint would open with whichever class was imported last."""

    def define(module):
        return type("TestOnlyTwiceSpec", (Spec,), {"__module__": module})

    define("notebook")
    again = define("notebook")
    for module, name in (("elsewhere", "TestOnlyTwiceSpec"), ("notebook", "MlpSpec")):
        with pytest.raises(InputError, match=f"{module}.{name}: a spec of this name is defined by"):
            type(name, (Spec,), {"__module__": module})
    assert Spec.registry["TestOnlyTwiceSpec"] is again


def test_a_file_from_before_adapters_opens(tmp_path):
    path = tmp_path / "model.json"
    save_spec(path, PRESETS["t5_small"])
    content = json.loads(path.read_text())
    del content["model"]["adapters"]
    path.write_text(json.dumps(content | {"format_version": 5}))
    assert load_spec(path) == PRESETS["t5_small"]
