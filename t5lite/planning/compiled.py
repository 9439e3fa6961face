"""Ahead-of-time compilation of a training step: memory, collectives and estimated time."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from t5lite.errors import InputError
from t5lite.planning import hlo
from t5lite.planning.topology import Slice
from t5lite.training import Program


class DoesNotFit(InputError):
    """The program needs more memory than a device has.

    Args:
      message: the compiler's, in one line.
      needed, available: bytes; None where the compiler does not report them.
    """

    def __init__(self, message: str, needed: float | None, available: float | None):
        super().__init__(message)
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device during a step.

    Args:
      parameters: trained and frozen, with an average of them if there is one.
      optimizer: its state.
      batch: one device's rows.
      host: of all these, what lies in the host's memory.
      temporaries: gradients, activations and whatever else lives within a step.
      code: the program itself.
      total: arguments and outputs, what they share counted once, temporaries and code; without
        the host's.
    """

    parameters: int
    optimizer: int
    batch: int
    host: int
    temporaries: int
    code: int
    total: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report on a step.

    Args:
      memory: of one device.
      program: its collectives and estimates; see `hlo.read`.
      lowering_seconds: tracing and lowering.
      compile_seconds: the compiler's.
    """

    memory: Memory
    program: hlo.Program
    lowering_seconds: float
    compile_seconds: float


def compile_step(
    program: Program,
    *,
    slice_of: list[int] | None = None,
    stage: Callable[[str], None] = lambda name: None,
) -> tuple[Compiled, Any]:
    """Compiles a run's own step; computes and allocates nothing.

    Args:
      program: built for the devices, see `training.build`.
      slice_of: each device's slice, in the order of the mesh; None if there is only one.
      stage: called with the name of each stage.

    Returns: the compiler's report, and the compiled step.

    Raises: DoesNotFit if it needs more memory than a device has.
    """
    start = time.monotonic()
    stage("tracing")
    lowered = program.step.lower(program.state, program.batch)
    traced = time.monotonic()
    stage("compiling")
    compiled = _compiled(lowered)
    end = time.monotonic()
    stage("reading the program")
    report = Compiled(
        memory=_memory(program, compiled.memory_analysis()),
        program=hlo.read(compiled.as_text(), slice_of=slice_of),
        lowering_seconds=traced - start,
        compile_seconds=end - traced,
    )
    return report, compiled


def step_memory(program: Program) -> Memory:
    """Compiles a run's own step, which its first call then finds done, and returns its memory.

    Raises: DoesNotFit if it needs more memory than a device has, where the compiler knows that.
    """
    compiled = _compiled(program.step.lower(program.state, program.batch))
    return _memory(program, compiled.memory_analysis())


def _compiled(lowered: Any) -> Any:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if failure := does_not_fit(error):
            raise failure from error
        raise


def _memory(program: Program, analysis: Any) -> Memory:
    state = program.state
    parts = {
        "parameters": (state.params, state.frozen, state.extra.get("ema", {})),
        "optimizer": state.opt_state,
        "batch": dict(program.batch),
    }
    total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )
    return Memory(
        **{name: device_bytes(tree) for name, tree in parts.items()},
        host=analysis.host_argument_size_in_bytes + analysis.host_temp_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        total=total,
    )


def device_bytes(tree: Any) -> int:
    """Returns the bytes that a tree of shapes with shardings has on each device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64))
        * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT])"


def does_not_fit(error: Exception) -> DoesNotFit | None:
    """Returns an out-of-memory error of JAX with its numbers; None for other errors."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    line = message.partition("RESOURCE_EXHAUSTED:")[2].strip().splitlines()[0]
    patterns = (
        rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)",
        rf"Used {_SIZE} of {_SIZE} hbm",
        rf"{_SIZE} exceeds .*?{_SIZE}",
    )
    for pattern in patterns:
        match = re.search(pattern, message)
        if match:
            needed, unit, available, unit_available = match.groups()
            sizes = float(needed) * _UNITS[unit], float(available) * _UNITS[unit_available]
            return DoesNotFit(line, *sizes)
    return DoesNotFit(line, None, None)


def estimate(
    compiled: Compiled, on: Slice, *, flops: float, tokens: float
) -> Mapping[str, float | None]:
    """Returns the time of a step, by the compiler's own numbers.

    Args:
      compiled: for the devices of `on`.
      flops: of a step of the whole batch: the model's matrix products, without recomputation.
      tokens: of a step of the whole batch.

    Returns:
      Seconds of a step: `compute`, the sum of the estimates of all operations; `communication`,
      bytes sent over one axis of the slice in both directions at once; `step_overlapped`, the
      longer of the two, and `step`, their sum; and of each of these two `utilisation…` in [0, 1]
      and `tokens_per_second_per_chip…`. None where the chip's clock is unknown. Operations without
      an estimate are left out: Pallas kernels, the network between slices, waiting for input.
    """
    chip, chips = on.chip, on.num_chips
    sent = sum(
        traffic.bytes - traffic.slow_bytes for traffic in compiled.program.collectives.values()
    )
    communication, ideal = sent / (2 * chip.link_bandwidth), flops / (chips * chip.flops)
    estimates: dict[str, float | None] = {"communication": communication, "ideal": ideal}
    compute = None if chip.clock is None else compiled.program.cycles / chip.clock
    estimates["compute"] = compute
    steps: tuple[float | None, float | None] = (None, None)
    if compute is not None:
        steps = compute + communication, max(compute, communication)
    for suffix, step in zip(("", "_overlapped"), steps, strict=True):
        estimates[f"step{suffix}"] = step
        estimates[f"utilisation{suffix}"] = step and ideal / step
        estimates[f"tokens_per_second_per_chip{suffix}"] = step and tokens / chips / step
    return estimates
