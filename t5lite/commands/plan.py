"""`t5lite plan`: a run's own step, compiled for TPUs that are not here.

Every compilation is a process of its own: a compiler that aborts takes that process with it and
nothing else, and a search can give one up.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t5lite.commands.configured import experiment_of
from t5lite.commands.plan_search import search
from t5lite.commands.plan_text import report, whole_run
from t5lite.data.paths import require_writable, write_whole
from t5lite.errors import InputError
from t5lite.experiment import Experiment, train
from t5lite.experiment.description import versions
from t5lite.experiment.memory import savings
from t5lite.experiment.step_facts import facts
from t5lite.parallel import make_mesh, process_rows
from t5lite.planning import (
    ENVIRONMENT,
    DoesNotFit,
    Slice,
    compile_step,
    estimate,
)
from t5lite.text import WIDTH
from t5lite.training import process_shards

if TYPE_CHECKING:
    from t5lite.configuration import Configuration

_KEPT_LINES = 6  # of what a compiler said before it ended


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Prints a plan, or of a search what fits, best first; or is the process that compiles.

    Returns: 0 if something fits, otherwise 1.
    """
    if arguments.worker is not None:
        _compile(json.loads(arguments.worker), arguments, configuration)
        return 0
    on = Slice.parse(arguments.topology, num_slices=arguments.num_slices)
    on.require_compiler()
    for name in ("price", "power", "budget"):
        if (value := getattr(arguments, name)) is not None and not value > 0:
            raise InputError(f"--{name}={value}: must be above 0")
    require_writable(arguments.output)
    experiment = _experiment(configuration, {})
    command = ["t5lite", "plan", *_same_run(arguments), f"--topology={arguments.topology}"]
    command += [f"--num_slices={on.num_slices}"] * (on.num_slices > 1)
    plan: dict[str, Any] = {
        "command": shlex.join(command),
        "versions": versions() | _compiler_version(),
    }
    compile_ = _Compilation(arguments)
    if arguments.search:
        plan |= search(experiment, on, compile_, minutes=arguments.budget or 30.0)
    else:
        found = compile_({}, title=f"{_name(experiment)} for {on.name}")
        plan |= {"plans": [found]}
        print(report(found, on, price=arguments.price, power=arguments.power))
    for found in plan["plans"]:
        found |= {"run": whole_run(found, on, price=arguments.price, power=arguments.power)}
    write_whole(arguments.output, (json.dumps(plan, indent=1) + "\n").encode())
    print(f"\nwritten: {arguments.output}")
    return 0 if any(found.get("fits") for found in plan["plans"]) else 1


# ── the process that compiles ─────────────────────────────────────────────────────────────────


def _compile(
    changes: Mapping[str, Any], arguments: argparse.Namespace, configuration: "Configuration"
) -> None:
    """Compiles, and says on standard output, a line of JSON each, what it does and finds."""
    # Libraries, too, may print: they get standard error, and the parent what was standard output.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=channel, flush=True)

    on = Slice.parse(arguments.topology, num_slices=arguments.num_slices)
    experiment = _experiment(configuration, changes)
    mesh = make_mesh(experiment.layout, on.devices())
    program = experiment.program(mesh)
    places = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    found = facts(experiment, program, mesh) | {
        "topology": f"{on.kind}:{on.shape}",
        "num_slices": on.num_slices,
        "chips": on.num_chips,
        "hbm": on.chip.hbm / on.chip.devices,
        "processes": _reading(experiment, mesh),
    }
    try:
        compiled, _ = compile_step(
            program,
            slice_of=places if on.num_slices > 1 else None,
            stage=lambda name: tell(stage=name),
        )
    except DoesNotFit as error:
        found |= {
            "fits": False,
            "needed": error.needed,
            "available": error.available,
            "compiler": str(error),
            "advice": list(_advice(experiment, program, on, error.needed, error.available)),
        }
        return tell(found=found)
    estimates = estimate(
        compiled, on, flops=found["flops_per_step"], tokens=found["tokens_per_step"]
    )
    found |= {"fits": True, "estimate": dict(estimates), **dataclasses.asdict(compiled)}
    return tell(found=found)


def _reading(experiment: Experiment, mesh: Any) -> list[dict[str, Any]]:
    """Returns what each process reads: rows of a batch and their shards, as runs [start, stop).

    Raises:
      InputError: if a process's devices do not hold whole shards.
    """
    rows = process_rows(experiment.layout, mesh, experiment.data.batch_size)
    shards = process_shards(experiment.data, experiment.layout, mesh)
    return [{"rows": _runs(rows[process]), "shards": _runs(shards[process])} for process in rows]


def _runs(numbers: np.ndarray | Sequence[int]) -> list[list[int]]:
    numbers = np.asarray(numbers)
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [[int(part[0]), int(part[-1]) + 1] for part in parts]


