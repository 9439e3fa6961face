"""Report of a run before it starts: data, batches, model and cost, from shapes alone."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from t5lite.data.paths import check_folder
from t5lite.errors import InputError
from t5lite.experiment.cost import num_positions, step_flops, token_lengths
from t5lite.experiment.experiment import Experiment
from t5lite.experiment.preview import Preview, balance_lines, batch_lines, example_lines, look
from t5lite.experiment.run_folder import check_files, writer_files
from t5lite.experiment.start import Start
from t5lite.experiment.tree import arithmetic_lines, memory_lines, parameter_lines
from t5lite.interop.huggingface import export_note
from t5lite.models import PRESETS, ModelSpec, differences
from t5lite.parallel import MESH_AXES, Layout, make_mesh
from t5lite.planning.footprint import stream_bytes
from t5lite.text import shorten, titled, wrapped
from t5lite.training import Update
from t5lite.training.restore import saved_steps
from t5lite.training.stopping import check_watched


def report(experiment: Experiment, *, examples: int = 5, split: str = "train") -> str:
    """Returns a report of a run, in lines of at most 100 characters; computes and writes nothing.

    Unreachable data are reported as such; what `train` would refuse is an InputError.
    """
    if examples < 0:
        raise InputError(f"examples = {examples}: must be at least 0", field="examples")
    check_folder(experiment.model_dir, field="train.model_dir")
    mesh = _abstract_mesh(experiment.layout)
    program = experiment.program(mesh)
    preview, missing, start = _look(experiment, split=split, count=examples)
    axes = experiment.network.axes()
    lengths = token_lengths(experiment.bound, program.batch)
    tokens = experiment.data.batch_size * sum(lengths)
    sections: dict[str, Iterable[str]] = {
        "the run": _the_run(experiment, mesh, preview, lengths, start)
    }
    if missing is not None:
        sections["data"] = wrapped("cannot be read here: ", missing, max_lines=3)
    elif preview and preview.texts:
        sections[f"{len(preview.texts)} examples of {split!r}"] = example_lines(preview)
    counts = (
        experiment.data.class_counts(split)
        if preview and hasattr(experiment.data, "class_counts")
        else {}
    )
    if counts:
        sections["class balance"] = balance_lines(counts)
    sections["the batch"] = batch_lines(program.batch, preview)
    note = export_note(experiment.spec)
    parameters = parameter_lines(program, axes)
    sections["the model"] = [*parameters, *(["", *wrapped("note: ", note)] if note else [])]
    footprint = experiment.footprint(program)
    positions = num_positions(experiment.bound, program.batch)
    sections["the cost"] = [
        *memory_lines(program, axes, layout=experiment.layout),
        "",
        *footprint.lines(
            stream_bytes(experiment.spec, experiment.compute, num_positions=positions)
        ),
        *arithmetic_lines(
            step_flops(experiment.spec, experiment.bound, program.batch), tokens=tokens
        ),
    ]
    return titled(sections)


def _look(
    experiment: Experiment, *, split: str, count: int
) -> tuple[Preview | None, str | None, Start | None]:
    """Returns a preview of the data, or the reason for none, and the run's start."""
    start = None
    try:
        start = experiment.check()
        check_files(experiment.folder, writer_files(experiment.writers))
        # Metrics are the same on any mesh.
        run = experiment.run(make_mesh(Layout(), devices=jax.devices()[:1]))
        check_watched(experiment.callbacks, run, best=experiment.checkpoints.best)
        preview = look(
            experiment.data, experiment.bound, split=split, count=count, seed=experiment.seed
        )
        return preview, None, start
    except Exception as error:
        # Mistakes are caused by mistakes or missing modules; other causes are unreachable data.
        mistakes = InputError | ImportError | None
        if isinstance(error, InputError) and isinstance(error.__cause__, mistakes):
            raise
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        return None, kind + str(error).partition("\n")[0], start


def _abstract_mesh(layout: Layout) -> Any:
    """Returns the mesh without devices, of the fewest that fit if the local ones do not."""
    try:
        return make_mesh(layout).abstract_mesh
    except InputError:
        sizes = tuple(max(layout.mesh.get(axis, 1), 1) for axis in MESH_AXES)
        return AbstractMesh(sizes, MESH_AXES)


def _the_run(
    experiment: Experiment,
    mesh: Any,
    preview: Preview | None,
    lengths: Sequence[int],
    start: Start | None,
) -> list[str]:
    compute, checkpoints = experiment.compute, experiment.checkpoints
    layers = "scanned" if compute.scan else "unrolled"
    best = f", and the best {checkpoints.best}" if checkpoints.best else ""
    minutes = checkpoints.every_minutes
    often = f"every {checkpoints.every:,} steps" + (f" or {minutes:g} minutes" if minutes else "")
    facts = {
        "model_dir": f"{experiment.model_dir}: {_start(experiment, start)}",
        "model": _model_name(experiment.spec),
        "objective": _brief(experiment.bound),
        "data": _brief(experiment.data, leave_out=("lengths", "batch_size")),
        "length": _length(experiment, preview, lengths),
        "optimizer": _brief(experiment.optimizer, leave_out=("learning_rate",)),
        "learning rate": _rates(experiment.optimizer, _num_steps(experiment, preview, lengths)),
        "update": _brief(experiment.update),
        "compute": f"{compute.dtype}, layers {layers}, remat {compute.remat}",
        "callbacks": " · ".join(map(_brief, experiment.callbacks)) or "none",
        "checkpoints": f"{often}, the last {checkpoints.keep} kept{best}",
        "devices": _devices(experiment.layout, mesh),
    }
    if experiment.update == Update():
        del facts["update"]
    return [line for label, text in facts.items() for line in wrapped(f"{label:15}", text)]


