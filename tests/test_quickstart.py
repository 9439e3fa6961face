"""The first five minutes: the quickstart loads no TensorFlow and ends with filled-in text."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from t5lite.main import main

for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 0
heavy = {"tensorflow", "tensorflow_datasets", "seqio", "grain"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_train_and_fill_without_tensorflow(tmp_path):
    folder = tmp_path / "run"
    train = [
        *("train", "--gin_file=configs/quickstart.gin", f"--gin.MODEL_DIR='{folder}'"),
        *("--gin.TRAIN_STEPS=2", "--gin.t5lite.optimizers.schedules.cosine.warmup_steps=1"),
        *("--gin.t5lite.evaluation.SpanFilling.num_examples=8", "--gin.BATCH_SIZE=8"),
        "--gin.t5lite.evaluation.SpanFilling.num_train_examples=8",
    ]
    fill = ["generate", f"--model_dir={folder}", "--max_new_tokens=4", "--fill"]
    lines = [train, [*fill, "Return the <extra_id_0> of the list."]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert re.search(r"\d+ of \d+ held-out gaps filled in exactly \(\d+\.\d%\)", said)
    assert [f"\n{number:>3}  " in said for number in range(1, 5)] == [True] * 3 + [False]
    assert re.search(r"Return the .*of the list\.", said)
