"""What a run would do, from shapes and a look at its data: a report that computes no parameters."""

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
from t5lite.experiment.cost import step_flops, token_lengths
from t5lite.experiment.experiment import Experiment
from t5lite.experiment.preview import Preview, balance_lines, batch_lines, example_lines, look
from t5lite.experiment.run_folder import check_files
from t5lite.experiment.start import Start
from t5lite.experiment.tree import arithmetic_lines, memory_lines, parameter_lines
from t5lite.interop.huggingface import export_note
from t5lite.models import PRESETS, Difference, ModelSpec, differences
from t5lite.parallel import MESH_AXES, Layout, make_mesh
from t5lite.planning.footprint import stream_bytes
from t5lite.text import shorten, titled, wrapped
from t5lite.training import Update
from t5lite.training.restore import saved_steps
from t5lite.training.stopping import check_watched


def report(given: Experiment, *, examples: int = 5, split: str = "train") -> str:
    """Says what a run's `train` would do; computes no parameters and writes nothing.

    Data that cannot be reached from here is said so, and the rest goes without it.

    Args:
      given: the run.
      examples: how many to show.
      split: of the data, that they are from.

    Returns:
      Lines of at most 100 characters.

    Raises:
      InputError: for whatever `train` would refuse.
    """
    if examples < 0:
        raise InputError(f"examples = {examples}: must be at least 0", field="examples")
    check_folder(given.model_dir, field="train.model_dir")
    mesh = _abstract_mesh(given.layout)
    program = given.program(mesh)
    seen, missing, start = _look(given, split=split, count=examples)
    axes = given.network.axes()
    lengths = token_lengths(program.batch)
    tokens = given.data.batch_size * sum(lengths)
    sections: dict[str, Iterable[str]] = {"the run": _the_run(given, mesh, seen, lengths, start)}
    if missing is not None:
        sections["data"] = wrapped("cannot be read here: ", missing, max_lines=3)
    elif seen and seen.texts:
        sections[f"{len(seen.texts)} examples of {split!r}"] = example_lines(seen)
    counts = given.data.class_counts(split) if seen and hasattr(given.data, "class_counts") else {}
    if counts:
        sections["class balance"] = balance_lines(counts)
    sections["the batch"] = batch_lines(program.batch, seen)
    note = export_note(given.spec)
    parameters = parameter_lines(program, axes)
    sections["the model"] = [*parameters, *(["", *wrapped("note: ", note)] if note else [])]
    footprint = given.footprint(program)
    sections["the cost"] = [
        *memory_lines(program, axes, layout=given.layout),
        "",
        *footprint.lines(stream_bytes(given.spec, given.compute, program.batch)),
        *arithmetic_lines(step_flops(given.spec, given.bound, program.batch), tokens=tokens),
    ]
    return titled(sections)


def _look(
    given: Experiment, *, split: str, count: int
) -> tuple[Preview | None, str | None, Start | None]:
    """Returns a look at the data or why there is none, and the folder that the run starts from.

    Raises:
      InputError: for whatever `train` would refuse.
    """
    start = None
    try:
        start = given.check()
        files = [name for each in given.writers for name in getattr(each, "files", ())]
        check_files(given.folder, files)
        # Metrics are the same on any mesh.
        run_ = given.run(make_mesh(Layout(), devices=jax.devices()[:1]))
        check_watched(given.callbacks, run_, best=given.checkpoints.best)
        seen = look(given.data, given.bound, split=split, count=count, seed=given.seed)
        return seen, None, start
    except Exception as error:
        # A mistake has no cause but a mistake, or a module; what lies elsewhere has another.
        mistakes = InputError | ImportError | None
        if isinstance(error, InputError) and isinstance(error.__cause__, mistakes):
            raise
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        return None, kind + str(error).partition("\n")[0], start


def _abstract_mesh(layout: Layout) -> Any:
    """Returns the mesh without its devices; if those here do not fit, of the fewest that would."""
    try:
        return make_mesh(layout).abstract_mesh
    except InputError:
        sizes = tuple(max(layout.mesh.get(axis, 1), 1) for axis in MESH_AXES)
        return AbstractMesh(sizes, MESH_AXES)


def _the_run(
    given: Experiment, mesh: Any, seen: Preview | None, lengths: Sequence[int], start: Start | None
) -> list[str]:
    compute, checkpoints = given.compute, given.checkpoints
    layers = "scanned" if compute.scan else "unrolled"
    best = f", and the best {checkpoints.best}" if checkpoints.best else ""
    minutes = checkpoints.every_minutes
    often = f"every {checkpoints.every:,} steps" + (f" or {minutes:g} minutes" if minutes else "")
    facts = {
        "model_dir": f"{given.model_dir}: {_start(given, start)}",
        "model": _model_name(given.spec),
        "objective": _brief(given.bound),
        "data": _brief(given.data, leave_out=("lengths", "batch_size")),
        "length": _length(given, seen, lengths),
        "optimizer": _brief(given.optimizer, leave_out=("learning_rate",)),
        "learning rate": _rates(given.optimizer, _num_steps(given, seen, lengths)),
        "update": _brief(given.update),
        "compute": f"{compute.dtype}, layers {layers}, remat {compute.remat}",
        "callbacks": " · ".join(map(_brief, given.callbacks)) or "none",
        "checkpoints": f"{often}, the last {checkpoints.keep} kept{best}",
        "devices": _devices(given.layout, mesh),
    }
    if given.update == Update():
        del facts["update"]
    return [line for label, text in facts.items() for line in wrapped(f"{label:15}", text)]


