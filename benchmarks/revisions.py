"""Speed of this checkout beside an older commit: training, decoding, text to batches, start.

Each revision measures itself with its own scripts (`train_speed.py`, `decode_speed.py`,
`data_speed.py`), in processes that take turns (A B, B A, …). Printed is the median over the turns
of the new time over the old one: 1.02 is 2 % slower.

    python benchmarks/revisions.py --base d47a409
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TRAIN = {"batch": 8, "inputs": 128, "targets": 32, "remat": "none", "microbatches": 1}
DECODE = {"prompt_length": 128, "new_tokens": 64, "dtype": "float32"}
DATA = """
import itertools, json, logging, pathlib, sys, tempfile, time
sys.path.insert(0, sys.argv[1])
import data_speed, numpy as np
from t5lite.objectives import SpanCorruption
logging.getLogger("absl").setLevel(logging.ERROR)
batches = data_speed.text_files(pathlib.Path(tempfile.mkdtemp())).train_batches(
    SpanCorruption(), seed=0)
print(json.dumps({}), flush=True)
for line in sys.stdin:
    # Rows of a block come at once: blocks that were begun before do not count, and many do.
    for _ in itertools.islice(batches, 128):
        pass
    begin, tokens = time.perf_counter(), 0
    for batch in itertools.islice(batches, json.loads(line)):
        names = "encoder_input_tokens", "decoder_target_tokens"
        tokens += sum(int(np.count_nonzero(batch[name])) for name in names)
    print(json.dumps({"seconds": (time.perf_counter() - begin) / tokens}), flush=True)
"""


class Process:
    """A worker of one revision, which answers lines of JSON."""

    def __init__(self, root: Path, command: list[str]):
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        )
        self.about = self._answer()

    def ask(self, order: Any) -> dict[str, Any]:
        """Sends an order, and returns the answer."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"a worker ended with exit code {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Yields a folder that holds a commit."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(target), commit], check=True)
        try:
            yield target
        finally:
            subprocess.run([*git, "remove", "--force", str(target)], check=True)


def script(name: str, engine: str, case: dict[str, Any]) -> list[str]:
    """Returns the arguments that start a worker of a revision's own script."""
    return [f"benchmarks/{name}.py", "--worker", engine, json.dumps(case)]


def train(root: Path, folder: str, preset: str) -> Callable[[], float]:
    """Returns what takes a few training steps: the seconds of one."""
    from t5lite.models import preset as spec_of

    case = TRAIN | {"preset": preset, "folder": folder, "vocab": spec_of(preset).vocab}
    if not (Path(folder) / "config.json").exists():
        Process(root, script("train_speed", "weights", case)).close()
    worker = Process(root, script("train_speed", "t5lite", case))
    numbers = iter(range(10**6))

    def turn() -> float:
        steps = [worker.ask(next(numbers))["seconds"] for _ in range(6)]
        return statistics.median(steps[1:])  # the first gets memory back from the other process

    turn()
    return turn


def decode(root: Path, folder: str, preset: str, batch: int) -> Callable[[], float]:
    """Returns what generates: the seconds of one decode step."""
    case = DECODE | {"preset": preset, "folder": folder, "batch": batch}
    if not (Path(folder) / "model").exists():
        about = Process(root, script("decode_speed", "weights", case))
        Path(folder, "case.json").write_text(json.dumps(about.about["case"]))
        about.close()
    case |= json.loads(Path(folder, "case.json").read_text())
    worker = Process(root, script("decode_speed", "t5lite", case))

    def seconds(new_tokens: int) -> float:
        order = {"prompt_length": DECODE["prompt_length"], "new_tokens": new_tokens}
        return worker.ask(order)["seconds"]

    def turn() -> float:
        steps = int(DECODE["new_tokens"])
        times = [(seconds(steps), seconds(1))]
        # Runs of milliseconds are dominated by the host: the median of a second of them.
        for _ in range(min(100, int(1.0 / times[0][0]))):
            times.append((seconds(steps), seconds(1)))
        whole, first = (statistics.median(column) for column in zip(*times, strict=True))
        return (whole - first) / (steps - 1)

    turn()
    return turn


def data(root: Path) -> Callable[[], float]:
    """Returns what makes batches from text: the seconds of a token."""
    worker = Process(root, ["-c", DATA, str(root / "benchmarks")])
    worker.ask(64)
    return lambda: worker.ask(640)["seconds"]


def start(root: Path, command: list[str]) -> Callable[[], float]:
    """Returns what runs a command: its seconds."""

    def turn() -> float:
        begin = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
        subprocess.run(
            [sys.executable, *command], check=True, env=environment, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - begin

    turn()
    return turn


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="d47a409", help="the older commit (d47a409)")
    parser.add_argument("--turns", type=int, default=9, help="of each revision and case (9)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    cases: dict[str, Callable[[Path, str], Callable[[], float]]] = {
        "train step, t5_1_1_nano": lambda root, folder: train(root, folder, "t5_1_1_nano"),
        "train step, t5_1_1_small": lambda root, folder: train(root, folder, "t5_1_1_small"),
        "decode step, t5_small, batch 1": lambda root, folder: decode(root, folder, "t5_small", 1),
        "decode step, t5_small, batch 8": lambda root, folder: decode(root, folder, "t5_small", 8),
        "decode step, gpt_nano, batch 1": lambda root, folder: decode(root, folder, "gpt_nano", 1),
        "decode step, gpt_nano, batch 8": lambda root, folder: decode(root, folder, "gpt_nano", 8),
        "text to batches, a token": lambda root, folder: data(root),
        "import t5lite": lambda root, folder: start(root, ["-c", "import t5lite"]),
        "import t5lite.training": lambda root, folder: start(
            root, ["-c", "import t5lite.models, t5lite.training, t5lite.decoding"]
        ),
        "t5lite --help": lambda root, folder: start(root, ["-m", "t5lite.main", "--help"]),
        "t5lite train --help": lambda root, folder: start(
            root, ["-m", "t5lite.main", "train", "--help"]
        ),
    }
    print(f"{'':34}{'before':>12}{'now':>12}{'now/before':>12}{'quartiles':>16}", flush=True)
    with checkout(options.base) as base:
        for name, make in cases.items():
            if options.only not in name:
                continue
            with tempfile.TemporaryDirectory() as folder:
                turns = {root: make(root, folder) for root in (base, ROOT)}
                times: dict[Path, list[float]] = {root: [] for root in turns}
                for number in range(options.turns):
                    order = list(turns) if number % 2 else list(turns)[::-1]
                    for root in order:
                        time.sleep(0.3)  # threads of the one before may still spin
                        times[root].append(turns[root]())
            before, now = (statistics.median(times[root]) for root in (base, ROOT))
            ratios = [b / a for a, b in zip(times[base], times[ROOT], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{name:34}{before * 1e3:9.4g} ms{now * 1e3:9.4g} ms{middle:12.3f}"
                f"{low:8.3f}–{high:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
