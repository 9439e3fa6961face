"""Parameters are drawn as each family's authors drew them: standard deviations, by preset."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from t5lite.layers import FanInInitSpec, MlpSpec, MoeSpec, NormalInitSpec, SmallInitSpec
from t5lite.models import ComputeSpec, Model, differences, load_spec, override, preset, save_spec
from t5lite.training.restore import named

EMBED, HIDDEN, LAYERS, HEADS, HEAD_DIM, VOCAB = 64, 128, 3, 4, 32, 512
TRUNCATED = 0.87962566  # of a standard deviation, after truncation at two of them
FAN_IN = {
    "query": (EMBED * HEAD_DIM) ** -0.5,  # T5 has no other factor on its logits
    "key": EMBED**-0.5,
    "output": (HEADS * HEAD_DIM) ** -0.5,
    "up": EMBED**-0.5,
    "down": HIDDEN**-0.5,
    "tokens": 1.0,
}


def same(stddev, residual=None):
    """One standard deviation for all, and another for what writes to the residual stream."""
    residuals = dict.fromkeys(("output", "down"), stddev if residual is None else residual)
    return dict.fromkeys(("query", "key", "up", "tokens"), stddev) | residuals


SCALED = 0.02 / math.sqrt(2 * LAYERS)
FAMILIES = {
    "t5_1_1_small": FAN_IN,
    "t5_small": FAN_IN,
    "switch_base_8": {
        name: value * (1 if name == "tokens" else 0.1**0.5) for name, value in FAN_IN.items()
    },
    "palm_8b": FAN_IN | {"query": EMBED**-0.5},
    "gpt2": same(0.02, SCALED) | {"positions": 0.02},
    "gpt3_125m": same(0.02, SCALED),
    "mt_nlg_530b": same(0.004, 0.004 / math.sqrt(2 * LAYERS)),
    "pythia_70m": same(math.sqrt(2 / (5 * EMBED)), 2 / (LAYERS * math.sqrt(EMBED))),
    "llama2_7b": same(0.02) | {"lm_head": 0.02},
    "gemma_2b": same(0.02),
    "bert_base": same(0.02 * TRUNCATED)
    | {"positions": 0.02 * TRUNCATED, "token_type": 0.02 * TRUNCATED, "dense": 0.02 * TRUNCATED},
    "albert_base_v1": same(0.02 * TRUNCATED) | {"embedding_projection": 0.02 * TRUNCATED},
    "electra_base_discriminator": same(0.02 * TRUNCATED),
    "roberta_base": same(0.02),
    "modernbert_base": same(0.02 * TRUNCATED, SCALED * TRUNCATED),
    "bart_base": same(0.02),
}
PLACES = {
    "query": "attention/query/kernel",
    "key": "attention/key/kernel",
    "output": "attention/output/kernel",
    "up": "mlp/up/kernel",
    "down": "mlp/down/kernel",
    "tokens": "token_embedding/embedding",
    "positions": "position_embedding/embedding",
    "token_type": "token_type_embedding/embedding",
    "dense": "lm_head/dense/kernel",
    "lm_head": "lm_head/projection/kernel",
    "embedding_projection": "embedding_projection/kernel",
}


def tiny(name):
    spec = preset(name)
    last = "encoder" if spec.decoder is None else "decoder"
    changes = {
        "start_id": 0,
        "vocab": VOCAB,
        "embed": EMBED,
        "*.num_layers": LAYERS,
        "*.blocks.*.attention.num_kv_heads": None,
        "*.blocks.*.attention.num_heads": HEADS,
        "*.blocks.*.attention.head_dim": HEAD_DIM,
    }
    if spec.encoder and spec.decoder:
        changes |= {
            f"decoder.blocks.*.cross_attention.{field}": value
            for field, value in (("num_heads", HEADS), ("head_dim", HEAD_DIM))
        }
    for index, block in enumerate(getattr(spec, last).blocks):
        nested = ".expert" if isinstance(block.mlp, MoeSpec) else ""
        changes[f"*.blocks.{index}.mlp{nested}.hidden"] = HIDDEN
    if getattr(spec, last).first_blocks:
        for field, value in (("attention.num_heads", HEADS), ("attention.head_dim", HEAD_DIM)):
            changes[f"*.first_blocks.*.{field}"] = value
        changes["*.first_blocks.*.mlp.hidden"] = HIDDEN
    return override(spec, changes)


@functools.cache
def drawn(spec, compute=ComputeSpec()):
    return named(jax.jit(Model(spec, compute).init)(jax.random.key(0)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.light("gpt2", "bert_base", "pythia_70m")
def test_standard_deviations_are_the_published_ones(name):
    params = drawn(tiny(name))
    for kind, expected in FAMILIES[name].items():
        arrays = [leaf for path, leaf in params.items() if path.endswith(PLACES[kind])]
        assert arrays, kind
        for array in map(np.asarray, arrays):
            # Four standard errors of the sample.
            tolerance = 4 / math.sqrt(2 * array.size)
            assert array.std() == pytest.approx(expected, rel=tolerance), kind
            assert abs(array.mean()) < 4 * expected / math.sqrt(array.size), kind


@pytest.mark.slow
def test_scanned_and_unrolled_layers_are_drawn_alike():
    spec = tiny("gpt2")
    scanned, unrolled = drawn(spec), drawn(spec, ComputeSpec(scan=False))
    for name, leaf in scanned.items():
        np.testing.assert_array_equal(leaf, unrolled[name], err_msg=name)


def test_truncated_values_are_within_two_deviations():
    params = jax.device_get(drawn(tiny("bert_base")))
    largest = {name: np.abs(leaf).max() for name, leaf in params.items()}
    kernels = {name: value for name, value in largest.items() if "kernel" in name}
    assert max(kernels.values()) <= 0.04
    assert min(kernels.values()) > 0.03


def test_every_preset_has_the_initialisers_of_its_family():
    """So that a new size of a family does not come with another's."""
    from t5lite.models.presets import PRESETS

    fan_in = {"t5", "mt5", "umt5", "switch_transformers", "palm"}
    for name, spec in PRESETS.items():
        by_fan_in = spec.family in fan_in or name == "bert_nano"  # too narrow for BERT's
        assert isinstance(spec.init, FanInInitSpec) == by_fan_in, name
        assert isinstance(spec.init, SmallInitSpec) == (spec.family == "gpt_neox"), name


