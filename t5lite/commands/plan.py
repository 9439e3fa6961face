"""`t5lite plan`: a run's own step, compiled for TPUs that are not here.

Every compilation is a process of its own: a compiler that aborts takes that process with it and
nothing else, and a search can give one up.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax

from t5lite.commands.plan_text import excess, report, whole_run
from t5lite.commands.text import WIDTH, in_bytes, table
from t5lite.commands.train import arguments_of, step_flops, token_lengths, train, versions
from t5lite.data.files import write_whole
from t5lite.errors import InputError
from t5lite.models import Model, preset
from t5lite.objectives import fit
from t5lite.parallel import Layout, make_mesh
from t5lite.planning import (
    ENVIRONMENT,
    DoesNotFit,
    Slice,
    Variation,
    abstract,
    candidates,
    compile_step,
    device_bytes,
    estimate,
    meshes,
)
from t5lite.training import build

if TYPE_CHECKING:
    from t5lite.configuration import Configuration

_KEPT_LINES = 6  # of what a compiler said before it ended
_MIN_SECONDS = 20  # a compilation that would have less time is not begun


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
    given = given_by(configuration, {})
    command = ["t5lite", "plan", *_same_run(arguments), f"--topology={arguments.topology}"]
    command += [f"--num_slices={on.num_slices}"] * (on.num_slices > 1)
    plan: dict[str, Any] = {
        "command": shlex.join(command),
        "versions": versions() | _compiler_version(),
    }
    compile_ = _Compilation(arguments)
    if arguments.search:
        plan |= _search(given, on, compile_, minutes=arguments.budget or 30.0)
    else:
        found = compile_({}, title=f"{_name(given)} for {on.name}")
        plan |= {"plans": [found]}
        print(report(found, on, price=arguments.price, power=arguments.power))
    for found in plan["plans"]:
        found |= {"run": whole_run(found, on, price=arguments.price, power=arguments.power)}
    if arguments.output:
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
    given = given_by(configuration, changes)
    mesh = make_mesh(given.layout, on.devices())
    program = program_of(given, mesh)
    places = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    found = facts(given, program, mesh) | {
        "topology": f"{on.kind}:{on.shape}",
        "num_slices": on.num_slices,
        "chips": on.num_chips,
        "hbm": on.chip.hbm / on.chip.devices,
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
            "advice": list(_advice(given, program, on, error.needed, error.available)),
        }
        return tell(found=found)
    estimates = estimate(
        compiled, on, flops=found["flops_per_step"], tokens=found["tokens_per_step"]
    )
    found |= {"fits": True, "estimate": dict(estimates), **dataclasses.asdict(compiled)}
    return tell(found=found)


def facts(given: SimpleNamespace, program: Any, mesh: Any) -> dict[str, Any]:
    """Returns what a step of a run is, as JSON has it.

    Args:
      given: see `given_by`.
      program: built for the mesh.
      mesh: its devices.
    """
    lengths = token_lengths(program.batch)
    shapes = jax.tree.leaves(given.model.shapes())
    return {
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "dtype": given.compute.dtype,
        "remat": given.compute.remat,
        "microbatches": given.update.num_microbatches,
        "parameters": sum(math.prod(leaf.shape) for leaf in shapes),
        "flops_per_step": step_flops(given.spec, given.objective, program.batch),
        "batch_size": given.data.batch_size,
        "lengths": lengths,
        "tokens_per_step": given.data.batch_size * sum(lengths),
        "steps": _steps(given, lengths),
    }


def given_by(configuration: "Configuration", changes: Mapping[str, Any]) -> SimpleNamespace:
    """Returns all arguments of a configured `train`, with the spec, and model and objective made.

    Args:
      configuration: that binds them.
      changes: what a search changes: `mesh`, `remat` and `num_microbatches`, or nothing.
    """
    bindings = configuration.bindings_of(train)
    try:
        given = arguments_of(bindings)
        if "mesh" in changes:
            given.layout = dataclasses.replace(given.layout, mesh=changes["mesh"])
            given.compute = dataclasses.replace(given.compute, remat=changes["remat"])
            given.update = dataclasses.replace(
                given.update, num_microbatches=changes["num_microbatches"]
            )
        given.spec = preset(given.model) if isinstance(given.model, str) else given.model
        given.model = Model(given.spec, given.compute)
        given.objective = fit(given.objective, given.model)
    except InputError as error:
        place = configuration.source.place_of("train", str(error))
        raise InputError(f"{place}: {error}" if place else str(error)) from error
    return given


def program_of(given: SimpleNamespace, mesh: Any) -> Any:
    """Builds the run's program, as `train` does."""
    shapes = given.data.batch_shapes(given.objective)
    given.model.check(shapes)
    return build(
        given.model,
        given.objective,
        given.optimizer,
        shapes,
        layout=given.layout,
        mesh=mesh,
        update=given.update,
        update_scale=any(getattr(each, "scales_updates", False) for each in given.callbacks),
    )


