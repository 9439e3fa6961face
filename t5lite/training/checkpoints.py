"""Checkpoints on Orbax: asynchronous saves, and exact resume on any mesh.

One step is one folder, `model_dir/checkpoints/<step>/`, complete or absent: Orbax writes it under a
temporary name and renames it (on object stores: adds a commit file) when all of it is there.

    <step>/state/      every array of the train state, sharded, by name
    <step>/progress/   JSON: {"progress": data position, callbacks' states; "metrics": held-out;
                       "checksums" of the arrays; "crc32" of the rest; "optimizer": its name;
                       "frozen": which frozen parameters belong to it, see `frozen`}
"""

import contextlib
import dataclasses
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from t5lite.errors import InputError, check_fields
from t5lite.parallel import gather
from t5lite.training.checksums import checksums
from t5lite.training.frozen import fingerprint, frozen_sums, read_referred, save_frozen
from t5lite.training.mapping import Rule, check_mapping
from t5lite.training.restore import (
    CheckpointError,
    absolute,
    load_params,
    named,
    read_checked,
    read_description,
    read_together,
    reason,
    saved_steps,
    write_document,
)
from t5lite.training.resuming import resumption
from t5lite.training.retention import Retention

__all__ = ["CheckpointError", "Checkpointer", "Checkpoints", "Restored", "load_params"]


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save, what to keep, and what a new run starts from.

    Args:
      every: steps between two saves; a run also saves at its last step, and whenever `best` is
        better than in every checkpoint so far.
      every_minutes: longest time between two saves, above 0; None: steps alone decide.
      keep: number of newest checkpoints to keep.
      best: held-out metric whose best checkpoint is kept besides those, or None.
      best_mode: `"min"` or `"max"`: which value of `best` is the best one.
      restore_from: source of the parameters of a *new* run: a model_dir, its checkpoints folder or
        a step's, a Hugging Face folder (or hub name) or a T5X checkpoint; a run with checkpoints
        in its model_dir resumes from them instead.
      restore_mapping: rules for the names of those parameters, see `load_params`. Heads and
        adapters need none: those missing in the folder are drawn, and heads missing in the model
        left out.
      other_vocabulary: whether the data may have another vocabulary than that folder, whose
        embeddings then belong to other tokens.
      frozen: `"save"` writes frozen parameters once into model_dir; `"refer"` keeps their
        fingerprint and reads them again from `restore_from`, which must not change.
    Raises: InputError if a field is out of range.
    """

    every: int = 1000
    every_minutes: float | None = 10.0
    keep: int = 3
    best: str | None = None
    best_mode: str = "min"
    restore_from: str | None = None
    restore_mapping: Sequence[Rule] = ()
    other_vocabulary: bool = False
    frozen: str = "save"

    def __post_init__(self):
        check_fields(
            self,
            every="integer in [1, inf)",
            every_minutes="number in (0, inf) or None",
            keep="integer in [1, inf)",
            best_mode=("min", "max"),
            frozen=("save", "refer"),
        )
        if self.restore_mapping and not self.restore_from:
            raise InputError(
                "Checkpoints.restore_mapping: maps names of Checkpoints.restore_from; set that too",
                field="Checkpoints.restore_mapping",
            )
        check_mapping(self.restore_mapping)
        if self.frozen == "refer" and (self.restore_from is None or self.restore_mapping):
            raise InputError(
                "Checkpoints.frozen = 'refer': needs restore_from, the folder that is read again, "
                "and no restore_mapping; otherwise set 'save'",
                field="Checkpoints.frozen",
            )

    def open(
        self,
        model_dir: epath.PathLike,
        *,
        warn: Callable[[str], object] = print,
        writable: bool = True,
        optimizer: str | None = None,
    ) -> "Checkpointer":
        """Opens the checkpoints folder of a run; every process calls it.

        Args:
          model_dir: the run's folder; local, `gs://` or `s3://`.
          warn: called with a text when a checkpoint is damaged or settings have changed.
          writable: whether to call `make_writable` now; without it nothing in the folder changes.
          optimizer: name of the run's optimizer, kept in checkpoints.
        """
        checkpointer = Checkpointer(self, absolute(model_dir) / "checkpoints", warn, optimizer)
        if writable:
            checkpointer.make_writable()
        return checkpointer

    def retention(self, warn: Callable[[str], object]) -> Retention:
        return Retention(keep=self.keep, best=self.best, best_mode=self.best_mode, warn=warn)

    def best_step(self, model_dir: epath.PathLike) -> int | None:
        """Returns the step with the best value of `best`, if any; unlike `open`, only reads."""
        steps = saved_steps(model_dir)
        retention = self.retention(print)
        retention.read(steps)
        return retention.best_step(sorted(steps))


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint after `step` updates, its `state` in the expected shardings.

    `progress` and `metrics` are as passed to `save`, without NaN and infinities.
    """

    step: int
    state: Any
    progress: dict[str, Any]
    metrics: dict[str, float]


