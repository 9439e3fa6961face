"""Compilation in a subprocess, which may abort or be cancelled without ending this process."""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.errors import InputError
from t5lite.planning.topology import ENVIRONMENT
from t5lite.reporting.bars import stages

_LAST_LINES = 6  # of a compiler's output


def channel() -> Callable[..., None]:
    """Returns a function that prints JSON events to the parent; stdout becomes stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda **event: print(json.dumps(event), file=stream, flush=True)


class Sandbox:
    """Compiles a run's step in a subprocess: `command` with `--worker=`, the changes as JSON."""

    def __init__(self, command: Sequence[str]):
        self._command = command

    def __call__(
        self, changes: Mapping[str, Any], *, title: str, seconds: float | None = None
    ) -> dict[str, Any]:
        """Returns the plan; its `aborted` is the reason for none.

        Args:
          changes: mesh, remat and num_microbatches instead of the run's; empty for the run itself.
          title: of the line that shows the time.
          seconds: time limit.
        """
        command = [*self._command, f"--worker={json.dumps(changes)}"]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **ENVIRONMENT},
            )
            late = threading.Event()  # a timer's own `finished` is also set by cancelling it

            def give_up() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, give_up) if seconds else None
            try:
                if timer:
                    timer.start()
                assert process.stdout is not None
                with process.stdout:
                    result = _result(process.stdout, title)
                code = process.wait()
            finally:
                if timer:
                    timer.cancel()
                if process.poll() is None:
                    process.kill()
                    process.wait()
            stderr.seek(0)
            lines = stderr.read().splitlines()
        if result is not None:
            return result
        if late.is_set() and code < 0:
            return {"aborted": f"not finished within {seconds:.0f} s"}
        ours = [index for index, line in enumerate(lines) if line.startswith("t5lite: ")]
        if ours:
            message = "\n".join(lines[ours[-1] :]).removeprefix("t5lite: ")
            raise InputError(message) if code == 2 else RuntimeError(message)
        last = [line for line in lines if line.strip()][-_LAST_LINES:]
        end = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return {"aborted": f"the compiler ended {end}", "said": last}


def _result(stream: Any, title: str) -> dict[str, Any] | None:
    """Reads a compilation's events, showing its stage and time."""
    result = None
    with stages(title) as show:
        for line in stream:
            event = json.loads(line)
            show(event.get("stage", ""))
            result = event.get("result", result)
    return result