def _steps(given: SimpleNamespace, lengths: Sequence[int]) -> int | None:
    """Returns after how many steps the run ends, tokens counted as if there were no padding."""
    ends = [given.steps]
    if given.tokens is not None:
        ends.append(math.ceil(given.tokens / (given.data.batch_size * sum(lengths))))
    return min((end for end in ends if end is not None), default=None)


def _advice(
    given: SimpleNamespace,
    program: Any,
    on: Slice,
    needed: float | None,
    available: float | None,
) -> Iterator[str]:
    """Yields what would need less memory and is not done yet, the cheapest first."""
    state = device_bytes(program.state) + device_bytes(program.state.params)
    hbm = on.chip.hbm / on.chip.devices
    rows = next(iter(program.batch.values()))
    own_rows = rows.sharding.shard_shape(rows.shape)[0]
    times = given.update.num_microbatches
    if state < hbm:
        if given.compute.remat not in ("full", "offload"):
            yield (
                "keep less for the backward pass: --gin.t5lite.models.ComputeSpec.remat='\"full\"'"
            )
        if own_rows // times > 1:
            more = min(own_rows, 2 * times)
            yield (
                "more microbatches, of less memory each: "
                f"--gin.t5lite.training.Update.num_microbatches={more}"
            )
    sizes = dict(given.layout.mesh)
    if sizes.get("fsdp", 1) == 1 and program.state.step.sharding.mesh.size > 1:
        yield (
            "spread the state over the devices: --gin_file=gin/partitioning/fsdp.gin, after "
            "the other files"
        )
    if getattr(given.optimizer, "mu_dtype", None) == "float32":
        name = type(given.optimizer).__name__
        yield f'a first moment of half the size: t5lite.optimizers.{name}.mu_dtype = "bfloat16"'
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
            timer = threading.Timer(seconds, process.kill) if seconds else None
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
        if timer and code < 0 and timer.finished.is_set() and not timer.is_alive():
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


def _name(given: SimpleNamespace) -> str:
    return f"{given.spec.family}'s step"


# ── a search ──────────────────────────────────────────────────────────────────────────────────


def _search(
    given: SimpleNamespace, on: Slice, compile_: _Compilation, *, minutes: float
) -> dict[str, Any]:
    """Compiles variations of a run, the most promising first, as long as there is time."""
    layout: Layout = given.layout
    kept = {axis: size for axis, size in layout.mesh.items() if axis in ("seq", "expert")}

    def program(mesh: Sequence[tuple[str, int]]) -> Any:
        varied = SimpleNamespace(**vars(given))
        varied.layout = dataclasses.replace(layout, mesh=dict(mesh))
        varied.update = dataclasses.replace(given.update, num_microbatches=1)
        return program_of(varied, abstract(mesh))

    stacks = [stack for stack in (given.spec.encoder, given.spec.decoder) if stack is not None]
    num_layers = sum(stack.num_layers for stack in stacks) / len(stacks)
    tokens = given.data.batch_size * sum(
        shape.shape[1]
        for name, shape in given.data.batch_shapes(given.objective).items()
        if name.endswith("_input_tokens")
    )
    stream = num_layers * tokens * given.spec.embed * given.compute.jax_dtype.itemsize
    devices = on.num_chips * on.chip.devices
    batch = given.data.batch_shapes(given.objective)
    order, cannot = candidates(
        program,
        list(meshes(devices, kept=kept, slices=layout.slices or {})),
        on=on,
        stream=stream,
        flops=step_flops(given.spec, given.objective, batch),
    )
    print(
        f"the run as it is, then {len(order)} variations to try within {minutes:g} minutes, the "
        f"most promising first; {cannot} cannot fit\n"
    )
    return _try_all(order, on, compile_, seconds=60 * minutes) | {"cannot_fit": cannot}