def _advice(
    experiment: Experiment,
    program: Any,
    on: Slice,
    needed: float | None,
    available: float | None,
) -> Iterator[str]:
    """Yields what would need less memory and is not done yet, the cheapest first."""
    yield from savings(
        program,
        compute=experiment.compute,
        update=experiment.update,
        layout=experiment.layout,
        optimizer=experiment.optimizer,
        bytes_here=on.chip.hbm / on.chip.devices,
    )
    if needed and available:  # most of it is spread over the devices
        chips = on.num_chips * needed / available
        larger = (dataclasses.replace(on, shape=shape) for shape in on.chip.shapes)
        enough = next((slice_ for slice_ in larger if slice_.num_chips >= chips), None)
        if enough:
            yield f"a larger slice: --topology={enough.kind}:{enough.shape}, about"


# ── the process that asks for it ──────────────────────────────────────────────────────────────


class _Compilation:
    """Compiles a run's step in a process of its own.

    Args:
      arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace):
        self._command = [sys.executable, "-m", "t5lite.main", "plan", *_same_run(arguments)]
        self._command += [f"--topology={arguments.topology}"]
        self._command += [f"--num_slices={arguments.num_slices}"]

    def __call__(
        self, changes: Mapping[str, Any], *, title: str, seconds: float | None = None
    ) -> dict[str, Any]:
        """Returns what was found; `aborted` says why there is nothing.

        Args:
          changes: mesh, remat and num_microbatches instead of the run's; empty for the run itself.
          title: of the line that shows how long it takes.
          seconds: after which it is given up.

        Raises:
          InputError: for what the user can fix.
        """
        command = [*self._command, f"--worker={json.dumps(changes)}"]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=said,
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
                    found = _last_found(process.stdout, title)
                code = process.wait()
            finally:
                if timer:
                    timer.cancel()
                if process.poll() is None:
                    process.kill()
                    process.wait()
            said.seek(0)
            lines = said.read().splitlines()
        if found is not None:
            return found
        if late.is_set() and code < 0:
            return {"aborted": f"not finished within {seconds:.0f} s"}
        ours = [at for at, line in enumerate(lines) if line.startswith("t5lite: ")]
        if ours:
            message = "\n".join(lines[ours[-1] :]).removeprefix("t5lite: ")
            raise InputError(message) if code == 2 else RuntimeError(message)
        kept = [line for line in lines if line.strip()][-_KEPT_LINES:]
        end = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return {"aborted": f"the compiler ended {end}", "said": kept}


def _last_found(stream: Any, title: str) -> dict[str, Any] | None:
    """Reads a compilation's events, and shows the stage and the time while it waits."""
    found = None
    with _clock(title) as show:
        for line in stream:
            event = json.loads(line)
            show(event.get("stage", ""))
            found = event.get("found", found)
    return found


@contextlib.contextmanager
def _clock(title: str) -> Iterator[Any]:
    """Shows a line with a stage and the seconds gone, where somebody looks."""
    state, done = {"stage": "starting"}, threading.Event()
    start = time.monotonic()
    live = sys.stderr.isatty()

    def tick() -> None:
        while not done.wait(0.5):
            line = f"{title}: {state['stage']}, {time.monotonic() - start:.0f} s"
            print(f"\r\033[K{line[: WIDTH + 2]}", end="", file=sys.stderr, flush=True)

    ticking = threading.Thread(target=tick, daemon=True)
    if live:
        ticking.start()

    def show(stage: str) -> None:
        if stage:
            state["stage"] = stage
            if not live:
                print(f"{title}: {stage}", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        done.set()
        if live:
            ticking.join()
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _same_run(arguments: argparse.Namespace) -> list[str]:
    return [
        *(f"--gin_file={file}" for file in arguments.gin_file),
        *(f"--gin_search_paths={paths}" for paths in arguments.gin_search_paths),
        *(f"--gin.{binding}" for binding in arguments.bindings),
    ]


def _compiler_version() -> dict[str, str]:
    import importlib.metadata

    return {"libtpu": importlib.metadata.version("libtpu")}


def _experiment(configuration: "Configuration", changes: Mapping[str, Any]) -> Experiment:
    """Returns the configured run.

    Args:
      configuration: of the run.
      changes: what a search changes: `mesh`, `remat` and `num_microbatches`, or nothing.
    """
    experiment = experiment_of(configuration)
    if changes:
        experiment = dataclasses.replace(
            experiment,
            layout=dataclasses.replace(experiment.layout, mesh=changes["mesh"]),
            compute=dataclasses.replace(experiment.compute, remat=changes["remat"]),
            update=dataclasses.replace(
                experiment.update, num_microbatches=changes["num_microbatches"]
            ),
        )
    with configuration.placing(train):
        experiment.bound  # noqa: B018  the spec is found, and fits the objective
    return experiment


def _name(experiment: Experiment) -> str:
    return f"{experiment.spec.family}'s step"
