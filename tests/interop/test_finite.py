"""Parameters that are NaN or infinite, or become so in another dtype, are named before use.

Every layout × what is wrong; T5's feed-forward outputs stay float32 where the rest is float16.
"""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from saved_models import save_model
from small_folders import REFERENCES

import t5lite
from t5lite.errors import InputError
from t5lite.interop.finite import is_finite
from t5lite.main import main
from t5lite.models import ComputeSpec, Model, override
from t5lite.training.restore import named

ONE = jax.devices()[:1]
# A parameter of every family here, and what it is called in the layouts.
PATH = "encoder/layers/block_0/attention/query/kernel"
NAMES = {
    "t5lite": f"params/{PATH}",
    "huggingface": "encoder.block.1.layer.0.SelfAttention.q.weight",
    "t5x": "target.encoder.layers_1.attention.query.kernel",
}


@pytest.fixture(scope="module")
def small():
    spec = override("t5_1_1_nano", {"vocab": 32, "embed": 16, "*.num_layers": 2})
    rng = np.random.default_rng(0)
    shapes = Model(spec).shapes()
    return spec, jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def spoiled(params, value):
    copy = jax.tree.map(np.array, params)
    named(copy)[PATH][1, 2, 0, 0] = value
    return copy


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_parameter_that_is_not_finite_is_named(small, tmp_path, kind, value):
    spec, params = small
    save_model(tmp_path / "model", spec, spoiled(params, value), kind=kind)
    with pytest.raises(InputError) as info:
        t5lite.load(tmp_path / "model", devices=ONE)
    said = str(info.value)
    assert said.startswith(f"{NAMES[kind]} of {tmp_path / 'model'}")
    assert "has 1 of " in said
    assert "take an earlier checkpoint" in said


@pytest.mark.parametrize("kind", NAMES)
def test_a_dtype_that_is_too_small_is_refused_by_name(small, tmp_path, kind, capsys):
    spec, params = small
    save_model(tmp_path / "model", spec, spoiled(params, 70_000.0), kind=kind)
    with pytest.raises(InputError) as info:
        t5lite.load(tmp_path / "model", devices=ONE, dtype="float16")
    said = str(info.value)
    assert f"dtype = 'float16': {NAMES[kind]} of" in said
    assert "numbers up to 70,000, beyond its largest, 65,504; choose bfloat16 or float32" in said
    for dtype in (None, "float32", "bfloat16"):
        t5lite.load(tmp_path / "model", devices=ONE, dtype=dtype)
    command = ["convert", str(tmp_path / "model"), str(tmp_path / "new"), "--dtype=float16"]
    assert main([*command, "--to=huggingface"]) == 2
    assert NAMES[kind] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_t5_keeps_its_feed_forward_outputs_in_float32(small, tmp_path):
    spec, params = small
    large = jax.tree.map(np.array, params)
    for side in ("encoder", "decoder"):
        named(large)[f"{side}/layers/block_0/mlp/down/kernel"][0, 0, 0] = 70_000.0
    save_model(tmp_path / "model", spec, large, kind="huggingface")
    assert (
        main(["convert", str(tmp_path / "model"), str(tmp_path / "t5lite"), "--dtype=float16"]) == 0
    )
    command = ["convert", str(tmp_path / "t5lite"), str(tmp_path / "back")]
    assert main([*command, "--to=huggingface"]) == 0
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == "float16"
    for folder, dtype in (("model", "float16"), ("t5lite", None), ("back", None)):
        found = named(t5lite.load(tmp_path / folder, devices=ONE, dtype=dtype).params)
        kinds = {path: leaf.dtype.name for path, leaf in found.items()}
        wide = [path for path, kind in kinds.items() if kind == "float32"]
        assert wide == [path for path in kinds if path.endswith("mlp/down/kernel")], folder
        assert set(kinds.values()) == {"float16", "float32"}


def test_t5_does_not_compute_in_float16(small, tmp_path):
    save_model(tmp_path / "model", *small, kind="huggingface")
    with pytest.raises(InputError, match=r"compute.dtype = 'float16': activations of 't5' .*bfloa"):
        t5lite.load(tmp_path / "model", compute=ComputeSpec(dtype="float16"), devices=ONE)
    t5lite.load(tmp_path / "model", compute=ComputeSpec(dtype="bfloat16"), devices=ONE)
    t5lite.load(REFERENCES / "gpt2", compute=ComputeSpec(dtype="float16"), devices=ONE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [1, 7, (1 << 20) + 3])
def test_every_float_and_place(dtype, size):
    rng = np.random.default_rng(0)
    array = rng.standard_normal(size).astype(dtype)
    array[0] = jnp.finfo(dtype).max
    assert is_finite(array)
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, size // 2, size - 1):
            other = array.copy()
            other[place] = value
            assert not is_finite(other)
    assert is_finite(np.arange(3))
    assert is_finite(np.empty((0, 4), dtype))