class Checkpointer:
    """Saves and restores the checkpoints of one run; made by `Checkpoints.open`.

    Every process calls every method: each writes and reads its own shards.
    """

    def __init__(
        self,
        config: Checkpoints,
        folder: epath.Path,
        warn: Callable[[str], object],
        optimizer: str | None,
    ):
        self.folder = folder
        self._optimizer = optimizer
        # On resume the checkpoints' own entry replaces this one: the folder may have moved.
        self._base_folder = config.restore_from if config.frozen == "refer" else None
        self._warn = warn
        self._pending: int | None = None
        self._retention = config.retention(warn)
        if config.best is not None:
            self._retention.read(saved_steps(folder))
        self._manager: ocp.CheckpointManager | None = None
        self._check_writer: Callable[[], None] = lambda: None

    def make_writable(self, check_writer: Callable[[], None] | None = None) -> None:
        """Makes the folder and removes what a crash left half-written in it; on every process.

        `check_writer` is called before each save, to raise if another process writes the folder.

        Raises:
          InputError: if the folder cannot be created or written, or is not the same on all hosts.
        """
        if check_writer is not None:
            self._check_writer = check_writer
        if self._manager is None:
            _check_writable(self.folder)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._retention,
                    cleanup_tmp_directories=True,
                    lightweight_initialize=True,
                ),
            )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending; one being written counts."""
        return sorted(
            saved_steps(self.folder) if self._manager is None else self._manager.all_steps()
        )

    @property
    def best_step(self) -> int | None:
        """The first step with the best value of the `best` metric."""
        return self._retention.best_step(self.steps())

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics are better than those of every checkpoint."""
        return self._retention.is_best(metrics, self.steps())

    def save(
        self,
        step: int,
        state: Any,
        *,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts a save and returns; the arrays may be donated from then on.

        The save before is waited for first, so its failure surfaces here at the latest.

        Args:
          step: number of updates done.
          state: pytree of arrays.
          progress: JSON-able, else a TypeError: data position and callbacks' states, the same on
            every process.
          metrics: latest held-out metrics, `best` among them.

        Returns:
          False, with nothing done, if this step was saved before.
        Raises: CheckpointError if this save or the one before failed.
        """
        self.wait()
        self.make_writable()
        self._check_writer()
        assert self._manager is not None
        step = int(step)
        finite = {name: float(v) for name, v in (metrics or {}).items() if math.isfinite(v)}
        frozen = self._save_frozen(step, getattr(state, "frozen", None))
        if frozen is not None:
            state = state.replace(frozen={})
        document = write_document(
            {
                "progress": progress,
                "metrics": finite,
                "optimizer": self._optimizer,
                "frozen": frozen,
                "checksums": checksums(named(state)),
            }
        )
        if step in self._retention.damaged:
            self._manager.delete(step)
            self._retention.damaged.discard(step)
        elif step in self.steps():
            return False
        self._retention.note(step, finite)
        with self._failures_explained(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(document)
                ),
                force=True,
            )
        self._pending = step
        return True

    def _save_frozen(self, step: int, frozen: Any) -> dict[str, str] | None:
        """Writes frozen parameters once; returns the document's entry, None without any."""
        if not jax.tree.leaves(frozen):
            return None
        sums = frozen_sums(frozen)
        if self._base_folder is None:
            with self._failures_explained(step):
                return save_frozen(self.folder, frozen, sums)
        # Only parameters come from this folder; references have other folders.
        params = {name: sum_ for name, sum_ in sums.items() if name.startswith("frozen/params/")}
        return {
            "folder": self._base_folder,
            "fingerprint": fingerprint(sums),
            "params": fingerprint(params),
        }

    def wait(self) -> None:
        """Blocks until the save under way is complete; raises CheckpointError if it failed."""
        step, self._pending = self._pending, None
        if step is None or self._manager is None:
            return
        with self._failures_explained(step):
            self._manager.wait_until_finished()

    def restore(
        self,
        abstract_state: Any,
        *,
        extra: Callable[[Any], Mapping[str, Any]] | None = None,
        frozen: Callable[[str], Any] | None = None,
    ) -> Restored | None:
        """Returns the newest readable checkpoint, or None if there is none at all.

        A damaged one is reported to `warn`, skipped, and deleted once a later save has succeeded.

        Args:
          abstract_state: the expected pytree of `jax.ShapeDtypeStruct` or arrays. Their shardings
            may be on another mesh than the saved ones; without one, numpy is returned.
          extra: params → initial `TrainState.extra`; with it, parts of it may come and go, which is
            reported to `warn`.
          frozen: folder that a run refers to → its `TrainState.frozen`.

        Raises:
          InputError: names, shapes or dtypes differ from the saved ones, or frozen parameters in
            the folder referred to have changed.
          CheckpointError: there are checkpoints, and none can be read.
        """
        self.wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore_step(step, abstract_state, extra=extra, frozen=frozen)
            except CheckpointError as error:
                self._retention.damaged.add(step)
                self._warn(f"{error}; trying the one before")
        if steps:
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be read\n"
                "to train from the start, move that folder away"
            )
        return None

    def restore_step(
        self,
        step: int,
        abstract_state: Any,
        *,
        extra: Callable[[Any], Mapping[str, Any]] | None = None,
        frozen: Callable[[str], Any] | None = None,
    ) -> Restored:
        """Returns the checkpoint of one step; see `restore`."""
        folder = self.folder / str(step)

        def read() -> tuple[dict[str, Any], dict[str, Any], Restored]:
            saved, document = read_description(folder)
            return saved, document, Restored(step, None, document["progress"], document["metrics"])

        saved, document, restored = read_together(folder, read)
        entry = document.get("frozen") or {}
        self._base_folder = entry.get("folder")
        if self._base_folder is not None:
            abstract_state = abstract_state.replace(frozen={})
        expected, structure = named(abstract_state), jax.tree.structure(abstract_state)
        leaves, changes = resumption(
            folder,
            saved,
            expected,
            was=document.get("optimizer"),
            now=self._optimizer,
            extra_may_change=extra is not None,
        )
        sums = document.get("checksums", {})
        values = expected | read_checked(folder, leaves, saved=saved, sums=sums)
        state = jax.tree.unflatten(structure, list(values.values()))
        if extra is not None and len(leaves) < len(expected):
            initial = named({"extra": extra(state.params)})
            values |= {name: initial[name] for name in expected if name not in leaves}
            state = jax.tree.unflatten(structure, list(values.values()))
        for line in changes:
            self._warn(line)
        if self._base_folder is not None:
            state = state.replace(frozen=read_referred(folder, entry, frozen))
        return dataclasses.replace(restored, state=state)

    def close(self) -> None:
        """Ends the threads after the save under way; raises CheckpointError if that failed."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C leaves at once: a save under way is lost, and those before it are not.
        if kind is not KeyboardInterrupt:
            self.close()

    @contextlib.contextmanager
    def _failures_explained(self, step: int) -> Iterator[None]:
        """Raises a `CheckpointError` that names the last intact checkpoint, for any exception."""
        assert self._manager is not None
        try:
            yield
        except Exception as error:
            self._manager.reload()  # Orbax has counted the failed one in and an old one out
            intact = [s for s in self.steps() if s not in self._retention.damaged]
            last = f"that of step {intact[-1]} is intact" if intact else "there is no earlier one"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be saved in {self.folder}: "
                f"{reason(error)}\n{last}; make room or repair the folder, then run again to resume"
            ) from error


def _check_writable(folder: epath.Path) -> None:
    """Makes a folder; raises an InputError unless all processes can write it and it is shared."""
    token = gather(uuid.uuid4().hex)[0]
    probe = folder / f".writable_{token}_{jax.process_index()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        gather(None)  # by now all have written
        seen = gather((folder / f".writable_{token}_0").exists())
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"model_dir = {str(folder.parent)!r} cannot be written: {error.strerror or error}\n"
            "choose another folder or change its permissions",
            field="model_dir",
        ) from error
    if not all(seen):
        raise InputError(
            f"model_dir = {str(folder.parent)!r}: process {seen.index(False)} does not see "
            "the files of process 0\n"
            "choose a folder that all hosts share, such as one of gs://",
            field="model_dir",
        )
