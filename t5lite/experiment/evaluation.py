"""Evaluation of a checkpoint: a run's callbacks, once."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from t5lite.data.paths import write_whole
from t5lite.data.sources import NoSplit
from t5lite.errors import InputError
from t5lite.experiment.cuts import count_cuts
from t5lite.experiment.experiment import Experiment
from t5lite.experiment.run_folder import check_described
from t5lite.experiment.settings import check_model
from t5lite.inference import Loaded, load
from t5lite.interop import Description, Opened, locate, open_model
from t5lite.models import Model
from t5lite.parallel import check_batch, shardings
from t5lite.text import metric_lines
from t5lite.training import Checkpoints, Edit, Run, Stop, TrainState, process_shards
from t5lite.training.frozen import read_referred
from t5lite.training.restore import (
    absolute,
    named,
    read_arrays,
    read_document,
    read_together,
    saved_arrays,
    saved_steps,
)
from t5lite.training.state import frozen_of

_CHECKED = 1024  # examples whose truncation is counted
_READABLE = 40  # characters of a data set's name in that of a file


def evaluate(
    experiment: Experiment, *, checkpoint: str = "latest", sample: bool = False
) -> dict[str, float]:
    """Calls each callback once with a checkpoint's parameters, averaged ones where it has them.

    Prints the metrics, and writes them to `model_dir/evaluation-<step>-<data>.json`, over those of
    an earlier evaluation of that step on the same data. No file of training is touched: a run may
    go on meanwhile. Callbacks with a method `whole() -> Callback` read the whole split.

    Args:
      experiment: the run. Its `model`, if set, must be the checkpoint's; its data have a validation
        split, whose labels get the ids of training; `every` of callbacks is ignored;
        `checkpoints.best` and `best_mode` define the `"best"` checkpoint; the layout need not be
        that of training.
      checkpoint: `"latest"`, `"best"`, a step, or the folder of any checkpoint.
      sample: whether callbacks read the samples of training, instead of the whole split.

    Returns: the metrics of all callbacks.

    Raises:
      InputError: no such checkpoint, another model, vocabulary or labels, or no callback.
      CheckpointError: if the checkpoint is damaged.
    """
    if not experiment.callbacks:
        raise InputError(
            "train.callbacks is empty; add an evaluator, such as @t5lite.evaluation.HeldOut()",
            field="train.callbacks",
        )
    step_folder, home = locate(choose(experiment.model_dir, checkpoint, experiment.checkpoints))
    description = Description.read(home)
    experiment = dataclasses.replace(
        experiment,
        model=description.spec if experiment.model is None else experiment.model,
        data=experiment.data.with_labels(description.labels),
    )
    data, layout = experiment.data, experiment.layout
    objective = experiment.bound.prompted(description.prompts)
    check_model(experiment)
    check_described(home, experiment.spec, data.vocabulary(), data.labels())
    mesh = experiment.mesh()
    sizes = {name: tuple(leaf.shape) for name, leaf in data.batch_shapes(objective).items()}
    check_batch(layout, mesh, sizes, objective.axes())
    process_shards(data, layout, mesh)

    loaded = load(step_folder, compute=experiment.compute, layout=layout)
    assert loaded.step is not None  # a run's own checkpoint has one
    first = jax.process_index() == 0
    run = experiment.run(loaded.mesh, say=print if first else lambda text: None)
    run.objective, run.steps = objective, loaded.step
    run.say(f"evaluating {step_folder}")
    name, cut = _validation(data, objective) if first else ("", "")
    if cut:
        run.say(f"note: {cut}")
    if data.labels() and not description.labels:
        run.say(f"{home} has no labels.json: labels are numbered as in these data")
    state = _state(loaded.step, loaded.params, _references(experiment, description, loaded))
    _call(run, state, sample=sample)
    if not run.metrics:
        run.say("no callback returned a metric")
        return {}
    run.say("\n".join([f"\nmetrics at step {loaded.step:,}", *metric_lines(run.metrics)]))
    if first:
        path = experiment.folder / f"evaluation-{loaded.step}{_suffix(name)}.json"
        write(path, loaded, run.metrics, data=name)
        run.say(f"written to {path}")
    return run.metrics


def _call(run: Run, state: TrainState, *, sample: bool) -> None:
    for callback in run.callbacks:
        whole = getattr(callback, "whole", None)
        if whole is not None and not sample:
            callback = whole()
        result = callback(run, state, step=int(state.step))
        if result and not isinstance(result, Stop | Edit):
            run.metrics.update({name: float(value) for name, value in result.items()})


def _references(experiment: Experiment, description: Description, loaded: Loaded) -> dict[str, Any]:
    """Returns the parameters of the objective's references, "start" among them."""
    if not experiment.reference_models:
        return {}
    folder, mesh = loaded.folder, loaded.mesh
    saved, document = read_together(folder, lambda: (saved_arrays(folder), read_document(folder)))
    entry = document.get("frozen") or {}

    def read(name: str, model: Model, base: Opened | None) -> Any:
        shapes = model.shapes()
        sharding = named(shardings(model.axes(), experiment.layout.parameters, mesh))
        leaves = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding[path])
            for path, leaf in named(shapes).items()
        }
        prefix = f"frozen/references/{name}/"
        if (opened := experiment.references.get(name, base)) is not None:
            values = opened.read(leaves)
        elif all(prefix + path in saved for path in leaves):
            values = read_arrays(folder, {prefix + path: leaf for path, leaf in leaves.items()})
        else:
            field = f"{type(experiment.objective).__name__}.references"
            raise InputError(
                f"{field}: {name!r} is the start of a run, which {folder} does not hold; evaluate "
                "a checkpoint of a run with this objective, or name a folder",
                field=field,
            )
        return jax.tree.unflatten(jax.tree.structure(shapes), list(values.values()))

    def references(base: Opened | None = None) -> dict[str, Any]:
        models = experiment.reference_models.items()
        return {name: read(name, model, base) for name, model in models}

    def referred(base: str) -> dict[str, Any]:
        tuning = description.tuning.bind(experiment.network.axes(), experiment.network.shapes())
        _, frozen = tuning.split(loaded.params)
        return frozen_of(frozen, references(open_model(base, averaged=False)))

    if "folder" in entry and experiment.references.keys() < experiment.reference_models.keys():
        return read_referred(folder, entry, referred)["references"]  # type: ignore[no-any-return]
    return references()


