"""How soon a run takes its first step: from the command to the first line of `metrics.jsonl`.

Three ways to start the same run: with nothing prepared, as on a new machine; with its data prepared
but nothing compiled; and as a second start finds it. A process each, ended at its first step; the
last two take turns, and medians are printed.

    python benchmarks/start_speed.py --gin_file=configs/quickstart.gin
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def first_step(gin_file: str, bindings: list[str], cache: Path) -> float:
    """Returns the seconds until a new run has taken its first step.

    Args:
      gin_file: the run's configuration.
      bindings: more of it.
      cache: holds what earlier starts have left.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "run" / "metrics.jsonl"
        command = [sys.executable, "-m", "t5lite.main", "train", f"--gin_file={gin_file}"]
        command += [f"--gin.{binding}" for binding in bindings]
        command += [f'--gin.t5lite.train.model_dir="{written.parent}"']
        command += ["--gin.t5lite.train.log_every=1"]
        begin = time.perf_counter()
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"T5LITE_CACHE": str(cache)}
            )
            try:
                while not (written.exists() and '"train/loss"' in written.read_text()):
                    if process.poll() is not None:
                        log.seek(0)
                        sys.exit(f"the run ended before its first step:\n{log.read()[-2000:]}")
                    time.sleep(0.01)
                return time.perf_counter() - begin
            finally:
                process.kill()
                process.wait()


def main() -> None:
    """Prints a line a way to start."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gin_file", default="configs/quickstart.gin", help="the run's")
    parser.add_argument("--binding", action="append", default=[], help="NAME=value, as of gin")
    parser.add_argument("--rounds", type=int, default=5, help="of the last two ways (5)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"

        def start() -> float:
            return first_step(options.gin_file, options.binding, cache)

        seconds: dict[str, list[float]] = {
            "nothing prepared": [start()],
            "nothing compiled": [],
            "second start": [],
        }
        for _ in range(options.rounds):
            shutil.rmtree(cache / "compiled", ignore_errors=True)
            seconds["nothing compiled"].append(start())
            seconds["second start"].append(start())
    print(f"{'seconds':18}{'median':>9}{'fastest':>9}{'slowest':>9}")
    for name, taken in seconds.items():
        numbers = statistics.median(taken), min(taken), max(taken)
        print(f"{name:18}" + "".join(f"{number:9.1f}" for number in numbers))
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=2) + "\n")


if __name__ == "__main__":
    main()
