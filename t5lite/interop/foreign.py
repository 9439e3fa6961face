"""A checkpoint of another library, opened."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.interop.description import Description
from t5lite.interop.opened import Opened, Progress
from t5lite.interop.placing import Layer, index_of
from t5lite.interop.tensors import Source, Tensor, check_tensors, read_params
from t5lite.models import Model
from t5lite.training.restore import named


@dataclasses.dataclass(frozen=True)
class ForeignCheckpoint(Opened):
    """A checkpoint of Hugging Face or T5X.

    Args:
      kind, description, where, tensors: see `Opened`.
      source: the stored tensors.
      ignored: regular expressions of further names that it may hold.
      step: updates done; None if unknown.
    """

    kind: str  # type: ignore[misc]
    description: Description
    source: Source
    tensors: Sequence[Tensor]
    where: str
    ignored: Sequence[str] = ()
    step: int | None = None

    def left_out(self) -> list[str]:
        """Returns the names of stored tensors that are known and not read."""
        known = {name for tensor in self.tensors for name in (tensor.name, *tensor.aliases)}
        return [
            name
            for name in self.source.tensors()
            if name not in known and any(re.fullmatch(pattern, name) for pattern in self.ignored)
        ]

    def shapes(self, model: Model) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and stored dtypes, having checked all tensors; see `Opened`."""
        shapes = named(model.shapes())
        check_tensors(shapes, self.source, self.tensors, ignored=self.ignored, where=self.where)
        stored = self._stored_dtypes()
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, stored.get(name, leaf.dtype))
            for name, leaf in shapes.items()
        }

    def read(
        self, wanted: Mapping[str, jax.ShapeDtypeStruct], *, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Reads parameters piece by piece, each straight into its shards; see `Opened`."""
        return read_params(
            wanted,
            self.source,
            self.tensors,
            ignored=self.ignored,
            where=self.where,
            progress=progress,
        )

    def _stored_dtypes(self) -> dict[str, np.dtype]:
        """Returns the dtype of each parameter; of one that is stored in several, the widest."""
        stored = self.source.tensors()
        dtypes: dict[str, np.dtype] = {}
        for tensor in self.tensors:
            present = [np.dtype(stored[name].dtype) for name in tensor.names if name in stored]
            for part in tensor.parts if present else ():
                other = dtypes.get(part.path, present[0])
                dtypes[part.path] = other if other == present[0] else np.dtype(np.float32)
        return dtypes


def mapping_lines(tensors: Sequence[Tensor], params: Any) -> list[tuple[str, str, str]]:
    """Returns a row for each tensor: its name, its shape, and the parameters in it."""
    shapes = named(params)

    def indexed(path: str, layer: Layer) -> str:
        index = ", ".join(map(str, index_of(layer)))
        return f"{path}[{index}]" if index else path

    rows = []
    for tensor in tensors:
        ours = ", ".join(indexed(part.path, part.layer) for part in tensor.parts)
        if strange := [part.path for part in tensor.parts if part.path not in shapes]:
            raise ValueError(f"{tensor.name}: the model has no {strange[0]}")
        rows.append((tensor.name, str(list(tensor.shape)), ours or "(not written)"))
    return rows
