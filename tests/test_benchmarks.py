"""The scripts in benchmarks/ that have a test: what they measure is what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from t5lite.models import Model, preset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def decode_speed(path: Path, *options: str) -> list[dict]:
    """Runs the script on tiny models, and returns its cases."""
    sizes = {"batches": 2, "prompt_length": 8, "new_tokens": 4, "rounds": 2, "dtype": "float32"}
    command = [sys.executable, str(BENCHMARKS / "decode_speed.py"), "--json", str(path), *options]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    return json.loads(path.read_text())["cases"]


@pytest.mark.parametrize("name", ["t5_nano", "t5_1_1_nano", "gpt_nano"])
def test_products_are_the_weights_of_a_step(name, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from decode_engines import products

    spec = preset(name)
    turns, head = products(spec)
    counted = sum(rows * columns for shapes in turns for rows, columns in shapes)
    kernels = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(Model(spec).shapes()["decoder"]):
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        read_once = "cross_attention/key" in names or "cross_attention/value" in names
        if names.endswith("kernel") and not read_once:
            kernels += leaf.size
    assert counted == kernels
    assert sorted(head) == sorted((spec.vocab, spec.embed))


@pytest.mark.slow
def test_decode_speed_measures_t5lite_alone(tmp_path):
    (case,) = decode_speed(tmp_path / "speed.json", "--models", "t5_nano", "--peers", "none")
    assert set(case["engines"]) == {"matrices", "t5lite"}
    for numbers in case["engines"].values():
        assert len(numbers["round_seconds"]) == 2
        assert 0 < numbers["lowest"] <= numbers["tokens_per_second"] <= numbers["highest"]
        assert numbers["memory"] > 10_000_000
    starts = case["starts"]
    assert starts["compiled"] >= 1
    assert starts["compiled_again"] == 0
    assert starts["from_cache"] == starts["compiled"]
    assert starts["other_prompt_length"] == 5
    assert starts["compiled_for_it"] == 0


@pytest.mark.slow
def test_engines_write_the_same_tokens(tmp_path):
    for peer in ("transformers", "ctranslate2"):
        pytest.importorskip(peer, reason="a peer of the benchmark", exc_type=ImportError)
    cases = decode_speed(tmp_path / "speed.json", "--models", "t5_nano,gpt_nano")
    for case in cases:
        for peer in ("transformers", "ctranslate2"):
            assert case["engines"][peer]["agreeing"] == 2 * 4


@pytest.mark.slow
def test_engines_lose_the_same_in_every_step(tmp_path):
    for peer in ("torch", "transformers"):
        pytest.importorskip(peer, reason="the peer of the benchmark")
    command = [sys.executable, str(BENCHMARKS / "train_speed.py"), "--preset=t5_1_1_nano"]
    command += ["--batch=2", "--inputs=16", "--targets=8", "--turns=2", "--steps=2"]
    command += ["--json", str(tmp_path / "speed.json")]
    subprocess.run(command, check=True, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    turns = json.loads((tmp_path / "speed.json").read_text())["turns"]
    losses = {
        name: [step["loss"] for turn in taken for step in turn] for name, taken in turns.items()
    }
    assert len(losses["t5lite"]) == (1 + 2) * (1 + 2)
    assert losses["t5lite"] == pytest.approx(losses["transformers"], rel=1e-5)
    assert losses["t5lite"][-1] != losses["t5lite"][0]


def test_the_same_bucket(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from decode_speed import neighbour

    assert [neighbour(length) for length in (3, 4, 64, 65, 100, 128, 129)] == [
        4,
        3,
        33,
        128,
        65,
        65,
        256,
    ]
