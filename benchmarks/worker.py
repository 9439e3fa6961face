"""An engine in a process of its own, which works when it is told to and else waits.

Orders and answers are lines of JSON: orders on its standard input, answers on its standard output.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several engines share a GPU's memory
}


class Worker:
    """Runs the script that was started once more, with `--worker ENGINE CASE`.

    Args:
      engine: its name.
      case: what it is to do, as JSON has it.
      environment: further variables.
    """

    def __init__(
        self, engine: str, case: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ):
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self.engine = engine
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", engine, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **_QUIET,
                **(environment or {}),
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
            },
        )
        self.about = self._answer()

    def ask(self, order: Any) -> dict[str, Any]:
        """Gives it an order, and returns its answer."""
        assert self.process.stdin is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.engine} failed, exit code {self.process.wait()}")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # which ends it
        self.process.wait()


def serve(build: Callable[[], tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]]) -> None:
    """Is the other end: builds an engine, says what it is, and answers each order.

    Args:
      build: returns what answers an order, and what to say first.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answer, about = build()
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