def _start(given: Experiment, start: Start | None) -> str:
    done = max(saved_steps(given.folder / "checkpoints"), default=None)
    if done is None:
        source = given.checkpoints.restore_from
        if source is None:
            return "a new run"
        lines = [*start.lines()][1:] if start else []
        return "; ".join([f"a new run, from the parameters of {source}", *lines])
    if given.steps is None:
        return f"would resume at step {done:,}, unless it is at its end"
    if done >= given.steps:
        return f"finished, at step {done:,} of {given.steps:,}"
    return f"would resume at step {done:,} of {given.steps:,}"


def _model_name(spec: ModelSpec) -> str:
    changed, name = min(
        ((differences(known, spec), name) for name, known in PRESETS.items()),
        key=lambda pair: len(pair[0]),
    )
    if not changed:
        return name
    return f"{name} but {_some(changed)}" if len(changed) <= 4 else f"a {spec.family} of its own"


def _some(changed: Sequence[Difference]) -> str:
    more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
    return "; ".join(map(str, changed[:2])) + more


def _length(given: Experiment, seen: Preview | None, lengths: Sequence[int]) -> str:
    """Returns when the run ends, and what that comes to in steps, tokens and epochs."""
    rows = given.data.batch_size
    tokens = rows * sum(lengths)
    shape = f"{rows:,} rows × ({' + '.join(map(str, lengths))}) tokens = {tokens:,} a step"
    ends = {"steps": given.steps, "tokens": given.tokens, "epochs": given.epochs}
    limits = [f"{value:,} {unit}" for unit, value in ends.items() if value is not None]
    whole = "" if limits[0].endswith("steps") and len(limits) == 1 else f"{' or '.join(limits)}: "
    steps = _num_steps(given, seen, lengths)
    if steps is None:
        return f"{whole}{shape}, padding included"
    about = "" if steps == given.steps else "about "
    text = f"{whole}{about}{steps:,} × {shape}, {steps * tokens:,} in all, padding included"
    if seen is not None and seen.epochs_per_row is not None:
        text += f"; about {steps * rows * seen.epochs_per_row:.2g} epochs"
    return text


def _num_steps(given: Experiment, seen: Preview | None, lengths: Sequence[int]) -> int | None:
    """Returns after how many steps the run ends, about, or None where that cannot be said."""
    rows, ends = given.data.batch_size, [given.steps]
    if seen is not None and given.tokens is not None:
        filled = zip(lengths, seen.padding.values(), strict=False)
        tokens = rows * sum(length * (1 - padding) for length, padding in filled)
        ends.append(math.ceil(given.tokens / tokens))
    if seen is not None and given.epochs is not None and seen.epochs_per_row:
        ends.append(math.ceil(given.epochs / (rows * seen.epochs_per_row)))
    return min((end for end in ends if end is not None), default=None)


def _rates(optimizer: Any, steps: int | None) -> str:
    """Returns the learning rate at the first, highest, middle and last step."""
    schedule = getattr(optimizer, "learning_rate", None)
    if schedule is None:
        return "inside the optimizer"

    def rate(step: int) -> float:
        return float(schedule(step) if callable(schedule) else schedule)

    if steps is None:
        return f"{rate(0):.3g} at first; how it goes on depends on where the run ends"
    highest = _highest(functools.cache(rate), steps - 1)
    shown = {step: rate(step) for step in sorted({0, highest, steps // 2, steps - 1})}
    if len(set(shown.values())) == 1:
        return f"{rate(0):.3g} throughout"
    return " → ".join(
        f"{value:.3g} at {step:,}" + " (highest)" * (step == highest)
        for step, value in shown.items()
    )


def _highest(rate: Callable[[int], float], last: int) -> int:
    """Finds the first step with the highest rate, on ever finer grids."""
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
        f"shown for {mesh.size}, as {sizes}; here are {len(here)} × {kind}, "
        f"on which train would refuse Layout.mesh = {dict(layout.mesh)}"
    )


def _brief(value: Any, *, leave_out: Sequence[str] = ()) -> str:
    """Returns a dataclass as its name and what differs from its defaults, one short line."""
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
        return f"{len(item):,} of them"
    return _brief(item) if dataclasses.is_dataclass(item) else shorten(repr(item), 60)
