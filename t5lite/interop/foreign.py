"""A checkpoint of another library, opened: what it holds, and its parameters placed on devices."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5lite.data import Vocabulary
from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels
from t5lite.errors import InputError
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.interop.finite import stays_float32
from t5lite.interop.generation_defaults import GenerationDefaults
from t5lite.interop.placing import Layer, index_of
from t5lite.interop.tensors import Source, Tensor, check_tensors, read_params
from t5lite.models import Model, ModelSpec
from t5lite.objectives import Prompts
from t5lite.parallel import Layout, shardings
from t5lite.training.restore import named

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Foreign:
    """What `open_model` of a library's room returns.

    Args:
      spec: the architecture.
      source: its tensors.
      tensors: where they stand among the parameters.
      where: what the checkpoint is called in messages.
      ignored: regular expressions of further names that it may hold.
      vocabulary: of its token ids; None where there is none.
      step: updates done; None where it is not said.
      labels: names of what a head's outputs mean, by label feature, in order; {} for none.
      prompts: how the model is prompted; None where nothing is said.
      generation: how the model writes unless options say otherwise; None where nothing is said.
      embedding: how it embeds texts unless options say otherwise; likewise.
      origin: the other files of a Hugging Face folder, `huggingface.Origin`; None for others.
      inputs: how rows became its texts in training, which other libraries do not say.
    """

    spec: ModelSpec
    source: Source
    tensors: Sequence[Tensor]
    where: str
    ignored: Sequence[str] = ()
    vocabulary: Vocabulary | None = None
    step: int | None = None
    labels: Labels = dataclasses.field(default_factory=dict)
    prompts: Prompts | None = None
    generation: GenerationDefaults | None = None
    embedding: EmbeddingDefaults | None = None
    origin: Any = None
    inputs: InputFormat = InputFormat()

    def replace(self, **changes: Any) -> "Foreign":
        """Returns the same checkpoint with some of this changed."""
        return dataclasses.replace(self, **changes)

    def left_out(self) -> list[str]:
        """Returns the names of tensors that may be there, are, and are not read."""
        known = {name for tensor in self.tensors for name in (tensor.name, *tensor.aliases)}
        return [
            name
            for name in self.source.tensors()
            if name not in known and any(re.fullmatch(pattern, name) for pattern in self.ignored)
        ]

    def check(self, shapes: Any) -> None:
        """Raises an InputError unless the tensors are those that parameters of `shapes` need."""
        check_tensors(shapes, self.source, self.tensors, ignored=self.ignored, where=self.where)

    def params(
        self,
        model: Model,
        *,
        layout: Layout,
        mesh: Mesh,
        dtype: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Reads the parameters into their shards.

        Args:
          model: of `spec`.
          layout: how they are sharded.
          mesh: the devices.
          dtype: of the parameters; None for each as it is stored. Of float16, T5's feed-forward
            outputs stay float32, as in transformers.
          progress: called with bytes done and bytes in all.

        Raises:
          InputError: if the tensors do not fit the spec, with all of them; or if one has numbers
            that are NaN, infinite, or too large for `dtype`.
        """
        stored = self._stored_dtypes()

        def leaf(path: Any, shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            kind = jnp.dtype(dtype) if dtype is not None else stored.get(name, shape.dtype)
            if stays_float32(self.spec.family, name, dtype):
                kind = jnp.dtype("float32")
            return jax.ShapeDtypeStruct(shape.shape, kind, sharding=sharding)

        placed = shardings(model.axes(), layout.parameters, mesh)
        like = jax.tree_util.tree_map_with_path(leaf, model.shapes(), placed)
        return read_params(
            like,
            self.source,
            self.tensors,
            ignored=self.ignored,
            where=self.where,
            progress=progress,
        )

    def _stored_dtypes(self) -> dict[str, np.dtype]:
        """Returns the dtype of each parameter; of one that is stored in several, the widest."""
        there = self.source.tensors()
        found: dict[str, np.dtype] = {}
        for tensor in self.tensors:
            names = [name for name in (tensor.name, *tensor.aliases) if name in there]
            kinds = [np.dtype(there[name].dtype) for name in names[:1]]
            for part in tensor.parts:
                for kind in kinds:
                    both = found.get(part.path, kind)
                    found[part.path] = kind if both == kind else np.dtype(np.float32)
        return found


def check_dtype(dtype: Any) -> None:
    """Raises an InputError unless parameters may have a dtype, or None."""
    try:
        known = dtype is None or jnp.dtype(dtype).name in DTYPES
    except TypeError:
        known = False
    if not known:
        raise InputError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}, or None")


def mapping_lines(tensors: Sequence[Tensor], params: Any) -> list[tuple[str, str, str]]:
    """Returns a row for each tensor: its name, its shape, and the parameters in it."""
    shapes = named(params)

    def place(path: str, layer: Layer) -> str:
        index = ", ".join(map(str, index_of(layer)))
        return f"{path}[{index}]" if index else path

    rows = []
    for tensor in tensors:
        ours = ", ".join(place(part.path, part.layer) for part in tensor.parts)
        if strange := [part.path for part in tensor.parts if part.path not in shapes]:
            raise ValueError(f"{tensor.name}: the model has no {strange[0]}")
        rows.append((tensor.name, str(list(tensor.shape)), ours or "(not written)"))
    return rows
