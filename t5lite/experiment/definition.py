"""Definition of a run: model, objective, data, optimizer and layout in one frozen object."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from t5lite.errors import InputError
from t5lite.interop import Opened, open_model
from t5lite.models import ComputeSpec, Model, ModelSpec, load_spec, named_spec
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
from t5lite.training.restore import absolute, saved_steps
from t5lite.training.state import Optimizer
from t5lite.training.tuning import Everything, Tuning


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """A run by its settings; nothing is read, built or written before a method needs it.

    Args:
      model_dir: where checkpoints, metrics and `model.json` go.
      model: a preset's name, a folder or a spec, see `models.named_spec`; None: that of
        `checkpoints.restore_from`.
      objective: the loss and its examples, e.g. `objectives.SpanCorruption()`.
      data: the dataset, e.g. `data.TaskData(...)`.
      optimizer: e.g. `optimizers.Adafactor(learning_rate=...)`, or any Optax transformation.
      steps: total updates, before and after restarts; the first of `steps`, `tokens` and `epochs`
        that is reached ends the run. Schedules have their own number of steps.
      tokens: total tokens seen, without padding.
      epochs: passes over the training data: examples read, divided by examples; parts of a mixture
        count together.
      layout: mesh and sharding.
      compute: dtype, rematerialisation, scan.
      tuning: which parameters are trained; the others are frozen.
      update: microbatches, clipping, averaging, what a NaN or a spike does, float16's loss scale.
      checkpoints: when to save, which to keep, where to start.
      callbacks: evaluation, samples and the like, called every so often.
      writers: makers of metrics writers, called with `model_dir`.
      profile: which steps to trace.
      log_every: steps between lines of metrics.
      seed: of initialisation, data order and dropout.
      operative_config: returns the text of `config.gin`.
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
        return absolute(self.model_dir)

    @property
    def duration(self) -> Duration:
        return Duration(self.steps, self.tokens, self.epochs)

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """The architecture: by default of the run in `folder`, or else of its start."""
        if self.model is not None:
            return named_spec(self.model)
        described = self.folder / "model.json"
        if saved_steps(self.folder / "checkpoints") and described.exists():
            return load_spec(described)
        field = "Checkpoints.restore_from"
        if self.checkpoints.restore_from is not None:
            return opened(self.checkpoints.restore_from, averaged=False, field=field).spec
        raise InputError(
            "train needs 'model', which no file or flag binds: a preset's name, a folder or a "
            f"spec; or {field}, whose model is then used",
            field="model",
        )

    @functools.cached_property
    def network(self) -> Model:
        return Model(self.spec, self.compute)

    @functools.cached_property
    def bound(self) -> Any:
        """The objective, bound to the model and to the models of its references."""
        return bind(self.objective, self.network, self.reference_models)

    @functools.cached_property
    def references(self) -> Mapping[str, Opened]:
        """The opened checkpoints of the objective's references, without "start"."""
        field = f"{type(self.objective).__name__}.references"
        return {
            name: opened(folder, averaged=True, field=field)
            for name, folder in bind(self.objective, self.network).references.items()
            if folder != "start"
        }

    @functools.cached_property
    def reference_models(self) -> Mapping[str, Model]:
        """The models of the objective's references; "start" has the run's own."""
        return {
            name: Model(self.references[name].spec, self.compute)
            if name in self.references
            else self.network
            for name in bind(self.objective, self.network).references
        }

    def mesh(self) -> Mesh:
        return make_mesh(self.layout)

    def program(self, mesh: Any) -> Program:
        """Returns the run's compiled functions on a mesh, which may be abstract."""
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
        return Footprint(program, **self.memory_settings)

    @property
    def memory_settings(self) -> dict[str, Any]:
        """The settings that the memory of a step depends on, by name."""
        return {name: getattr(self, name) for name in ("compute", "update", "layout", "optimizer")}

    def run(
        self,
        mesh: Mesh,
        *,
        writers: Sequence[Writer] = (),
        tuning: Tuning = Everything(),
        say: Callable[[str], None] = print,
    ) -> Run:
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
            batches.keep_lengths()  # which divide by the mesh
        return batches


def opened(folder: Any, *, averaged: bool, field: str) -> Opened:
    """Opens a checkpoint that a field names; see `interop.open_model`."""
    try:
        return open_model(str(folder), averaged=averaged)
    except InputError as error:
        raise InputError(str(error), field=field) from error