def _try_all(
    order: Sequence[Variation], on: Slice, compile_: _Compilation, *, seconds: float
) -> dict[str, Any]:
    """Compiles a run as it is configured, and then its variations, and prints what fits.

    Args:
      order: the variations.
      on: the slices.
      compile_: compiles one.
      seconds: for all of it.
    """
    end = time.monotonic() + seconds
    tried: list[tuple[Variation | None, dict[str, Any]]] = []  # None: as it is configured
    too_large: list[Variation] = []
    interrupted = False
    left_out: collections.Counter = collections.Counter()
    for number, variation in enumerate([None, *order]):
        if variation and any(known.needs_no_more_than(variation) for known in too_large):
            left_out["need more than what did not fit"] += 1
            continue
        if variation and any(_same(variation, found) for _, found in tried):
            left_out["is the run as it is"] += 1
            continue
        if (left := end - time.monotonic()) < _MIN_SECONDS:
            left_out["no time was left for"] += 1
            continue
        changes = (
            dataclasses.asdict(variation) | {"mesh": dict(variation.mesh)} if variation else {}
        )
        name = _name_of(variation)
        try:
            found = compile_(changes, title=f"{number}. {name}", seconds=left)
        except KeyboardInterrupt:
            interrupted = True
            left_out["not tried, interrupted"] += len(order) - number + 1
            break
        except InputError as error:
            found = {"aborted": str(error)}
        tried.append((variation, found))
        if variation and found.get("fits") is False:
            too_large.append(variation)
        print(f"{number:3}. {name}: {_outcome(found)}", flush=True)
    fits = [pair for pair in tried if pair[1].get("fits")]
    fits.sort(key=lambda pair: pair[1]["estimate"].get("step") or math.inf)
    print()
    for line in _ranking(fits, on):
        print(line)
    for reason, count in left_out.items():
        print(f"{count} {reason}")
    if interrupted:
        print("interrupted: this is what was done until then")
    plans = [found | {"flags": variation.flags() if variation else []} for variation, found in fits]
    others = [
        (dataclasses.asdict(variation) if variation else {}) | found
        for variation, found in tried
        if not found.get("fits")
    ]
    return {"plans": plans, "did_not_fit": others, "left_out": dict(left_out)}


def _name_of(variation: Variation | None) -> str:
    return variation.name if variation else "as configured"


def _same(variation: Variation, found: Mapping[str, Any]) -> bool:
    """Whether a variation is what was compiled already."""
    return (dict(variation.mesh), variation.remat, variation.num_microbatches) == tuple(
        found.get(name) for name in ("mesh", "remat", "microbatches")
    )


def _outcome(found: Mapping[str, Any]) -> str:
    if "aborted" in found:
        return found["aborted"].splitlines()[0]
    if not found["fits"]:
        return f"does not fit, {excess(found)}"
    step = found["estimate"].get("step")
    memory = in_bytes(found["memory"]["total"])
    return f"{memory} a device" + (f", {1000 * step:.3g} ms estimated" if step else "")


def _ranking(fits: Sequence[tuple[Variation | None, Mapping[str, Any]]], on: Slice) -> list[str]:
    if not fits:
        return ["nothing that was compiled fits"]
    rows = [("", "mesh, remat, microbatches", "memory", "step", "utilisation", "tokens/s/chip")]
    for place, (variation, found) in enumerate(fits, 1):
        estimates = found["estimate"]
        rows.append(
            (
                f"{place}.",
                _name_of(variation),
                in_bytes(found["memory"]["total"]),
                *(
                    (
                        f"{1000 * estimates['step']:.3g} ms",
                        f"{100 * estimates['utilisation']:.1f} %",
                        f"{estimates['tokens_per_second_per_chip']:,.0f}",
                    )
                    if estimates.get("step")
                    else ("?", "?", "?")
                ),
            )
        )
    lines = [f"what fits {on.name}, fastest first, by the compiler's estimates", ""]
    lines += table(rows, right=2)
    if (fastest := fits[0][0]) is None:
        return [*lines, "", "none that was tried is faster than the run as it is configured"]
    return [*lines, "", "the first one, as flags:", *(f"  {flag}" for flag in fastest.flags())]
