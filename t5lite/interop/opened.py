"""`Opened`: the contract of every checkpoint that `open_model` returns."""

import abc
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.interop.description import Description
from t5lite.interop.finite import stays_float32
from t5lite.interop.tensors import Tensor
from t5lite.models import Model, ModelSpec
from t5lite.parallel import Layout, shardings
from t5lite.training.restore import named

Progress = Callable[[int, int], None]


class Opened(abc.ABC):
    """A checkpoint, as `open_model` returns it: parameters are read on demand.

    Attributes:
      kind: "t5lite", "huggingface" or "t5x".
      description: everything in the folder except the arrays.
      folder: for messages.
      tensors: how another library's tensors map to parameters; () for t5lite's own.
    """

    kind: ClassVar[str]
    description: Description
    folder: str
    tensors: Sequence[Tensor]

    @property
    def spec(self) -> ModelSpec:
        return self.description.spec

    @property
    def vocabulary(self) -> Vocabulary | None:
        return self.description.vocabulary

    @property
    @abc.abstractmethod
    def step(self) -> int | None:
        """Updates done; None if unknown."""

    @abc.abstractmethod
    def shapes(self, model: Model) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and stored dtype of each parameter by name, reading none.

        Args:
          model: of `spec`.
        Raises: InputError for another library's tensors that do not fit the spec, listing all of
          them.
        """

    @abc.abstractmethod
    def read(
        self, leaves: Mapping[str, jax.ShapeDtypeStruct], *, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Reads parameters into their shards.

        Args:
          leaves: shape, dtype (floats are cast) and sharding (None: NumPy) by name; all or some.
          progress: called with bytes done and bytes in all, except for t5lite's own checkpoints.

        Raises:
          InputError: names or shapes that do not fit, or a number that is NaN, infinite, or out of
            the range of its leaf's dtype.
          CheckpointError: a damaged checkpoint.
        """

    def left_out(self) -> list[str]:
        """Returns the names of stored tensors that are recognised and not read."""
        return []

    def _fits(self, model: Model) -> bool:
        """Whether names and shapes of the checkpoint are the model's."""
        with contextlib.suppress(InputError):
            self.shapes(model)
            return True
        return False

    def params(
        self,
        model: Model,
        *,
        layout: Layout,
        mesh: Mesh,
        dtype: Any = None,
        progress: Progress | None = None,
    ) -> Any:
        """Reads all parameters into their shards; floats are encoded by `compute.storage`.

        Args:
          model: of `spec`.
          layout: their sharding.
          dtype: of the parameters; None for the stored ones. With float16, T5's feed-forward
            outputs stay float32, as in transformers.
          progress: see `read`.

        Raises: InputError for a vocabulary larger than the model's, and as `shapes` and `read`.
        """
        if self.vocabulary is not None and self.vocabulary.size > self.spec.vocab:
            raise InputError(
                f"the vocabulary has {self.vocabulary.size} ids but the model of {self.folder} "
                f"only {self.spec.vocab} embeddings: it is another model's"
            )
        plain = Model(model.spec, model.compute.replace(storage=()))
        if model.compute.storage and self._fits(plain):
            params = self.params(plain, layout=layout, mesh=mesh, dtype=dtype, progress=progress)
            stored_shardings = shardings(model.axes(), layout.parameters, mesh)
            return jax.jit(model.store, out_shardings=stored_shardings)(params)
        shapes, stored = model.shapes(), self.shapes(model)
        sharding = named(shardings(model.axes(), layout.parameters, mesh))

        def leaf(name: str, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            kind = stored.get(name, shape).dtype if dtype is None else jnp.dtype(dtype)
            if stays_float32(self.spec.family, name, dtype):
                kind = jnp.dtype("float32")
            return jax.ShapeDtypeStruct(shape.shape, kind, sharding=sharding[name])

        leaves = {name: leaf(name, shape) for name, shape in named(shapes).items()}
        values = self.read(leaves, progress=progress)
        return jax.tree.unflatten(jax.tree.structure(shapes), [values[name] for name in leaves])
