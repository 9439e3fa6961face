"""`t5lite train`: where model, objective, data, optimizer and layout meet."""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from jax.sharding import Mesh

from t5lite.commands.changes import changes
from t5lite.commands.cuts import count_cuts
from t5lite.commands.memory import Footprint
from t5lite.commands.preview import example_texts
from t5lite.commands.run_end import end_text
from t5lite.commands.run_folder import (
    check_files,
    describe,
    last_saved,
    one_writer,
)
from t5lite.commands.settings import check_settings, learning_rate, notes, rate_change
from t5lite.commands.start import Start, check_folder_of_run, first_state, plan_start, spec_of
from t5lite.data.batches import joint_state
from t5lite.data.input_format import InputFormat
from t5lite.data.paths import check_folder
from t5lite.errors import InputError
from t5lite.interop.huggingface import export_note
from t5lite.interop.prompts import prompts_of
from t5lite.models import (
    ComputeSpec,
    Model,
    ModelSpec,
    forward_flops,
)
from t5lite.objectives import bind
from t5lite.parallel import Layout, gather, make_mesh, noted
from t5lite.reporting import JsonLines, Meter, Progress, Report, TensorBoard, Writer, peak_flops
from t5lite.training import (
    Callback,
    Checkpoints,
    Duration,
    Loop,
    Profile,
    Run,
    TrainState,
    Update,
    build,
    process_shards,
)
from t5lite.training.notices import leaving_at_once
from t5lite.training.restore import absolute
from t5lite.training.state import Optimizer, name_of
from t5lite.training.step import counted
from t5lite.training.stopping import check_watched

if TYPE_CHECKING:
    from t5lite.configuration import Configuration

