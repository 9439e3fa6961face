"""Definition of a run: model, objective, data, optimizer and layout in one frozen object."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from t5lite.data.paths import check_folder
from t5lite.experiment.settings import (
    check_model,
    check_settings,
)
from t5lite.experiment.start import (
    Start,
    check_folder_of_run,
    check_references,
    check_referred,
    open_references,
    plan_start,
    spec_of,
)
from t5lite.interop import Opened
from t5lite.models import ComputeSpec, Model, ModelSpec
from t5lite.objectives import bind
from t5lite.parallel import Layout, make_mesh
from t5lite.planning.footprint import Footprint
from t5lite.reporting import JsonLines, Report, TensorBoard, Writer
from t5lite.training import (
    Callback,
    Checkpoints,
    Duration,
    Profile,
    Program,
    Run,
    Update,
    build,
    process_shards,
)
from t5lite.training.restore import absolute
from t5lite.training.state import Optimizer
from t5lite.training.tuning import Everything, Tuning


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
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
