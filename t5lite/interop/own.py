"""A checkpoint of t5lite's own, opened."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from t5lite.errors import InputError
from t5lite.interop.description import MODEL, Description
from t5lite.interop.finite import fault, leaf_is_finite
from t5lite.interop.opened import Opened, Progress
from t5lite.models import Model
from t5lite.training.frozen import fingerprint, frozen_sums
from t5lite.training.mapping import match
from t5lite.training.restore import (
    absolute,
    find_step_folder,
    load_params,
    named,
    read_arrays,
    read_document,
    read_together,
    saved_arrays,
    saved_steps,
)
from t5lite.training.tuning import FILE as TUNING
from t5lite.training.tuning import Everything, Tuning, nest

_AVERAGE = "extra/ema"


class Located(NamedTuple):
    """The folders of a checkpoint: its arrays, and its description (`model.json` and others)."""

    step_folder: epath.Path
    home: epath.Path


def locate(folder: epath.PathLike, *, step: int | None = None) -> Located:
    """Finds a checkpoint and its description, reading neither.

    Args:
      folder: a model_dir, its checkpoints folder, or one step folder.
      step: which one of a model_dir; None for the newest.

    Raises: InputError for a missing folder, no such checkpoint, or no model.json.
    """
    if not absolute(folder).exists():
        raise InputError(f"there is no folder {str(folder)!r}; give a model_dir")
    step_folder = find_step_folder(folder)
    if step is not None:
        saved = saved_steps(folder)
        if step not in saved:
            steps = ", ".join(map(str, sorted(saved))) or "none"
            raise InputError(
                f"step = {step}: {str(folder)!r} has no such checkpoint; it has {steps}",
                field="step",
            )
        step_folder = saved[step]
    for home in (step_folder, *step_folder.parents[:2]):
        if (home / MODEL).exists():
            return Located(step_folder, home)
    raise InputError(
        f"no {MODEL} in {step_folder} or the two folders above; "
        "copy the one of the model_dir it came from there"
    )


@dataclasses.dataclass(frozen=True)
class OwnCheckpoint(Opened):
    """A checkpoint of a run, or of `interop.save`.

    Args:
      step_folder, home: see `Located`.
      averaged: whether the average of the parameters is read, of a run that kept one.
      open_base: opens the folder that a run's frozen parameters are read again from.
    """

    kind = "t5lite"
    tensors = ()
    description: Description
    step_folder: epath.Path
    home: epath.Path
    averaged: bool
    open_base: Callable[..., Opened]

    @property
    def folder(self) -> str:  # type: ignore[override]
        return str(self.step_folder)

    @property
    def step(self) -> int:
        leaf = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
        return int(read_arrays(self.step_folder, leaf)["step"])

    def shapes(self, model: Model) -> dict[str, Any]:
        """Returns shapes and stored dtypes, having checked the names."""
        stored, expected = self._stored(), self._split(named(model.shapes()))
        if self._base:
            stored = stored[0], expected[1]
        with self._described():
            for names, leaves in zip(expected, stored, strict=True):
                match(names, leaves, (), label=self.folder)
        return self._merge(*stored)

    def read(
        self, leaves: Mapping[str, jax.ShapeDtypeStruct], *, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Reads parameters without calling `progress`: Orbax reads all at once."""
        trained, frozen = zip(self._parts(), self._split(leaves), self._stored(), strict=True)
        rest = self._read_base(leaves) if self._base else self._read(*frozen)
        values = self._merge(self._read(*trained), rest)
        return {  # layers merged into one array may have lost their sharding
            name: values[name]
            if leaf.sharding is None
            else jax.device_put(values[name], leaf.sharding)
            for name, leaf in leaves.items()
        }

    def _read(
        self, part: str, leaves: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, Any]
    ) -> dict[str, Any]:
        if not leaves:
            return {}
        unread = [(None, re.escape(name)) for name in stored.keys() - leaves.keys()]
        with self._described():
            values = load_params(self.step_folder, dict(leaves), mapping=unread, part=part).params
        for name, array in values.items():
            if not leaf_is_finite(array):
                saved = read_arrays(self.step_folder, {f"{part}/{name}": stored[name]}).items()
                if (error := fault(saved, array.dtype, checkpoint=self.folder)) is not None:
                    raise error
        return values

    def _read_base(self, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Reads the frozen parts from the start's folder; InputError if they have changed there."""
        due = self._split(leaves)[1]
        if not due:
            return {}
        folder, shapes = self._base["folder"], named(Model(self.spec).shapes())
        try:
            base = self.open_base(folder, averaged=False)
        except InputError as error:
            raise InputError(f"frozen parameters of {self.folder}: {error}") from error

        def leaf(name: str) -> jax.ShapeDtypeStruct:  # all of them, to be checked
            sharding = leaves[name].sharding if name in leaves else None
            return jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype, sharding=sharding)

        values = base.read({name: leaf(name) for name in self._split(shapes)[1]})
        frozen = self._split(values)[1]
        actual = fingerprint(frozen_sums({"params": nest(frozen)}))
        if actual != self._base.get("params", self._base["fingerprint"]):
            raise InputError(
                f"the frozen parameters of {self.folder} are those of {folder}, which has changed "
                "since\nrestore that folder; Checkpoints.frozen = 'save' keeps a copy in the run"
            )
        return {name: frozen[name].astype(leaf.dtype) for name, leaf in due.items()}

    @functools.cached_property
    def _base(self) -> dict[str, str]:
        """Folder and fingerprints of frozen parameters that are not saved; {} if they are."""
        document = read_together(self.step_folder, lambda: read_document(self.step_folder))
        entry = document.get("frozen") or {}
        return entry if "folder" in entry else {}

    def _parts(self) -> tuple[str, str]:
        """Returns the parts of the state that hold the trained and the frozen parameters."""
        averaged = self.averaged and any(name.startswith(f"{_AVERAGE}/") for name in self._saved)
        return _AVERAGE if averaged else "params", "frozen/params"

    def _stored(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Returns shapes and dtypes of the stored trained and frozen parameters, by name."""
        return tuple(
            {
                name.removeprefix(f"{part}/"): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                for name, leaf in self._saved.items()
                if name.startswith(f"{part}/")
            }
            for part in self._parts()
        )

    @functools.cached_property
    def _saved(self) -> dict[str, Any]:
        return read_together(self.step_folder, lambda: saved_arrays(self.step_folder))

    @functools.cached_property
    def _tuning(self) -> Tuning:
        if self.description.tuning == Everything():
            return self.description.tuning
        model = Model(self.spec)
        return self.description.tuning.bind(model.axes(), model.shapes())

    def _split(self, leaves: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        trained, frozen = self._tuning.split(nest(leaves))
        return named(trained), named(frozen)

    def _merge(self, trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        return named(self._tuning.merge(nest(trained), nest(frozen)))

    @contextlib.contextmanager
    def _described(self) -> Iterator[None]:
        """Adds to an error about names or shapes that the description is of other parameters."""
        try:
            yield
        except InputError as error:
            problem = "\n".join(str(error).splitlines()[1:3])
            tuned = "" if self.description.tuning == Everything() else f", or {TUNING} beside it,"
            raise InputError(
                f"{self.home / MODEL}{tuned} does not describe the parameters in "
                f"{self.step_folder}:\n{problem}"
            ) from error