def _start(experiment: Experiment, start: Start | None) -> str:
    step = max(saved_steps(experiment.folder / "checkpoints"), default=None)
    if step is None:
        source = experiment.checkpoints.restore_from
        if source is None:
            return "a new run"
        lines = [*start.lines()][1:] if start else []
        return "; ".join([f"a new run, from the parameters of {source}", *lines])
    if experiment.steps is None:
        return f"would resume at step {step:,}, unless it is complete"
    if step >= experiment.steps:
        return f"finished, at step {step:,} of {experiment.steps:,}"
    return f"would resume at step {step:,} of {experiment.steps:,}"


def _model_name(spec: ModelSpec) -> str:
    changed, name = min(
        ((differences(preset, spec), name) for name, preset in PRESETS.items()),
        key=lambda pair: len(pair[0]),
    )
    if not changed:
        return name
    if len(changed) > 4:
        return f"a custom {spec.family}"
    more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
    return f"{name} but {'; '.join(map(str, changed[:2]))}{more}"


def _length(experiment: Experiment, preview: Preview | None, lengths: Sequence[int]) -> str:
    """Returns the end of the run, in steps, tokens and epochs."""
    rows = experiment.data.batch_size
    tokens = rows * sum(lengths)
    shape = f"{rows:,} rows × ({' + '.join(map(str, lengths))}) tokens = {tokens:,} a step"
    ends = {"steps": experiment.steps, "tokens": experiment.tokens, "epochs": experiment.epochs}
    limits = [f"{value:,} {unit}" for unit, value in ends.items() if value is not None]
    whole = "" if limits[0].endswith("steps") and len(limits) == 1 else f"{' or '.join(limits)}: "
    steps = _num_steps(experiment, preview, lengths)
    if steps is None:
        return f"{whole}{shape}, padding included"
    about = "" if steps == experiment.steps else "about "
    text = f"{whole}{about}{steps:,} × {shape}, {steps * tokens:,} in all, padding included"
    if preview is not None and preview.epochs_per_row is not None:
        text += f"; about {steps * rows * preview.epochs_per_row:.2g} epochs"
    return text


def _num_steps(
    experiment: Experiment, preview: Preview | None, lengths: Sequence[int]
) -> int | None:
    """Returns the approximate number of steps; None if unknown."""
    rows, ends = experiment.data.batch_size, [experiment.steps]
    if preview is not None and experiment.tokens is not None:
        filled = zip(lengths, preview.padding.values(), strict=False)
        tokens = rows * sum(length * (1 - padding) for length, padding in filled)
        ends.append(math.ceil(experiment.tokens / tokens))
    if preview is not None and experiment.epochs is not None and preview.epochs_per_row:
        ends.append(math.ceil(experiment.epochs / (rows * preview.epochs_per_row)))
    return min((end for end in ends if end is not None), default=None)


def _rates(optimizer: Any, steps: int | None) -> str:
    """Returns the learning rate at the first, highest, middle and last step."""
    schedule = getattr(optimizer, "learning_rate", None)
    if schedule is None:
        return "inside the optimizer"

    def rate(step: int) -> float:
        return float(schedule(step) if callable(schedule) else schedule)

    if steps is None:
        return f"{rate(0):.3g} at first; its course depends on the end of the run"
    highest = _highest(functools.cache(rate), steps - 1)
    shown = {step: rate(step) for step in sorted({0, highest, steps // 2, steps - 1})}
    if len(set(shown.values())) == 1:
        return f"{rate(0):.3g} throughout"
    return " → ".join(
        f"{value:.3g} at {step:,}" + " (highest)" * (step == highest)
        for step, value in shown.items()
    )


def _highest(rate: Callable[[int], float], last: int) -> int:
    """Returns the first step with the highest rate, searched on ever finer grids."""
    low, high = 0, last
    while True:
        grid = np.unique(np.linspace(low, high, 33).astype(int)).tolist()
        best = int(np.argmax([rate(step) for step in grid]))
        if len(grid) == high - low + 1:
            return grid[best]
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]


def _devices(layout: Layout, mesh: Any) -> str:
    here = jax.devices()
    sizes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    kind = here[0].device_kind
    if mesh.size == len(here):
        return f"{len(here)} × {kind}" + (f", as {sizes}" if sizes else "")
    return (
        f"shown for {mesh.size}, as {sizes}; {len(here)} × {kind} are here, and train would refuse "
        f"Layout.mesh = {dict(layout.mesh)}"
    )


def _brief(value: Any, *, leave_out: Sequence[str] = ()) -> str:
    """Returns a dataclass as one short line: its name, and the fields that are not defaults."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return getattr(value, "__name__", type(value).__name__)
    parts = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if not field.init or field.name in leave_out or item is default:
            continue
        text = item.__name__ if callable(item) and hasattr(item, "__name__") else _brief_item(item)
        if default is dataclasses.MISSING or text != _brief_item(default):
            parts.append(f"{field.name}={text}")
    return f"{type(value).__name__}({', '.join(parts)})" if parts else type(value).__name__


def _brief_item(item: Any) -> str:
    if isinstance(item, list | tuple) and len(item) > 4:
        return f"{len(item):,} items"
    return _brief(item) if dataclasses.is_dataclass(item) else shorten(repr(item), 60)
