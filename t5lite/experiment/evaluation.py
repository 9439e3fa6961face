"""Evaluation of a checkpoint: a run's callbacks, once."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from t5lite.data.paths import write_whole
from t5lite.data.sources import NoSplit
from t5lite.errors import InputError
from t5lite.experiment.cuts import count_cuts
from t5lite.experiment.prompts import as_trained
from t5lite.experiment.run_folder import check_described
from t5lite.experiment.settings import check_model
from t5lite.inference import Loaded, load
from t5lite.interop import Description, locate
from t5lite.models import ComputeSpec, Model, ModelSpec, named_spec
from t5lite.objectives import bind
from t5lite.parallel import Layout, check_batch, make_mesh
from t5lite.text import metric_lines
from t5lite.training import Callback, Checkpoints, Edit, Run, Stop, TrainState, process_shards
from t5lite.training.restore import absolute, saved_steps
from t5lite.training.state import frozen_of

_CHECKED = 1024  # examples, for texts that are cut
_READABLE = 40  # characters of a data set's name in that of a file


def evaluate(
    model_dir: str,
    *,
    model: str | ModelSpec | None = None,
    objective: Any,
    data: Any,
    callbacks: Sequence[Callback],
    layout: Layout = Layout(),
    compute: ComputeSpec = ComputeSpec(),
    checkpoints: Checkpoints = Checkpoints(),
    checkpoint: str = "latest",
    sample: bool = False,
) -> dict[str, float]:
    """Runs each callback once on a checkpoint's parameters; the averaged ones where there are some.

    Prints the metrics, and writes them to `model_dir/evaluation-<step>-<data>.json`, over those of
    an earlier evaluation of that step on the same data; what training has written is left alone, so
    a run may go on meanwhile. Callbacks with a method `whole() -> Callback` read the whole split.

    Args:
      model_dir: of the run; see `train` for it and the others.
      model: must be what the checkpoint holds; None: whatever it holds.
      objective: what is measured.
      data: its validation split; its labels have the ids that they had in training.
      callbacks: evaluators and others; their `every` is ignored.
      layout: mesh and sharding, which need not be those of training.
      compute: dtype and so on.
      checkpoints: `best` and `best_mode` say which one `"best"` is.
      checkpoint: `"latest"`, `"best"`, a step, or the folder of any checkpoint.
      sample: whether callbacks read the samples that they read in training, where they do.

    Returns:
      The metrics of all callbacks.

    Raises:
      InputError: no such checkpoint, another model, vocabulary or labels than it has, or no
        callback.
      CheckpointError: if the checkpoint is damaged.
    """
    if not callbacks:
        raise InputError(
            "train.callbacks is empty; add what measures, such as @t5lite.evaluation.HeldOut()",
            field="train.callbacks",
        )
    found = locate(choose(model_dir, checkpoint, checkpoints))
    known = Description.read(found.home)
    spec = known.spec if model is None else named_spec(model)
    the_model = Model(spec, compute)
    objective = bind(objective, the_model)
    data = data.with_labels(known.labels)
    objective = as_trained(objective, known.prompts)
    check_model(the_model, objective, data=data, log_every=1, callbacks=callbacks)
    check_described(found.home, spec, data.vocabulary(), data.labels())
    shapes = data.batch_shapes(objective)
    mesh = make_mesh(layout)
    check_batch(layout, mesh, {name: tuple(each.shape) for name, each in shapes.items()})
    process_shards(data, layout, mesh)

    loaded = load(found.step_folder, compute=compute, layout=layout)
    assert loaded.step is not None  # a run's own checkpoint says it
    run_ = Run(
        model_dir=str(epath.Path(model_dir).expanduser()),
        model=loaded.model,
        objective=objective,
        data=data,
        layout=layout,
        mesh=loaded.mesh,
        steps=loaded.step,
        limits=loaded.model.limits,
        say=print if jax.process_index() == 0 else lambda text: None,
    )
    run_.say(f"evaluating {found.step_folder}")
    name, cut = _validation(data, objective) if jax.process_index() == 0 else ("", "")
    if cut:
        run_.say(f"note: {cut}")
    if data.labels() and not known.labels:
        run_.say(f"{found.home} has no labels.json: labels are numbered as in these data")
    state = state_of(loaded)
    for callback in callbacks:
        whole = getattr(callback, "whole", None)
        if whole is not None and not sample:
            callback = whole()
        result = callback(run_, state, step=loaded.step)
        if result and not isinstance(result, Stop | Edit):
            run_.metrics.update({name: float(value) for name, value in result.items()})
    if not run_.metrics:
        run_.say("no callback returned a metric")
        return {}
    run_.say("\n".join([f"\nmetrics at step {loaded.step:,}", *metric_lines(run_.metrics)]))
    if jax.process_index() == 0:
        path = absolute(model_dir) / f"evaluation-{loaded.step}{_suffix(name)}.json"
        write(path, loaded, run_.metrics, data=name)
        run_.say(f"written to {path}")
    return run_.metrics


def choose(model_dir: str, checkpoint: str, checkpoints: Checkpoints) -> epath.Path:
    """Returns the folder of the checkpoint that is asked for.

    Raises:
      InputError: if there is none.
    """
    if checkpoint not in ("latest", "best") and not checkpoint.isdecimal():
        if not absolute(checkpoint).exists():
            raise InputError(
                f"--checkpoint={checkpoint}: neither latest, best, a step nor a folder that exists"
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
                "or give a step"
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


def state_of(loaded: Loaded) -> TrainState:
    """Returns a state with all that `Run.params` reads, and nothing else: optimizers are large."""
    return TrainState(
        step=jax.numpy.int32(loaded.step),
        params=loaded.params,
        frozen=frozen_of(),
        opt_state={},
        rng=jax.random.key_data(jax.random.key(0)),
        extra={},
    )


def _validation(data: Any, objective: Any) -> tuple[str, str]:
    """Returns what tells the validation data from others, and which of its texts are cut."""
    try:
        name = data.validation_name(objective)
    except NoSplit:  # callbacks may have data of their own
        return "", ""
    split = getattr(data, "validation_split", "validation")
    cuts = count_cuts(data, objective, split=split, most=_CHECKED, seed=0)
    return name, cuts.text() if cuts else ""


def _suffix(name: str) -> str:
    """Returns the end of a file's name for some data: readable, and its own."""
    if not name:
        return ""
    readable = re.sub(r":[0-9a-f]{16}\b", "", name)  # a digest, of which there is one below
    readable = re.sub(r"[^\w.]+", "-", readable)[:_READABLE].strip("-.")
    return f"-{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def write(
    path: epath.Path, loaded: Loaded, metrics: Mapping[str, float], *, data: str = ""
) -> None:
    """Writes metrics as JSON, NaN and infinities as null.

    Raises:
      InputError: if the file cannot be written.
    """
    content = {
        "step": loaded.step,
        "checkpoint": str(loaded.folder),
        "data": data,
        "metrics": {n: value if math.isfinite(value) else None for n, value in metrics.items()},
    }
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
