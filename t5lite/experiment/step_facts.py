"""The facts of a run's step that plans and benchmarks report."""

import math
from collections.abc import Sequence
from typing import Any

from t5lite.experiment.cost import step_flops, token_lengths
from t5lite.experiment.description import count
from t5lite.experiment.experiment import Experiment
from t5lite.training import Program


def facts(experiment: Experiment, program: Program, mesh: Any) -> dict[str, Any]:
    """Returns the facts of a run's step that plans and benchmarks report, as JSON values."""
    lengths = token_lengths(experiment.bound, program.batch)
    return {
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "dtype": experiment.compute.dtype,
        "remat": experiment.compute.remat,
        "microbatches": experiment.update.num_microbatches,
        "parameters": count(program.params),
        "trained": count(program.state.params),
        "flops_per_step": step_flops(experiment.spec, experiment.bound, program.batch),
        "batch_size": experiment.data.batch_size,
        "lengths": lengths,
        "tokens_per_step": experiment.data.batch_size * sum(lengths),
        "steps": _steps(experiment, lengths),
    }


def _steps(experiment: Experiment, lengths: Sequence[int]) -> int | None:
    """Returns the number of steps of the run, padding ignored."""
    ends = [experiment.steps]
    if experiment.tokens is not None:
        ends.append(math.ceil(experiment.tokens / (experiment.data.batch_size * sum(lengths))))
    return min((end for end in ends if end is not None), default=None)
