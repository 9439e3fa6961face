"""Memory of a run against that of the local devices, and advice to save some."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from t5lite.errors import InputError, RunError
from t5lite.models import ComputeSpec, ModelSpec
from t5lite.parallel import Layout
from t5lite.planning.capacity import Capacity, capacity
from t5lite.planning.compiled import DoesNotFit, device_bytes, does_not_fit, step_memory
from t5lite.planning.search import least_bytes, own_rows
from t5lite.text import in_bytes, wrapped
from t5lite.training import Program, Update

_MOST = 3  # tips in an error


class Footprint:
    """Memory of a run's program against that of this process's devices; `settings` of `savings`."""

    def __init__(self, program: Program, **settings: Any):
        self._program, self._settings = program, settings

    def check_state(self) -> None:
        """Raises an InputError if not even the state fits; allocates and compiles nothing."""
        here = capacity(jax.local_devices()[0])
        if here is not None and (state := device_bytes(self._program.state)) > here.bytes:
            raise InputError(self._too_large("parameters and optimizer state need", state, here))

    def check_step(self) -> None:
        """Raises an InputError if a step needs more than there is, the state already in memory."""
        device = jax.local_devices()[0]
        here = capacity(device)
        try:
            memory = step_memory(self._program)
        except DoesNotFit as error:
            needed, available = error.needed, error.available
            if needed is None or available is None:
                raise InputError(self._advised(f"a step does not fit: {error}")) from error
            size = Capacity(int(available), f"a {device.device_kind}")
            raise InputError(self._too_large("a step needs", needed, size)) from error
        if here is not None:
            state = device_bytes(self._program.state) if device.platform == "cpu" else 0
            size = here._replace(bytes=here.bytes + state)
            if memory.total > size.bytes:
                raise InputError(self._too_large("a step needs", memory.total, size))

    def lines(self, stream: float) -> list[str]:
        """Returns a comparison with the local devices; `stream` as of `stream_bytes`."""
        if (here := capacity(jax.local_devices()[0])) is None:
            return []
        num_microbatches = self._settings["update"].num_microbatches
        least = least_bytes(self._program, stream=stream, num_microbatches=num_microbatches)
        text = f"at least {in_bytes(least)} a device with activations; "
        if least <= here.bytes:
            return wrapped("memory  ", f"{text}{here.owner} has {in_bytes(here.bytes)}")
        short, *advice = self._too_large("", least, here).strip().splitlines()
        refused = device_bytes(self._program.state) > here.bytes
        end = "train would refuse it here" if refused else "train may fail here"
        lines = wrapped("memory  ", f"{text}{short.partition(', ')[2]}: {end}")
        return lines + [line for tip in advice for line in wrapped("        - ", tip)]

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Adds advice to the error of a device that runs out of memory inside."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            failure = does_not_fit(error)
            if failure is None:
                raise
            raise RunError(self._advised(f"a device ran out of memory: {failure}")) from error

    def _too_large(self, subject: str, needed: float, here: Capacity) -> str:
        return self._advised(
            f"{subject} {in_bytes(needed)} a device, {in_bytes(needed - here.bytes)} more than the "
            f"{in_bytes(here.bytes)} of {here.owner}"
        )

    def _advised(self, message: str) -> str:
        here = capacity(jax.local_devices()[0])
        advice = savings(self._program, bytes_here=here and here.bytes, **self._settings)
        return "\n  ".join([message, *list(advice)[:_MOST]])


def stream_bytes(spec: ModelSpec, compute: ComputeSpec, *, num_positions: int) -> float:
    """Returns the bytes of the residual stream at each layer, which every policy saves of a batch.

    Args:
      compute: gives the type of activations.
      num_positions: of the global batch, padding included.
    """
    stacks = [stack for stack in (spec.encoder, spec.decoder) if stack is not None]
    num_layers = sum(stack.num_layers for stack in stacks) / len(stacks)
    return num_layers * num_positions * spec.embed * compute.jax_dtype.itemsize


def savings(
    program: Program,
    *,
    compute: ComputeSpec,
    update: Update,
    layout: Layout,
    optimizer: Any,
    bytes_here: float | None,
) -> Iterator[str]:
    """Yields advice that saves memory and is not followed yet, the cheapest first.

    Flags also bind the object whose setting they are; `bytes_here`: of a device, None if unknown.
    """
    rows, num_microbatches = own_rows(program), update.num_microbatches
    state = least_bytes(program, stream=0, num_microbatches=num_microbatches)
    if bytes_here is None or state < bytes_here:
        if compute.remat not in ("full", "offload"):
            yield (
                "keep less for the backward pass: "
                "--gin.t5lite.train.compute='@t5lite.models.ComputeSpec()' "
                "--gin.t5lite.models.ComputeSpec.remat='\"full\"'"
            )
        if rows // num_microbatches > 1:
            more = min(rows, 2 * num_microbatches)
            yield (
                "more microbatches, of less memory each: "
                "--gin.t5lite.train.update='@t5lite.training.Update()' "
                f"--gin.t5lite.training.Update.num_microbatches={more}"
            )
    replicated: Any = program.state.step.sharding
    if dict(layout.mesh).get("fsdp", 1) == 1 and replicated.mesh.size > 1:
        yield (
            "shard the state over the devices: --gin_file=gin/partitioning/fsdp.gin, after "
            "the other files"
        )
    if getattr(optimizer, "mu_dtype", None) == "float32":
        name = type(optimizer).__name__
        yield f'a first moment of half the size: t5lite.optimizers.{name}.mu_dtype = "bfloat16"'
    if bytes_here is not None and state >= bytes_here:
        yield "a smaller model, an optimizer that keeps less (Adafactor), or more devices"