def test_a_file_from_before_there_were_initialisers_opens_as_it_was(tmp_path):
    path, spec = tmp_path / "model.json", tiny("gpt2")
    save_spec(path, spec)
    content = json.loads(path.read_text())
    del content["model"]["init"]
    content["model"]["embedding_stddev"] = 0.02
    path.write_text(json.dumps({"format_version": 3, "model": content["model"]}))
    old = load_spec(path)
    assert old == spec.replace(init=FanInInitSpec(embedding_stddev=0.02))
    assert differences(old, spec) == []  # nothing that a run could not be resumed with
    save_spec(path, old)
    assert load_spec(path) == old


@pytest.mark.slow
def test_residuals_are_counted_by_stack():
    """Three to a layer with cross-attention, two without."""
    scaled = tiny("bart_base").replace(init=NormalInitSpec(1.0, scaled_residuals=True))
    params = drawn(scaled)
    for side, count in (("encoder", 2 * LAYERS), ("decoder", 3 * LAYERS)):
        (down,) = (x for path, x in params.items() if path.startswith(side) and "down/k" in path)
        assert float(down.std()) == pytest.approx(count**-0.5, rel=0.05)


@pytest.mark.slow
def test_an_expert_is_drawn_as_an_mlp_and_a_router_small():
    spec = override(tiny("llama2_7b"), {"decoder.blocks.0.mlp": MoeSpec(MlpSpec(HIDDEN), 16)})
    for init, router, up in (
        (FanInInitSpec(), (0.1 / EMBED) ** 0.5, EMBED**-0.5),
        (NormalInitSpec(0.02), 0.02, 0.02),
    ):
        params = drawn(spec.replace(init=init))
        for position, expected in (("router/kernel", router), ("experts/up/kernel", up)):
            (array,) = (np.asarray(x) for path, x in params.items() if path.endswith(position))
            assert array.std() == pytest.approx(expected, rel=0.06)
