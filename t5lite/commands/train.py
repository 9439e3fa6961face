"""`t5lite train`: where model, objective, data, optimizer and layout meet."""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from jax.sharding import Mesh

from t5lite.data.batches import merge_states
from t5lite.data.files import write_whole
from t5lite.errors import InputError
from t5lite.models import (
    ComputeSpec,
    Model,
    ModelSpec,
    differences,
    forward_flops,
    load_spec,
    preset,
    save_spec,
)
from t5lite.parallel import Layout, gather, make_mesh
from t5lite.training import (
    Callback,
    Checkpoints,
    JsonLines,
    Loop,
    Meter,
    Profile,
    Program,
    Progress,
    Run,
    TensorBoard,
    TrainState,
    Update,
    Writer,
    build,
    load_params,
    peak_flops,
)
from t5lite.training.restore import absolute, saved_steps
from t5lite.training.state import Optimizer

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Calls `train` with the configuration's bindings."""
    del arguments
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
    model: str | ModelSpec,
    objective: Any,
    data: Any,
    optimizer: Optimizer,
    steps: int,
    layout: Layout = Layout(),
    compute: ComputeSpec = ComputeSpec(),
    update: Update = Update(),
    checkpoints: Checkpoints = Checkpoints(),
    callbacks: Sequence[Callback] = (),
    writers: Sequence[Callable[[str], Writer]] = (JsonLines, TensorBoard),
    profile: Profile | None = None,
    log_every: int = 10,
    seed: int = 0,
    operative_config: Callable[[], str] | None = None,
) -> Trained:
    """Trains a model, or resumes the run that `model_dir` holds.

    Args:
      model_dir: where checkpoints, metrics and `model.json` go.
      model: a preset's name or a spec.
      objective: what is learnt, e.g. `objectives.SpanCorruption()`.
      data: what from, e.g. `data.TaskData(...)`.
      optimizer: e.g. `optimizers.Adafactor(learning_rate=...)`, or any Optax transformation.
      steps: updates in all, those before a restart included.
      layout: mesh and sharding.
      compute: dtype, rematerialisation, scan.
      update: microbatches, clipping, averaging, what a NaN does.
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
    # What is trained, on what.
    spec = preset(model) if isinstance(model, str) else model
    check(spec, data=data, steps=steps, log_every=log_every, callbacks=callbacks)
    the_model, mesh = Model(spec, compute), make_mesh(layout)
    program = build(
        the_model,
        objective,
        optimizer,
        data.batch_shapes(objective),
        layout=layout,
        mesh=mesh,
        update=update,
    )
    say = print if jax.process_index() == 0 else (lambda text: None)

    with contextlib.ExitStack() as stack:
        # Where it is kept.
        checkpointer = stack.enter_context(checkpoints.open(model_dir, warn=say))
        folder = absolute(model_dir)
        describe(folder, spec, data, operative_config)
        say(f"{headline(the_model, mesh)}\n{data.describe()}")

        # Where it starts: a checkpoint of its own, another run's parameters, or chance.
        batches = data.train_batches(
            objective,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        stack.callback(batches.close)
        restored = checkpointer.restore(program.state)
        state = restored.state if restored else first_state(program, checkpoints, seed, say=say)
        start = int(state.step)
        if start >= steps:
            say(f"{model_dir} is already trained to step {start} of {steps}")
        elif restored:
            say(f"resuming {model_dir} at step {start} of {steps}")

        # Run.
        progress = Progress(steps, start=start, active=jax.process_index() == 0)
        stack.callback(progress.close)
        run_ = Run(
            model_dir=str(folder),
            model=the_model,
            objective=objective,
            data=data,
            layout=layout,
            mesh=mesh,
            steps=steps,
            writers=[make(str(folder)) for make in writers],
            say=progress.say,
            vocab=spec.vocab,
        )
        stack.callback(run_.writers.close)
        run_.writers.rewind(start)
        profiler = profile.open(folder) if profile else None
        if profiler:
            stack.callback(profiler.close)
        loop = Loop(
            run=run_,
            step_fn=program.step,
            batches=batches,
            data_state=lambda: merge_states(gather(batches.state_dict())),
            checkpointer=checkpointer,
            checkpoint_every=checkpoints.every,
            callbacks=callbacks,
            meter=Meter(peak=peak_flops(mesh.devices.flat)),
            progress=progress,
            learning_rate=rate_of(optimizer),
            flops=step_flops(spec, program),
            profiler=profiler,
            log_every=log_every,
            stop_on_nan=update.on_nan == "stop",
        )
        if restored:
            loop.load_progress(restored.progress)
        state = loop(state)
    return Trained(state, run_.metrics, the_model)


def headline(model: Model, mesh: Mesh) -> str:
    """Returns one line: the model, its size, and what it runs on."""
    size = sum(leaf.size for leaf in jax.tree.leaves(model.shapes()))
    kind = mesh.devices.flat[0].device_kind
    devices = "1 device" if mesh.size == 1 else f"{mesh.size} devices"
    return f"{model.spec.family}, {size:,} parameters, {model.compute.dtype}, on {devices} ({kind})"


def check(
    spec: ModelSpec, *, data: Any, steps: int, log_every: int, callbacks: Sequence[Callback]
) -> None:
    """Raises an InputError for what would go wrong only later, or silently."""
    for name, value in (("steps", steps), ("log_every", log_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"train.{name} = {value!r}: must be a whole number of at least 1")
    for callback in callbacks:
        every = getattr(callback, "every", None)
        if not callable(callback) or not isinstance(every, int) or every < 1:
            raise InputError(f"callback {callback!r}: must be callable, with `every` of at least 1")
    vocabulary = data.vocabulary()
    if vocabulary is not None and vocabulary.size > spec.vocab:
        raise InputError(
            f"the vocabulary has {vocabulary.size} ids but the model only {spec.vocab} embeddings; "
            f'override the model with {{"vocab": {-(-vocabulary.size // 128) * 128}}}'
        )


def describe(
    folder: epath.Path, spec: ModelSpec, data: Any, operative_config: Callable[[], str] | None
) -> None:
    """Writes what a checkpoint needs to be understood without its configuration.

    Raises:
      InputError: if the folder holds a run of another model or vocabulary.
    """
    vocabulary = data.vocabulary()
    if saved_steps(folder):  # a run that never came to a checkpoint binds nobody
        check_described(folder, spec, vocabulary)
    if jax.process_index() == 0:
        save_spec(folder / "model.json", spec)
        if vocabulary is not None:
            vocabulary.save(folder / "vocabulary")
        if operative_config is not None:
            write_whole(folder / "config.gin", operative_config().encode())


def check_described(folder: epath.Path, spec: ModelSpec, vocabulary: Any) -> None:
    """Raises an InputError if a folder describes another model or vocabulary than these."""
    known = folder / "model.json"
    if known.exists():
        changed = differences(load_spec(known), spec)
        if changed:
            raise InputError(
                f"{folder} holds a run of another model; choose another model_dir or undo:\n  "
                + "\n  ".join(changed[:2] + [f"and {len(changed) - 2} more"] * (len(changed) > 2))
            )
    if vocabulary is not None and (folder / "vocabulary").exists():
        from t5lite.data import load_vocabulary

        old = load_vocabulary(folder / "vocabulary")
        if old.fingerprint != vocabulary.fingerprint:
            raise InputError(
                f"{folder} holds a run with another vocabulary "
                f"({old.size} ids, now {vocabulary.size}); choose another model_dir"
            )


def first_state(
    program: Program, checkpoints: Checkpoints, seed: int, *, say: Callable[[str], None]
) -> TrainState:
    """Draws a state, and puts the parameters of `restore_from` in where one is given."""
    state = program.init(seed)
    if checkpoints.restore_from is None:
        return state
    loaded = load_params(
        checkpoints.restore_from, like=state.params, mapping=checkpoints.restore_mapping
    )
    fresh = f", {len(loaded.fresh)} arrays fresh" if loaded.fresh else ""
    say(f"parameters from {loaded.folder}{fresh}")
    extra = {name: jax.tree.map(jax.numpy.copy, loaded.params) for name in state.extra}
    return state.replace(params=loaded.params, extra=extra)


def rate_of(optimizer: Optimizer) -> Callable[[int], float] | None:
    """Returns step → learning rate, as far as the optimizer tells."""
    rate = getattr(optimizer, "learning_rate", None)
    if rate is None:
        return None
    return (lambda step: float(rate(step))) if callable(rate) else (lambda step: float(rate))


def step_flops(spec: ModelSpec, program: Program) -> float:
    """Returns the FLOPs of one step's matrix products, forward and backward."""
    rows, decoder_length = program.batch["decoder_input_tokens"].shape
    encoder_length = program.batch["encoder_input_tokens"].shape[1]
    flops = forward_flops(spec, encoder_length=encoder_length, decoder_length=decoder_length)
    return 3.0 * rows * flops