def choose(model_dir: str, checkpoint: str, checkpoints: Checkpoints) -> epath.Path:
    """Returns the folder of a checkpoint; InputError if there is none."""
    if checkpoint not in ("latest", "best") and not checkpoint.isdecimal():
        if not absolute(checkpoint).exists():
            raise InputError(
                f"--checkpoint={checkpoint}: not latest, best, a step or an existing folder",
                field="checkpoint",
            )
        return absolute(checkpoint)
    steps = saved_steps(model_dir)
    if not steps:
        raise InputError(
            f"no checkpoint in {model_dir!r}; train first, with t5lite train and the same flags"
        )
    if checkpoint == "latest":
        return steps[max(steps)]
    if checkpoint == "best":
        best = checkpoints.best_step(model_dir)
        if checkpoints.best is None:
            raise InputError(
                "--checkpoint=best needs train.checkpoints.best, the name of a metric; "
                "or give a step",
                field="checkpoint",
            )
        if best is None:
            raise InputError(
                f"no checkpoint in {model_dir!r} was saved with the metric {checkpoints.best!r}; "
                "give a step"
            )
        return steps[best]
    if int(checkpoint) not in steps:
        raise InputError(
            f"no checkpoint of step {checkpoint} in {model_dir!r}; "
            f"it has {', '.join(map(str, sorted(steps)))}"
        )
    return steps[int(checkpoint)]


def _state(step: int, params: Any, references: Mapping[str, Any]) -> TrainState:
    """Returns a state without optimizer state."""
    return TrainState(
        step=jax.numpy.int32(step),
        params=params,
        frozen=frozen_of({}, references),
        opt_state={},
        rng=jax.random.key_data(jax.random.key(0)),
        extra={},
    )


def _validation(data: Any, objective: Any) -> tuple[str, str]:
    """Returns the name of the validation data, and a note on its truncated texts."""
    try:
        name = data.validation_name(objective)
    except NoSplit:  # callbacks may have data of their own
        return "", ""
    split = getattr(data, "validation_split", "validation")
    cuts = count_cuts(data, objective, split=split, most=_CHECKED, seed=0)
    return name, cuts.text() if cuts else ""


def _suffix(name: str) -> str:
    """Returns the end of a file's name for some data: readable and unique."""
    if not name:
        return ""
    readable = re.sub(r":[0-9a-f]{16}\b", "", name)  # a digest; another one follows
    readable = re.sub(r"[^\w.]+", "-", readable)[:_READABLE].strip("-.")
    return f"-{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def write(
    path: epath.Path, loaded: Loaded, metrics: Mapping[str, float], *, data: str = ""
) -> None:
    """Writes metrics as JSON, NaN and infinities as null."""
    content = {
        "step": loaded.step,
        "checkpoint": str(loaded.folder),
        "data": data,
        "metrics": {n: value if math.isfinite(value) else None for n, value in metrics.items()},
    }
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
