"""A checkpoint of another library, opened."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.interop.description import Description
from t5lite.interop.opened import Opened, Progress
from t5lite.interop.placing import index_of
from t5lite.interop.tensors import Source, Tensor, check_tensors, read_params
from t5lite.models import Model
from t5lite.training.restore import named


@dataclasses.dataclass(frozen=True)
class ForeignCheckpoint(Opened):
    """An opened checkpoint of Hugging Face or T5X, read piece by piece into its shards.

    Args:
      kind, description, folder, tensors: see `Opened`.
      source: the stored tensors.
      ignored: regular expressions of further names that it may hold.
      step: updates done; None if unknown.
    """

    kind: str  # type: ignore[misc]
    description: Description
    source: Source
    tensors: Sequence[Tensor]
    folder: str
    ignored: Sequence[str] = ()
    step: int | None = None

    def left_out(self) -> list[str]:
        read = {name for tensor in self.tensors for name in tensor.names}
        return [
            name
            for name in self.source.tensors()
            if name not in read and any(re.fullmatch(pattern, name) for pattern in self.ignored)
        ]

    def shapes(self, model: Model) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and stored dtypes (of several, the widest)."""
        shapes, stored = named(model.shapes()), self.source.tensors()
        check_tensors(
            shapes, self.source, self.tensors, ignored=self.ignored, checkpoint=self.folder
        )
        dtypes: dict[str, np.dtype] = {}
        for tensor in self.tensors:
            names = [name for name in tensor.names if name in stored]
            for part in tensor.parts if names else ():
                dtype = np.dtype(stored[names[0]].dtype)
                same = dtypes.setdefault(part.path, dtype) == dtype
                dtypes[part.path] = dtype if same else np.dtype(np.float32)
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, dtypes.get(name, leaf.dtype))
            for name, leaf in shapes.items()
        }

    def read(
        self, leaves: Mapping[str, jax.ShapeDtypeStruct], *, progress: Progress | None = None
    ) -> dict[str, Any]:
        return read_params(
            leaves,
            self.source,
            self.tensors,
            ignored=self.ignored,
            checkpoint=self.folder,
            progress=progress,
        )


def mapping_lines(tensors: Sequence[Tensor], params: Any) -> list[tuple[str, str, str]]:
    """Returns a row for each tensor: its name, its shape, and the parameters in it."""
    shapes, rows = named(params), []
    for tensor in tensors:
        names = []
        for path, layer, _ in tensor.parts:
            if path not in shapes:
                raise ValueError(f"{tensor.name}: the model has no {path}")
            index = ", ".join(map(str, index_of(layer)))
            names.append(f"{path}[{index}]" if index else path)
        rows.append((tensor.name, str(list(tensor.shape)), ", ".join(names) or "(not written)"))
    return rows
