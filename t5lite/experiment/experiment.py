"""A run: model, objective, data, optimizer and layout in one frozen object, and its training."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec

import jax
from etils import epath
from jax.sharding import Mesh

from t5lite.data.batches import joint_state
from t5lite.data.input_format import InputFormat
from t5lite.data.paths import check_folder
from t5lite.experiment.changes import changes
from t5lite.experiment.cost import num_positions, step_flops
from t5lite.experiment.cuts import count_cuts
from t5lite.experiment.description import headline, named_shapes, versions
from t5lite.experiment.preview import example_texts
from t5lite.experiment.prompts import prompts_of
from t5lite.experiment.run_end import end_text
from t5lite.experiment.run_folder import (
    check_files,
    describe,
    description_of,
    last_saved,
    one_writer,
)
from t5lite.experiment.settings import (
    check_model,
    check_settings,
    learning_rate,
    notes,
    rate_change,
)
from t5lite.experiment.start import (
    Start,
    check_folder_of_run,
    check_references,
    check_referred,
    first_state,
    open_references,
    plan_start,
    referred_frozen,
    spec_of,
)
from t5lite.interop import Description, Opened
from t5lite.interop.huggingface import export_note
from t5lite.models import ComputeSpec, Model, ModelSpec
from t5lite.objectives import bind
from t5lite.parallel import Layout, gather, make_mesh, noted
from t5lite.planning.footprint import Footprint
from t5lite.reporting import JsonLines, Meter, Progress, Report, TensorBoard, Writer, peak_flops
from t5lite.training import (
    Callback,
    Checkpoints,
    Duration,
    Ledger,
    Loop,
    Profile,
    Program,
    Run,
    Saver,
    TrainState,
    Update,
    build,
    process_shards,
)
from t5lite.training.restore import absolute
from t5lite.training.state import Optimizer, name_of
from t5lite.training.stopping import check_watched
from t5lite.training.tuning import Everything, Tuning

_SHOWN = 3  # examples in the report
_CHECKED = 256  # examples, for texts that are cut

P = ParamSpec("P")


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


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A run by its settings; nothing is read, built or written before a method asks for it.

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
      tuning: which parameters are trained; the others are frozen.
      update: microbatches, clipping, averaging, what a NaN or a spike does, float16's loss scale.
      checkpoints: when to save, what to keep, what to start from.
      callbacks: evaluation and whatever else happens now and then.
      writers: called with model_dir, each makes one place for metrics.
      profile: which steps to trace.
      log_every: steps between two lines of metrics.
      seed: of initialisation, data order and dropout.
      operative_config: gives the text for `config.gin`.
    """

    model_dir: str
    _: dataclasses.KW_ONLY
    model: str | ModelSpec | None = None
    objective: Any
    data: Any
    optimizer: Optimizer
    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    layout: Layout = Layout()
    compute: ComputeSpec = ComputeSpec()
    tuning: Tuning = Everything()
    update: Update = Update()
    checkpoints: Checkpoints = Checkpoints()
    callbacks: Sequence[Callback] = ()
    writers: Sequence[Callable[[str], Writer]] = (JsonLines, TensorBoard, Report)
    profile: Profile | None = None
    log_every: int = 10
    seed: int = 0
    operative_config: Callable[[], str] | None = None

    @property
    def folder(self) -> epath.Path:
        """`model_dir`, absolute."""
        return absolute(self.model_dir)

    @property
    def duration(self) -> Duration:
        """The end of the run."""
        return Duration(self.steps, self.tokens, self.epochs)

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """The architecture; that of the run in `folder`, or of where it starts, by default."""
        return spec_of(self.model, self.checkpoints, self.folder)

    @functools.cached_property
    def network(self) -> Model:
        """The model's pure functions."""
        return Model(self.spec, self.compute)

    @functools.cached_property
    def bound(self) -> Any:
        """The objective, bound to the model."""
        return bind(self.objective, self.network, self.reference_models)

    @functools.cached_property
    def references(self) -> Mapping[str, Opened]:
        """The opened checkpoints of the objective's references; "start" has none."""
        return open_references(self.objective)

    @functools.cached_property
    def reference_models(self) -> Mapping[str, Model]:
        """The models of the objective's references; of "start" the run's own."""
        return {
            name: Model(self.references[name].spec, self.compute)
            if name in self.references
            else self.network
            for name in getattr(self.objective, "references", {})
        }

    def mesh(self) -> Mesh:
        """Returns the layout's mesh over the devices of all processes."""
        return make_mesh(self.layout)

    def program(self, mesh: Any) -> Program:
        """Returns the compiled functions of the run on a mesh, which may be abstract."""
        shapes = self.data.batch_shapes(self.bound)
        self.network.check(shapes)
        return build(
            self.network,
            self.bound,
            self.optimizer,
            shapes,
            layout=self.layout,
            mesh=mesh,
            update=self.update,
            tuning=self.tuning,
            references=self.reference_models,
        )

    def footprint(self, program: Program) -> Footprint:
        """Returns the comparison of a program with the memory of the devices here."""
        return Footprint(
            program,
            compute=self.compute,
            update=self.update,
            layout=self.layout,
            optimizer=self.optimizer,
        )

    def check(self) -> Start | None:
        """Returns where the run starts, with every setting checked; None: the initialisers.

        Raises:
          InputError: for settings that do not go together, or with the run in `folder`, or with the
            folder that the run starts from.
        """
        check_folder(self.model_dir, field="train.model_dir")
        check_settings(self.duration, self.callbacks, self.profile)
        resumes = self._check_folder()
        # First, as another vocabulary over pretrained parameters is not one for a larger model.
        start = plan_start(
            self.checkpoints, self.network, self.bound, data=self.data, resumes=resumes
        )
        if start and self.checkpoints.frozen == "refer":
            check_referred(start, self.tuning, self.network, field="Checkpoints.frozen")
        self.check_model()
        check_references(
            self.references, self.reference_models, objective=self.bound, data=self.data
        )
        return start

    def _check_folder(self) -> bool:
        """Returns whether the folder holds a run to resume, which must be this one."""
        return check_folder_of_run(
            self.folder, self.spec, objective=self.bound, data=self.data, tuning=self.tuning
        )

    def check_model(self) -> None:
        """Raises an InputError if model, data, labels and callbacks do not go together."""
        check_model(
            self.network,
            self.bound,
            data=self.data,
            log_every=self.log_every,
            callbacks=self.callbacks,
        )

    def train(self) -> Trained:
        """Trains the model, or resumes the run that `model_dir` holds.

        Returns:
          The final state and held-out metrics.

        Raises:
          InputError: for whatever the user can fix, before any device work.
          CheckpointError: if a checkpoint can be neither written nor read.
          NonFiniteLoss: if the loss becomes NaN or infinite and `update` says stop.
        """
        start, mesh = self.check(), self.mesh()
        program = self.program(mesh)
        footprint = self.footprint(program)
        footprint.check_state()
        say = print if jax.process_index() == 0 else (lambda text: None)

        with contextlib.ExitStack() as stack:
            stack.enter_context(footprint.explained())

            # What it reads.
            batches = self.batches(mesh)
            stack.callback(batches.close)
            title, about = headline(self.network, program, mesh), self.data.describe()
            say(f"{title}\n{about}")

            # Where it is kept: nothing changes before the run is accepted, but for a claim.
            stack.enter_context(noted(lambda: last_saved(self.model_dir)))
            claim = stack.enter_context(one_writer(self.folder, say=say))
            writers = [make(str(self.folder)) for make in self.writers]
            files = [name for each in writers for name in getattr(each, "files", ())]
            check_files(self.folder, files)
            # Again, now that it is claimed.
            self._check_folder()

            # Where it starts: its own checkpoint, other parameters, or the initialisers.
            checkpointer = stack.enter_context(
                self.checkpoints.open(
                    self.folder, warn=say, writable=False, optimizer=name_of(self.optimizer)
                )
            )
            restored = checkpointer.restore(
                program.state,
                extra=program.extra,
                frozen=lambda folder: referred_frozen(folder, program, self.references),
            )
            if restored:
                state = restored.state
            else:
                state = first_state(start, program, self.references, seed=self.seed, say=say)

            # What it does.
            progress = Progress(self.duration, active=jax.process_index() == 0)
            stack.callback(progress.close)
            run = self.run(mesh, writers=writers, tuning=program.tuning, say=progress.say)
            stack.callback(run.writers.close)
            profiler = self.profile.open(self.folder, say=run.say) if self.profile else None
            if profiler:
                stack.callback(profiler.close)
            ledger = Ledger(
                run,
                Meter(peak=peak_flops(mesh.devices.flat)),
                progress,
                update=self.update,
                flops=step_flops(self.spec, self.bound, program.batch)
                / num_positions(self.bound, program.batch),
                log_every=self.log_every,
            )
            saver = Saver(
                checkpointer,
                run=run,
                batches=batches,
                ledger=ledger,
                every=self.checkpoints.every,
                every_minutes=self.checkpoints.every_minutes,
                data_state=lambda: joint_state(batches.state_dict(), gather),
                learning_rate=learning_rate(self.optimizer),
            )
            loop = Loop(run, program.step, batches, ledger, saver, self.duration, profiler=profiler)
            if restored:
                saver.load_progress(restored.progress)
            warnings = self._warnings(restored, state, sole=claim is not None)
            check_watched(self.callbacks, run, best=self.checkpoints.best)
            run.writers.check()
            facts = self._facts(title, about, sole=claim is not None)

            # It is accepted: from here on its folder changes.
            if loop.begin(state):
                footprint.check_step()
                for warning in warnings:
                    say(f"note: {warning}")
                checkpointer.make_writable(claim.check if claim else None)
                if claim:
                    known = start.opened.description if start else None
                    self._describe(facts, files, start=known, resumed=bool(restored), say=say)
                run.writers.rewind(int(state.step))
                state = loop.train(state)
                if vanished := sum(gather(getattr(batches, "vanished", 0))):
                    say(f"{vanished:,} examples read gave nothing to train on: empty, or too long")
        say(
            end_text(self.folder, run.metrics, model=run.model, objective=self.bound, data=run.data)
        )
        return Trained(state, run.metrics, run.model)

    def run(
        self,
        mesh: Mesh,
        *,
        writers: Sequence[Writer] = (),
        tuning: Tuning = Everything(),
        say: Callable[[str], None] = print,
    ) -> Run:
        """Returns what callbacks are called with."""
        return Run(
            model_dir=str(self.folder),
            model=self.network,
            objective=self.bound,
            data=self.data,
            layout=self.layout,
            mesh=mesh,
            steps=self.steps,
            callbacks=self.callbacks,
            writers=writers,
            tuning=tuning,
            say=say,
        )

    def batches(self, mesh: Mesh) -> Any:
        """Returns the training batches of this process, at their start."""
        shards = process_shards(self.data, self.layout, mesh)[jax.process_index()]
        batches = self.data.train_batches(self.bound, seed=self.seed, shards=shards)
        if mesh.shape["seq"] > 1 and hasattr(batches, "keep_lengths"):
            batches.keep_lengths()  # which divide over the mesh
        return batches

    def _warnings(self, restored: Any, state: TrainState, *, sole: bool) -> Iterator[str]:
        """Yields what is legitimate, but likely a mistake; `sole` marks the process that speaks."""
        warnings = notes(
            self.duration,
            self.callbacks,
            checkpoints=self.checkpoints,
            optimizer=self.optimizer,
            update=self.update,
        )
        if restored:
            saved = restored.progress.get("learning_rate")
            now = learning_rate(self.optimizer)(state)
            warnings = itertools.chain(warnings, rate_change(saved, now, step=restored.step))
        if sole:
            split = getattr(self.data, "split", "train")
            cuts = count_cuts(self.data, self.bound, split=split, most=_CHECKED, seed=self.seed)
            more = [export_note(self.spec), cuts and cuts.text()]
            warnings = itertools.chain(warnings, filter(None, more))
        return warnings

    def _facts(self, title: str, about: str, *, sole: bool) -> dict[str, Any]:
        """Returns the content of `run.json`, with examples on the process that writes it."""
        examples = []
        if sole:
            examples = example_texts(
                self.data, self.bound, split="train", count=_SHOWN, seed=self.seed
            )
        return {
            "headline": title,
            "data": about,
            "parameters": named_shapes(self.network),
            "examples": examples,
            "seed": self.seed,
            "versions": versions(),
            **dataclasses.asdict(self.duration),
        }

    def _describe(
        self,
        facts: Mapping[str, Any],
        files: Sequence[str],
        *,
        start: Description | None,
        resumed: bool,
        say: Callable[[str], None],
    ) -> None:
        """Writes the run's description, and says what has changed since it was last started."""
        config = self.operative_config() if self.operative_config else None
        if resumed and (lines := changes(self.folder, config=config, facts=facts)):
            say("\n  ".join(["changed since the run was last started:", *lines]))
        reads = "inputs" in self.bound.features
        description = description_of(
            self.spec,
            self.data,
            prompts=prompts_of(self.bound, self.data),
            inputs=self.data.input_format() if reads else InputFormat(),
            start=start,
            tuning=self.tuning,
        )
        describe(self.folder, description, config=config, of_writers=files, facts=facts)


def _trainer(make: Callable[P, Experiment]) -> Callable[P, Trained]:
    """Returns `train`, with the arguments of `Experiment`."""

    def train(*args: P.args, **kwargs: P.kwargs) -> Trained:
        return make(*args, **kwargs).train()

    signature, doc = inspect.signature(make), inspect.getdoc(make) or ""
    train.__signature__ = signature.replace(return_annotation=Trained)  # type: ignore[attr-defined]
    arguments = doc.partition("\n\n")[2]
    train.__doc__ = "\n\n".join(
        [
            "Trains a model, or resumes the run that `model_dir` holds.",
            arguments,
            (inspect.getdoc(Experiment.train) or "").partition("\n\n")[2],
        ]
    )
    return train


train = _trainer(Experiment)