_SIDES = ("encoder", "decoder")
_SHOWN = 3  # examples in the report
_CHECKED = 256  # examples, for texts that are cut


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Calls `train` with the configuration's bindings."""
    del arguments
    with leaving_at_once():
        configuration.call(train, operative_config=configuration.operative_config)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run ends with.

    Args:
      state: after the last step.
      metrics: the latest held-out metrics.
      model: pure functions, for `state.params`.
    """

    state: TrainState
    metrics: dict[str, float]
    model: Model


def train(
    model_dir: str,
    *,
    model: str | ModelSpec | None = None,
    objective: Any,
    data: Any,
    optimizer: Optimizer,
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    layout: Layout = Layout(),
    compute: ComputeSpec = ComputeSpec(),
    update: Update = Update(),
    checkpoints: Checkpoints = Checkpoints(),
    callbacks: Sequence[Callback] = (),
    writers: Sequence[Callable[[str], Writer]] = (JsonLines, TensorBoard, Report),
    profile: Profile | None = None,
    log_every: int = 10,
    seed: int = 0,
    operative_config: Callable[[], str] | None = None,
) -> Trained:
    """Trains a model, or resumes the run that `model_dir` holds.

    Args:
      model_dir: where checkpoints, metrics and `model.json` go.
      model: a preset's name, a folder or a spec, see `models.named_spec`; None: that of
        `checkpoints.restore_from`.
      objective: what is learnt, e.g. `objectives.SpanCorruption()`.
      data: what from, e.g. `data.TaskData(...)`.
      optimizer: e.g. `optimizers.Adafactor(learning_rate=...)`, or any Optax transformation.
      steps: updates in all, those before a restart included; the first of `steps`, `tokens` and
        `epochs` that is reached ends the run. Schedules are given their number of steps apart.
      tokens: seen in all, without padding.
      epochs: passes over the training data: examples read by examples in all, those of all parts of
        a mixture together.
      layout: mesh and sharding.
      compute: dtype, rematerialisation, scan.
      update: microbatches, clipping, averaging, what a NaN or a spike does, float16's loss scale.
      checkpoints: when to save, what to keep, what to start from.
      callbacks: evaluation and whatever else happens now and then.
      writers: called with model_dir, each makes one place for metrics.
      profile: which steps to trace.
      log_every: steps between two lines of metrics.
      seed: of initialisation, data order and dropout.
      operative_config: gives the text for `config.gin`.

    Returns:
      The final state and held-out metrics.

    Raises:
      InputError: for whatever the user can fix, before any device work.
      CheckpointError: if a checkpoint can be neither written nor read.
      NonFiniteLoss: if the loss becomes NaN or infinite and `update` says stop.
    """
    check_folder(model_dir, field="train.model_dir")

    # What is trained, on what.
    folder = absolute(model_dir)
    spec = spec_of(model, checkpoints, folder)
    duration = Duration(steps, tokens, epochs)
    the_model, mesh = Model(spec, compute), make_mesh(layout)
    objective = bind(objective, the_model)
    start = accept(
        folder,
        the_model,
        objective,
        data=data,
        duration=duration,
        checkpoints=checkpoints,
        callbacks=callbacks,
        profile=profile,
        log_every=log_every,
    )
    program = build(
        the_model,
        objective,
        optimizer,
        data.batch_shapes(objective),
        layout=layout,
        mesh=mesh,
        update=update,
        update_scale=any(getattr(each, "scales_updates", False) for each in callbacks),
    )
    footprint = Footprint(
        program, compute=compute, update=update, layout=layout, optimizer=optimizer
    )
    footprint.check_state()
    say = print if jax.process_index() == 0 else (lambda text: None)

    with contextlib.ExitStack() as stack:
        stack.enter_context(footprint.explained())

        # What it reads.
        shards = process_shards(data, layout, mesh)[jax.process_index()]
        batches = data.train_batches(objective, seed=seed, shards=shards)
        stack.callback(batches.close)
        if mesh.shape["seq"] > 1 and hasattr(batches, "keep_lengths"):
            batches.keep_lengths()  # which divide over the mesh
        title, about = headline(the_model, mesh), data.describe()
        say(f"{title}\n{about}")

        # Where it is kept: nothing there changes before the run is accepted, but for a claim.
        stack.enter_context(noted(lambda: last_saved(model_dir)))
        claim = stack.enter_context(one_writer(folder, say=say))
        metrics_writers = [make(str(folder)) for make in writers]
        files = [name for each in metrics_writers for name in getattr(each, "files", ())]
        check_files(folder, files)
        check_folder_of_run(folder, spec, objective=objective, data=data)  # now that it is claimed

        # Where it starts: a checkpoint of its own, another run's parameters, or the initialisers.
        checkpointer = stack.enter_context(
            checkpoints.open(folder, warn=say, writable=False, optimizer=name_of(optimizer))
        )
        restored = checkpointer.restore(program.state, extra=program.extra)
        if restored:
            state = restored.state
        else:
            state = first_state(
                start, program, the_model, layout=layout, mesh=mesh, seed=seed, say=say
            )

        # What it does.
        progress = Progress(duration, active=jax.process_index() == 0)
        stack.callback(progress.close)
        run_ = Run(
            model_dir=str(folder),
            model=the_model,
            objective=objective,
            data=data,
            layout=layout,
            mesh=mesh,
            steps=steps,
            writers=metrics_writers,
            say=progress.say,
            limits=the_model.limits,
        )
        stack.callback(run_.writers.close)
        profiler = profile.open(folder) if profile else None
        if profiler:
            stack.callback(profiler.close)
        loop = Loop(
            run=run_,
            duration=duration,
            step_fn=program.step,
            batches=batches,
            data_state=lambda: joint_state(batches.state_dict(), gather),
            checkpointer=checkpointer,
            checkpoint_every=checkpoints.every,
            checkpoint_minutes=checkpoints.every_minutes,
            callbacks=callbacks,
            meter=Meter(peak=peak_flops(mesh.devices.flat)),
            progress=progress,
            flops=step_flops(spec, objective, program.batch) / _num_places(program.batch),
            profiler=profiler,
            log_every=log_every,
            learning_rate=learning_rate(optimizer),
            stop_on_nan=update.on_nan == "stop",
            max_skips=update.max_skips,
        )
        warnings = notes(
            duration, callbacks, checkpoints=checkpoints, optimizer=optimizer, update=update
        )
        if restored:
            loop.load_progress(restored.progress)
            saved, now = restored.progress.get("learning_rate"), learning_rate(optimizer)(state)
            warnings = itertools.chain(warnings, rate_change(saved, now, step=restored.step))
        if claim:  # process 0 alone says it
            warnings = itertools.chain(warnings, filter(None, [export_note(spec)]))
            split = getattr(data, "split", "train")
            cuts = count_cuts(data, objective, split=split, most=_CHECKED, seed=seed)
            warnings = itertools.chain(warnings, filter(None, [cuts and cuts.text()]))
        check_watched(callbacks, run_, best=checkpoints.best)
        run_.writers.check()
        shown = functools.partial(example_texts, data, objective, split="train", count=_SHOWN)
        facts = {
            "headline": title,
            "data": about,
            "parameters": named_shapes(the_model),
            "examples": shown(seed=seed) if claim else [],  # process 0 alone writes them
            "seed": seed,
            "versions": versions(),
            **dataclasses.asdict(duration),
        }

        # It is accepted: from here on its folder changes.
        if loop.begin(state):
            footprint.check_step()
            for warning in warnings:
                say(f"note: {warning}")
            checkpointer.make_writable(claim.check if claim else None)
            if claim:
                config = operative_config() if operative_config else None
                if restored and (lines := changes(folder, config=config, facts=facts)):
                    say("\n  ".join(["changed since the run was last started:", *lines]))
                describe(
                    folder,
                    spec,
                    data,
                    config=config,
                    of_writers=files,
                    facts=facts,
                    prompts=prompts_of(objective, data),
                    inputs=data.input_format() if "inputs" in objective.features else InputFormat(),
                    start=start.found if start else None,
                )
            run_.writers.rewind(int(state.step))
            state = loop.train(state)
            if vanished := sum(gather(getattr(batches, "vanished", 0))):
                say(f"{vanished:,} examples read gave nothing to train on: empty, or too long")
    say(end_text(folder, run_.metrics, model=the_model, objective=objective, data=data))
    return Trained(state, run_.metrics, the_model)


def accept(
    folder: epath.Path,
    model: Model,
    objective: Any,
    *,
    data: Any,
    duration: Duration,
    checkpoints: Checkpoints,
    callbacks: Sequence[Callback],
    profile: Profile | None,
    log_every: int,
) -> Start | None:
    """Returns where a run starts; `train` and `inspect` both refuse what this refuses.

    Raises:
      InputError: for settings that do not go together, or with the run in `folder`, or with the
        folder that the run starts from.
    """
    check_settings(duration, callbacks, profile)
    resumes = check_folder_of_run(folder, model.spec, objective=objective, data=data)
    # First, as another vocabulary over pretrained parameters is not one for a larger model.
    start = plan_start(checkpoints, model, objective, data=data, resumes=resumes)
    check(model, objective, data=data, log_every=log_every, callbacks=callbacks)
    return start


def headline(model: Model, mesh: Mesh) -> str:
    """Returns one line: the model, its size, and what it runs on."""
    size = sum(leaf.size for leaf in jax.tree.leaves(model.shapes()))
    kind = mesh.devices.flat[0].device_kind
    devices = "1 device" if mesh.size == 1 else f"{mesh.size} devices"
    return f"{model.spec.family}, {size:,} parameters, {model.compute.dtype}, on {devices} ({kind})"


def check(
    model: Model, objective: Any, *, data: Any, log_every: int, callbacks: Sequence[Callback]
) -> None:
    """Raises an InputError for what would go wrong only later, or silently."""
    if isinstance(log_every, bool) or not isinstance(log_every, int) or log_every < 1:
        raise InputError(f"train.log_every = {log_every!r}: must be a whole number of at least 1")
    for callback in callbacks:
        every = getattr(callback, "every", None)
        if not callable(callback) or not isinstance(every, int) or every < 1:
            raise InputError(f"callback {callback!r}: must be callable, with `every` of at least 1")
    vocabulary = data.vocabulary()
    if vocabulary is not None and vocabulary.size > model.spec.vocab:
        raise InputError(
            f"the vocabulary has {vocabulary.size} ids but the model only {model.spec.vocab} "
            f'embeddings; override the model with {{"vocab": {-(-vocabulary.size // 128) * 128}}}'
        )
    model.check(data.batch_shapes(objective))
    head = model.heads.get(objective.head)
    num_classes = len(data.labels().get("labels", ()))  # of other features the head says nothing
    for field in ("num_classes", "num_labels"):
        if getattr(head, field, num_classes) < num_classes:
            raise InputError(
                f"{type(head).__name__}.{field} = {getattr(head, field)}: the data have "
                f"{num_classes} classes; set it to at least {num_classes}"
            )


def _num_places(batch: Mapping[str, Any]) -> int:
    return sum(math.prod(rows.shape) for rows in counted(batch))


def token_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Returns how many tokens a row of each text in a batch has room for."""
    return [rows.shape[1] for rows in counted(batch)]


