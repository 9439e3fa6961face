"""Ahead-of-time compilation of a run for a TPU slice, and a search over its variations."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.experiment.cost import num_positions, step_flops
from t5lite.experiment.experiment import Experiment
from t5lite.experiment.step_facts import facts
from t5lite.parallel import make_mesh, process_rows
from t5lite.planning import (
    DoesNotFit,
    Slice,
    abstract,
    candidates,
    compile_step,
    estimate,
    meshes,
)
from t5lite.planning.footprint import savings, stream_bytes
from t5lite.planning.trials import Compile, try_all
from t5lite.training import process_shards


def compile_for(experiment: Experiment, on: Slice, *, tell: Callable[..., None]) -> None:
    """Compiles a run's step; `tell` gets each `stage=`, and `result=`, a plan as JSON values."""
    mesh = make_mesh(experiment.layout, on.devices())
    program = experiment.program(mesh)
    places = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    result = facts(experiment, program, mesh) | {
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
        result |= {
            "fits": False,
            "needed": error.needed,
            "available": error.available,
            "compiler": str(error),
            "advice": list(_advice(experiment, program, on, error.needed, error.available)),
        }
        return tell(result=result)
    estimates = estimate(
        compiled, on, flops=result["flops_per_step"], tokens=result["tokens_per_step"]
    )
    result |= {"fits": True, "estimate": dict(estimates), **dataclasses.asdict(compiled)}
    return tell(result=result)


def _reading(experiment: Experiment, mesh: Any) -> list[dict[str, Any]]:
    """Returns the rows of a batch and the shards that each process reads, as [start, stop) runs."""
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
    """Yields advice that saves memory and is not followed yet, the cheapest first."""
    bytes_here = on.chip.hbm / on.chip.devices
    yield from savings(program, **experiment.memory_settings, bytes_here=bytes_here)
    if needed and available:  # most of it is sharded
        chips = on.num_chips * needed / available
        larger = (dataclasses.replace(on, shape=shape) for shape in on.chip.shapes)
        enough = next((slice_ for slice_ in larger if slice_.num_chips >= chips), None)
        if enough:
            yield f"a larger slice: --topology={enough.kind}:{enough.shape}, about"


def varied(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Returns a run with the changes of a search: `mesh`, `remat` and `num_microbatches`."""
    return dataclasses.replace(
        experiment,
        layout=dataclasses.replace(experiment.layout, mesh=changes["mesh"]),
        compute=dataclasses.replace(experiment.compute, remat=changes["remat"]),
        update=dataclasses.replace(experiment.update, num_microbatches=changes["num_microbatches"]),
    )


def search(
    experiment: Experiment, on: Slice, compile_: Compile, *, minutes: float
) -> dict[str, Any]:
    """Compiles variations of a run, the most promising first, within `minutes`.

    Returns: `plans`, the fastest first; `did_not_fit`; `left_out`, counts by reason; and
      `cannot_fit`, the number not tried because of their state's size alone.
    """
    layout = experiment.layout
    fixed = {axis: size for axis, size in layout.mesh.items() if axis in ("seq", "expert")}

    def program(mesh: Sequence[tuple[str, int]]) -> Any:
        remat = experiment.compute.remat
        changes = {"mesh": dict(mesh), "remat": remat, "num_microbatches": 1}
        return varied(experiment, changes).program(abstract(mesh))

    batch = experiment.data.batch_shapes(experiment.bound)
    stream = stream_bytes(
        experiment.spec,
        experiment.compute,
        num_positions=num_positions(experiment.bound, batch),
    )
    devices = on.num_chips * on.chip.devices
    order, cannot = candidates(
        program,
        list(meshes(devices, fixed=fixed, slices=layout.slices or {})),
        on=on,
        stream=stream,
        flops=step_flops(experiment.spec, experiment.bound, batch),
    )
    print(
        f"the run as it is, then {len(order)} variations to try within {minutes:g} minutes, the "
        f"most promising first; {cannot} cannot fit\n"
    )
    return try_all(order, on, compile_, seconds=60 * minutes) | {"cannot_fit": cannot}
