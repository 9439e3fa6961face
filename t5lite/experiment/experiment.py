"""Training of a run, from its definition to its last checkpoint."""

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec

import jax

from t5lite.data.batches import joint_state
from t5lite.data.input_format import InputFormat
from t5lite.data.paths import check_folder
from t5lite.experiment.changes import changes
from t5lite.experiment.cost import num_positions, step_flops
from t5lite.experiment.cuts import count_cuts
from t5lite.experiment.definition import Definition
from t5lite.experiment.description import headline, named_shapes, versions
from t5lite.experiment.preview import example_texts
from t5lite.experiment.run_end import end_text
from t5lite.experiment.run_folder import (
    check_files,
    describe,
    description_of,
    last_saved,
    one_writer,
    writer_files,
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
    check_references,
    check_referred,
    check_run_folder,
    first_state,
    plan_start,
    referred_frozen,
)
from t5lite.interop import Description
from t5lite.interop.huggingface import export_note
from t5lite.models import Model
from t5lite.parallel import gather, noted
from t5lite.reporting import Meter, Progress, peak_flops
from t5lite.training import (
    Ledger,
    Loop,
    Program,
    Run,
    Saver,
    TrainState,
)
from t5lite.training.checkpoints import Checkpointer
from t5lite.training.state import name_of
from t5lite.training.stopping import check_watched

_SHOWN = 3  # examples in the report
_CHECKED = 256  # examples whose truncation is counted

P = ParamSpec("P")


@dataclasses.dataclass(frozen=True)
class Trained:
    """The last state of a run, its latest held-out metrics, and its model."""

    state: TrainState
    metrics: dict[str, float]
    model: Model


class Experiment(Definition):
    """A run: its definition, its checks and its training."""

    def check(self) -> Start | None:
        """Checks every setting against each other, the run in `folder`, and the start's folder.

        Returns: the run's start; None: the initialisers, or its own checkpoint.
        """
        check_folder(self.model_dir, field="train.model_dir")
        check_settings(self)
        # First: a pretrained model of another vocabulary is not to be enlarged.
        start = plan_start(self, resumes=check_run_folder(self))
        if start and self.checkpoints.frozen == "refer":
            check_referred(start, self.tuning, self.network, field="Checkpoints.frozen")
        check_model(self)
        check_references(self)
        return start

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

            # Data.
            batches = self.batches(mesh)
            stack.callback(batches.close)
            title, about = headline(self.network, program, mesh), self.data.describe()
            say(f"{title}\n{about}")

            # Folder: nothing but a claim changes before the run is accepted.
            stack.enter_context(noted(lambda: last_saved(self.model_dir)))
            claim = stack.enter_context(one_writer(self.folder, say=say))
            writers = [make(str(self.folder)) for make in self.writers]
            files = writer_files(writers)
            check_files(self.folder, files)
            check_run_folder(self)  # again, now that it is claimed

            # First state: its own checkpoint, other parameters, or the initialisers.
            checkpointer = stack.enter_context(self._checkpointer(say))
            restored = self._restore(checkpointer, program)
            if restored:
                state = restored.state
            else:
                state = first_state(start, program, self.references, seed=self.seed, say=say)

            # Loop.
            progress = Progress(self.duration, active=jax.process_index() == 0)
            stack.callback(progress.close)
            run = self.run(mesh, writers=writers, tuning=program.tuning, say=progress.say)
            loop = self._loop(run, program, batches, checkpointer, progress, restored, stack)
            warnings = self._warnings(restored, state, sole=claim is not None)
            check_watched(self.callbacks, run, best=self.checkpoints.best)
            run.writers.check()
            facts = self._facts(title, about, sole=claim is not None)

            # Accepted: from here on its folder changes.
            if loop.begin(state):
                footprint.check_step()
                for warning in warnings:
                    say(f"note: {warning}")
                checkpointer.make_writable(claim.check if claim else None)
                if claim:
                    origin = start.opened.description if start else None
                    self._describe(facts, files, start=origin, resumed=bool(restored), say=say)
                run.writers.rewind(int(state.step))
                state = loop.train(state)
                if vanished := sum(gather(getattr(batches, "vanished", 0))):
                    say(f"{vanished:,} examples read gave nothing to train on: empty, or too long")
        say(
            end_text(self.folder, run.metrics, model=run.model, objective=self.bound, data=run.data)
        )
        return Trained(state, run.metrics, run.model)

    def _checkpointer(self, say: Callable[[str], None]) -> Checkpointer:
        optimizer = name_of(self.optimizer)
        return self.checkpoints.open(self.folder, warn=say, writable=False, optimizer=optimizer)

    def _restore(self, checkpointer: Checkpointer, program: Program) -> Any:
        """Restores the newest checkpoint of the run; None if it has none."""
        return checkpointer.restore(
            program.state,
            extra=program.extra,
            frozen=lambda folder: referred_frozen(folder, program, self.references),
        )

    def _loop(
        self,
        run: Run,
        program: Program,
        batches: Any,
        checkpointer: Checkpointer,
        progress: Progress,
        restored: Any,
        stack: contextlib.ExitStack,
    ) -> Loop:
        """Returns the loop, continued from the restored checkpoint, and closed by the stack."""
        stack.callback(run.writers.close)
        profiler = self.profile.open(self.folder, say=run.say) if self.profile else None
        if profiler:
            stack.callback(profiler.close)
        ledger = self._ledger(run, progress, program)
        saver = self._saver(run, checkpointer, batches, ledger)
        loop = Loop(run, program.step, batches, ledger, saver, self.duration, profiler=profiler)
        if restored:
            saver.load_progress(restored.progress)
        return loop

    def _ledger(self, run: Run, progress: Progress, program: Program) -> Ledger:
        return Ledger(
            run,
            Meter(peak=peak_flops(run.mesh.devices.flat)),
            progress,
            update=self.update,
            flops=step_flops(self.spec, self.bound, program.batch)
            / num_positions(self.bound, program.batch),
            log_every=self.log_every,
        )

    def _saver(self, run: Run, checkpointer: Checkpointer, batches: Any, ledger: Ledger) -> Saver:
        return Saver(
            checkpointer,
            run=run,
            batches=batches,
            ledger=ledger,
            every=self.checkpoints.every,
            every_minutes=self.checkpoints.every_minutes,
            data_state=lambda: joint_state(batches.state_dict(), gather),
            learning_rate=learning_rate(self.optimizer),
        )

    def _warnings(self, restored: Any, state: TrainState, *, sole: bool) -> Iterator[str]:
        """Yields notes on likely mistakes; `sole`: whether this is the process that prints."""
        warnings = notes(self)
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
        """Returns the content of `run.json`; only the process that writes it needs examples."""
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
        """Writes the run's description, and prints the settings changed since its last start."""
        config = self.operative_config() if self.operative_config else None
        if resumed and (lines := changes(self.folder, config=config, facts=facts)):
            say("\n  ".join(["changed since the run was last started:", *lines]))
        reads = "inputs" in self.bound.features
        description = description_of(
            self.spec,
            self.data,
            prompts=self.bound.for_features(self.data.add_eos()).prompts(self.data.vocabulary()),
            inputs=self.data.input_format() if reads else InputFormat(),
            start=start,
            tuning=self.tuning,
        )
        describe(self.folder, description, config=config, of_writers=files, facts=facts)


def _trainer(make: Callable[P, Experiment]) -> Callable[P, Trained]:
    def train(*args: P.args, **kwargs: P.kwargs) -> Trained:
        return make(*args, **kwargs).train()

    signature, doc = inspect.signature(make), inspect.getdoc(Definition) or ""
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