def step_flops(spec: ModelSpec, objective: Any, batch: Mapping[str, Any]) -> float:
    """Returns the FLOPs of one step's matrix products, forward and backward.

    Args:
      spec: the model.
      objective: which may ask another head than that of the vocabulary.
      batch: the global batch, or its shapes.
    """
    suffix = "_input_tokens"
    lengths = {
        name.removesuffix(suffix): rows.shape[1]
        for name, rows in batch.items()
        if name.endswith(suffix)
    }
    # What belongs to neither stack is another text for the only one, read by itself.
    other_lengths = [lengths.pop(name) for name in [*lengths] if name not in _SIDES]
    num_logits = None if (objective.head or "lm") == "lm" else 0
    if "encoder_target_positions" in batch:
        num_logits = batch["encoder_target_positions"].shape[1]
    forward = functools.partial(forward_flops, spec, num_logits=num_logits)
    flops = forward(**{f"{side}_length": length for side, length in lengths.items()})
    flops += sum(forward(**{f"{spec.topology}_length": length}) for length in other_lengths)
    (num_rows,) = {rows.shape[0] for rows in batch.values()}
    return 3.0 * num_rows * flops


def named_shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...], tuple[str | None, ...]]]:
    """Yields path, shape and logical axes of each parameter."""
    shapes = jax.tree_util.tree_leaves_with_path(model.shapes())
    for (path, leaf), axes in zip(shapes, jax.tree.leaves(model.axes()), strict=True):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, tuple(axes)


def versions() -> dict[str, str]:
    """Returns what a run's numbers depend on besides its configuration."""
    found = {"python": platform.python_version()}
    for name in ("t5lite", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        # A checkout may run without being installed.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
