"""What the quickstart's recipe owes to each of its parts: gaps filled in, and CPU seconds.

Each recipe is `configs/quickstart.gin` with a few bindings changed, in a process of its own.
Seconds are user and system time of all cores together, start, compiling and evaluation included.

    python benchmarks/quickstart_recipes.py --recipe=quickstart --recipe='nano model'
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

INIT = "t5lite.models.override.changes={'init.position_bias_window': %s}"
RECIPES: dict[str, list[str]] = {
    "quickstart": [],
    "biases as T5's at first": [INIT % None],
    "nano model": ["MODEL='t5_1_1_nano'"],
    "nano model, same biases": ["MODEL='t5_1_1_nano'", INIT % 3],
    "half the learning rate": ["t5lite.optimizers.schedules.cosine.peak=0.015"],
    "twice the learning rate": ["t5lite.optimizers.schedules.cosine.peak=0.06"],
    "batches of 64": ["BATCH_SIZE=64"],
    "texts of 48 tokens": ["TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 24}"],
}


def measure(name: str, steps: int | None) -> dict[str, float]:
    """Trains a recipe.

    Args:
      name: of the recipe.
      steps: of training; None for the quickstart's.

    Returns:
      Steps, CPU seconds, and the metrics at the end.
    """
    bindings = list(RECIPES[name])
    if steps is not None:
        bindings += [
            f"TRAIN_STEPS={steps}",
            f"t5lite.optimizers.schedules.cosine.warmup_steps={steps // 10}",
        ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "t5lite.main", "train"]
        command += ["--gin_file=configs/quickstart.gin", f"--gin.MODEL_DIR='{folder}/run'"]
        before = _cpu_seconds()
        subprocess.run(
            [*command, *(f"--gin.{each}" for each in bindings)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        seconds = _cpu_seconds() - before
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    last: dict[str, float] = {}
    for line in lines:
        last |= json.loads(line)
    return {
        "steps": last["step"],
        "seconds": seconds,
        "exact": last["span_filling/exact_match"],
        "shuffled": last["span_filling/exact_match_shuffled"],
        "loss": last["span_filling/loss"],
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints a line a recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="all, by default")
    parser.add_argument("--steps", type=int, help="of training; the quickstart's by default")
    options = parser.parse_args()
    print(f"{'recipe':26}{'steps':>7}{'CPU s':>7}{'exact':>8}{'another':>9}{'nats':>7}")
    for name in options.recipe or RECIPES:
        found = measure(name, options.steps)
        print(
            f"{name:26}{found['steps']:7,.0f}{found['seconds']:7.0f}{found['exact']:8.1%}"
            f"{found['shuffled']:9.1%}{found['loss']:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
