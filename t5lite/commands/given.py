"""What a configuration gives `train`: arguments, the program they build, and what a step is."""

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax

from t5lite.commands.start import spec_of
from t5lite.commands.train import step_flops, token_lengths, train
from t5lite.errors import InputError
from t5lite.models import Model
from t5lite.objectives import bind
from t5lite.training import Program, build

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def arguments_of(bound: Mapping[str, Any]) -> SimpleNamespace:
    """Returns all arguments of `train` by name, from those that a configuration binds.

    Raises:
      InputError: if one is missing that has no default.
    """
    parameters = inspect.signature(train).parameters
    missing = [
        repr(name)
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in bound
    ]
    if missing:
        raise InputError(f"train needs {' and '.join(missing)}, which no file or flag binds")
    arguments = inspect.signature(train).bind(**bound)
    arguments.apply_defaults()
    return SimpleNamespace(**arguments.arguments)


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
        given.spec = spec_of(given.model, given.checkpoints, given.model_dir)
        given.model = Model(given.spec, given.compute)
        given.objective = bind(given.objective, given.model)
    except InputError as error:
        place = configuration.source.place_of("train", error)
        raise InputError(f"{place}: {error}" if place else str(error)) from error
    return given


def program_of(given: SimpleNamespace, mesh: Any) -> Program:
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


def facts(given: SimpleNamespace, program: Program, mesh: Any) -> dict[str, Any]:
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


def _steps(given: SimpleNamespace, lengths: Sequence[int]) -> int | None:
    """Returns after how many steps the run ends, tokens counted as if there were no padding."""
    ends = [given.steps]
    if given.tokens is not None:
        ends.append(math.ceil(given.tokens / (given.data.batch_size * sum(lengths))))
    return min((end for end in ends if end is not None), default=None)
