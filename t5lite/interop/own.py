"""A checkpoint of t5lite's own, opened."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.interop.description import MODEL, Description
from t5lite.interop.finite import fault, leaf_is_finite
from t5lite.interop.opened import Opened, Progress
from t5lite.models import Model
from t5lite.training.restore import (
    absolute,
    find_step_folder,
    load_params,
    match,
    named,
    read_arrays,
    saved_arrays,
    saved_steps,
)


class Located(NamedTuple):
    """The folders of a checkpoint.

    Args:
      step_folder: its arrays.
      home: its description: `model.json` and the files beside it.
    """

    step_folder: epath.Path
    home: epath.Path


def locate(folder: epath.PathLike, *, step: int | None = None) -> Located:
    """Finds a checkpoint and its description, reading neither.

    Args:
      folder: a model_dir, its checkpoints folder, or one step folder.
      step: which one of a model_dir; None for the newest.

    Raises:
      InputError: no such folder, no such checkpoint, or no model.json.
    """
    if not absolute(folder).exists():
        raise InputError(f"there is no folder {str(folder)!r}; give a model_dir")
    step_folder = find_step_folder(folder)
    if step is not None:
        saved = saved_steps(folder)
        if step not in saved:
            steps = ", ".join(map(str, sorted(saved))) or "none"
            raise InputError(
                f"step = {step}: {str(folder)!r} has no such checkpoint; it has {steps}"
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
      description: see `Opened`.
      step_folder: its arrays.
      home: its description.
      averaged: whether the average of the parameters is read, of a run that kept one.
    """

    kind = "t5lite"
    tensors = ()
    description: Description
    step_folder: epath.Path
    home: epath.Path
    averaged: bool = True

    @classmethod
    def open(
        cls,
        folder: epath.PathLike,
        *,
        vocabulary: Vocabulary | None = None,
        step: int | None = None,
        averaged: bool = True,
    ) -> "OwnCheckpoint":
        """Opens a checkpoint; see `open_model`."""
        step_folder, home = locate(folder, step=step)
        description = Description.read(home, vocabulary=vocabulary)
        return cls(description, step_folder, home, averaged)

    @property
    def where(self) -> str:  # type: ignore[override]
        """The step folder."""
        return str(self.step_folder)

    @property
    def step(self) -> int:
        """Updates done."""
        wanted = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
        return int(read_arrays(self.step_folder, wanted)["step"])

    def shapes(self, model: Model) -> dict[str, Any]:
        """Returns shapes and stored dtypes, having checked the names; see `Opened`."""
        prefix, saved = self._stored()
        stored = {name.removeprefix(prefix): leaf for name, leaf in saved.items()}
        with self._described():
            match(named(model.shapes()), stored, (), where=self.where)
        return stored

    def read(
        self, wanted: Mapping[str, jax.ShapeDtypeStruct], *, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Reads parameters; see `Opened`. `progress` is not called: Orbax reads all at once."""
        prefix, saved = self._stored()
        unread = saved.keys() - {f"{prefix}{name}" for name in wanted}
        mapping = [(None, re.escape(name.removeprefix(prefix))) for name in unread]
        part = prefix.removesuffix("/")
        with self._described():
            values = load_params(self.step_folder, dict(wanted), mapping=mapping, part=part).params
        for name, array in values.items():
            if not leaf_is_finite(array):
                self._raise_fault(f"{prefix}{name}", saved[f"{prefix}{name}"], array.dtype)
        return values

    def _stored(self) -> tuple[str, dict[str, Any]]:
        """Returns the prefix of the parameters' names in the state, and the arrays under it."""
        everything = saved_arrays(self.step_folder)
        for prefix in ("extra/ema/", "params/") if self.averaged else ("params/",):
            saved = {name: leaf for name, leaf in everything.items() if name.startswith(prefix)}
            if saved:
                return prefix, saved
        raise InputError(f"the checkpoint {self.step_folder} has no parameters")

    @contextlib.contextmanager
    def _described(self) -> Iterator[None]:
        """Explains an error about names or shapes: the description is of other parameters."""
        try:
            yield
        except InputError as error:
            problem = "\n".join(str(error).splitlines()[1:3])
            raise InputError(
                f"{self.home / MODEL} does not describe the parameters in "
                f"{self.step_folder}:\n{problem}"
            ) from error

    def _raise_fault(self, name: str, saved: Any, dtype: Any) -> None:
        """Raises the InputError for an array with NaN, infinity, or a number out of range."""
        wanted = {name: jax.ShapeDtypeStruct(saved.shape, saved.dtype)}
        stored = read_arrays(self.step_folder, wanted)
        if (error := fault(stored.items(), dtype, where=self.where)) is not None:
            raise error
