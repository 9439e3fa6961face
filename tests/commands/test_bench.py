"""`t5lite bench`: measured here, on a run too small to be worth measuring."""

import json
from pathlib import Path
from typing import Any

import pytest

from t5lite.main import main


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    config = tmp_path / "run.gin"
    config.write_text(
        "from __gin__ import dynamic_registration\nimport t5lite\n"
        'include "gin/models/gpt_nano.gin"\ninclude "gin/objectives/causal_lm.gin"\n'
        'include "gin/optimizers/adamw_scale.gin"\ninclude "gin/partitioning/fsdp.gin"\n'
        'include "gin/runs/pretrain.gin"\n'
        f'MODEL_DIR = "{tmp_path}/model"\nMIXTURE_OR_TASK_NAME = "python_docs"\n'
        'TASK_FEATURE_LENGTHS = {"targets": 16}\nBATCH_SIZE = 8\nTRAIN_STEPS = 800\n'
        "t5lite.data.TaskData.num_shards = 8\n"
        't5lite.models.override.changes = {"embed": 32, "*.num_layers": 1, "*.dropout_rate": 0.0}\n'
    )
    return [f"--gin_file={config}"]


def test_a_run_is_measured_and_left_alone(run: list[str], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", *run, "--steps=3", "--warmup=1", f"--json={file}"]) == 0
    text = capsys.readouterr().out
    for line in ("8 × cpu, as fsdp 8", "all-gather", "a step", "in this process at most"):
        assert line in text
    found = json.loads(file.read_text())
    measured = found["measured"]
    assert len(measured["step_seconds"]) == 3
    assert measured["first_quartile"] <= measured["median"] <= measured["third_quartile"]
    assert 0 <= measured["input_wait"] <= 1
    assert 0 < measured["tokens_per_step"] <= found["tokens_per_step"] == 8 * 16
    assert measured["process_bytes"] > 2**26
    assert found["compile_seconds"] > 0
    assert found["peak_flops"] is None  # of a CPU nobody says
    assert not (tmp_path / "model").exists()
    assert main(["bench", *run, "--steps=1", "--warmup=0", "--json=-"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == {"fsdp": 8}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--steps=0", "--steps = 0: must be a whole number of at least 1"),
        ("--warmup=-1", "--warmup = -1: must be a whole number of at least 0"),
        ("--gin.BATCH_SIZE=9", "batch"),
        ("--json=tests", "cannot write tests: it is a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run: list[str], flag: str, message: str, capsys: Any
) -> None:
    assert main(["bench", *run, flag]) == 2
    assert message in capsys.readouterr().err
