"""Policies of weight matrices, by path: how they are drawn, adapted and stored.

Paths are those of a stacked model: `decoder/layers/block_0/attention/query/kernel`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import struct
from jaxtyping import Array, Float, Int32

from t5lite.errors import InputError
from t5lite.layers.initializers import FanInInitSpec, Initializer, InitSpec, Role
from t5lite.layers.spec import Spec


class Matrix(NamedTuple):
    """The shape of a weight matrix, without the axes of scans over layers and experts.

    Attributes:
      shape: `[*contracted, *features]`; `[rows, embed]` of an embedding, contracted over its rows
        as the product with one-hot vectors would be.
      axes: the logical name of each axis.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    num_contracted: int = 1


class Leaf(NamedTuple):
    """A parameter that an adapter declares: its shape, logical axis names and initial values."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer


class Affine(NamedTuple):
    """A projection without adapters.

    Attributes:
      kernel: `[*contracted, *features]`, as it is multiplied, any float dtype.
      bias: `[*features]`; None for none.
      product: `[..., *contracted]` → `[..., *features]`, without the bias.
      dropout_key: returns a new PRNG key; None outside of training.
    """

    kernel: jax.Array
    bias: jax.Array | None
    product: Callable[[jax.Array], jax.Array]
    dropout_key: Callable[[], jax.Array] | None


Leaves = Mapping[str, jax.Array]
Function = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class WeightPolicySpec(Spec):
    """A policy of the weight matrices whose path contains a regular expression (`re.search`)."""

    include: str

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.include)
        except re.error as error:
            self.require(False, "include", f"a regular expression ({error})")

    def fits(self, path: str) -> bool:
        return re.search(self.include, path) is not None


@dataclasses.dataclass(frozen=True)
class AdapterSpec(WeightPolicySpec):
    """Parameters beside a weight matrix that change what it computes; subclass it for your own.

    They lie beside the matrix, inside the scan over layers, and are drawn with it. A subclass
    declares `leaves` and changes `apply`, for embeddings also `lookup` and `attend`.
    """

    def leaves(self, matrix: Matrix) -> dict[str, Leaf]:
        """Returns the parameters beside a matrix by their names (`lora_a`)."""
        raise NotImplementedError(f"{type(self).__name__}.leaves")

    def flops(self, matrix: Matrix) -> int:
        """Returns multiply-adds × 2 of its matrix products for one position."""
        raise NotImplementedError(f"{type(self).__name__}.flops")

    def apply(
        self, leaves: Leaves, x: Float[Array, "..."], inner: Function, affine: Affine
    ) -> Float[Array, "..."]:
        """Returns the adapted projection of `x` `[..., *contracted]`, in the dtype of the
        computation.

        Args:
          inner: the projection without this adapter, its bias included: `inner(x)` is
            `[..., *features]`.
          affine: the parts of the projection without any adapter.
        """
        raise NotImplementedError(f"{type(self).__name__}.apply")

    def lookup(
        self, leaves: Leaves, ids: Int32[Array, "batch length"], inner: Function
    ) -> Float[Array, "batch length embed"]:
        """Returns the adapted rows of an embedding; `inner(ids)` are those without the adapter."""
        raise self._no_embeddings()

    def attend(
        self, leaves: Leaves, x: Float[Array, "batch length embed"], inner: Function
    ) -> Float[Array, "batch length vocab"]:
        """Returns the adapted logits of a tied head, float32; `inner(x)` are those without."""
        raise self._no_embeddings()

    def _no_embeddings(self) -> InputError:
        return InputError(
            f"{type(self).__name__} adapts no embeddings: exclude them from "
            f"include = {self.include!r}"
        )


@dataclasses.dataclass(frozen=True)
class StorageSpec(WeightPolicySpec):
    """How a weight matrix lies in memory; subclass it for your own. Its leaves replace the array in
    the parameters, `kernel: {values, scale}`; each layer decodes its own."""

    def encode(
        self, matrix: Float[Array, "..."], contracted: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        """Returns the leaves of a matrix, each with as many axes.

        Args:
          matrix: any float dtype, possibly with leading axes (layers, experts).
          contracted: the axes that products sum over, from the end: `(-2, -1)`. Each index of the
            others is encoded by itself, so that rows of an embedding can be decoded alone.
        """
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def axes(self, axes: tuple[str, ...], contracted: tuple[int, ...]) -> dict[str, tuple]:
        """Returns the logical axis names of the leaves, None for an axis of size 1."""
        raise NotImplementedError(f"{type(self).__name__}.axes")

    def decode(self, leaves: Leaves, dtype: Any) -> Float[Array, "..."]:
        """Returns the matrix, or rows of an embedding; `dtype` is the computation's."""
        raise NotImplementedError(f"{type(self).__name__}.decode")


class Box(nn.LogicallyPartitioned):
    """An initial weight with its axis names, and which axes its products sum over."""

    contracted: tuple[int, ...] = struct.field(default=(), pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The policies of a stack's weights, which layers pass on.

    Args:
      num_updates: see `InitSpec.kernel`.
      adapters: all that fit a path apply, the last one outermost.
      storage: the first that fits a path applies; float arrays without one.
    """

    init: InitSpec = FanInInitSpec()
    num_updates: int = 1
    adapters: tuple[AdapterSpec, ...] = ()
    storage: tuple[StorageSpec, ...] = ()

    def kernel(self, role: Role, gain: float = 1.0) -> Initializer:
        """Returns the initializer of a matrix; see `InitSpec.kernel`."""
        return self.init.kernel(role, gain=gain, num_updates=self.num_updates)

    def storage_of(self, path: str) -> StorageSpec | None:
        """Returns how the weight at a path lies in memory; None for a float array."""
        return next((spec for spec in self.storage if spec.fits(path)), None)

    def adapters_of(self, path: str) -> tuple[AdapterSpec, ...]:
        """Returns the adapters of the weight at a path."""
        return tuple(spec for spec in self.adapters if spec.fits(path))


class Declared(NamedTuple):
    """The parameters of one weight matrix, in a module that is running.

    Attributes:
      leaves: a float array, or what `storage` made of it.
      storage: None for a float array.
    """

    leaves: Any
    storage: StorageSpec | None
    adapters: list[tuple[AdapterSpec, Leaves]]

    def decoded(self, dtype: Any) -> Any:
        """Returns the matrix, any float dtype; where it is stored encoded, of `dtype`."""
        return self.leaves if self.storage is None else self.storage.decode(self.leaves, dtype)


def parameter_path(*names: str) -> str:
    """Returns the path that patterns are for: the layers of an unstacked model share theirs."""
    return re.sub(r"/layers_\d+/", "/layers/", "/".join(names))


def declare(
    module: nn.Module,
    name: str,
    weights: Weights,
    matrix: Matrix,
    *,
    init: Initializer,
    contracted: Sequence[int],
) -> Declared:
    """Declares a module's weight matrix; its products sum over the axes `contracted`, negative."""
    path = parameter_path(*module.path, name)
    storage, contracted = weights.storage_of(path), tuple(contracted)

    def draw(key: jax.Array) -> Any:
        array = init(key, matrix.shape)
        if storage is None:
            return Box(array, names=matrix.axes, contracted=contracted)
        axes = storage.axes(matrix.axes, contracted)
        leaves = storage.encode(array, contracted)
        return {leaf: Box(array, names=axes[leaf]) for leaf, array in leaves.items()}

    leaves: Any = module.param(name, draw)
    adapters: list[tuple[AdapterSpec, Leaves]] = []
    for adapter in weights.adapters_of(path):
        leaves_of = adapter.leaves(matrix)
        for leaf in leaves_of:
            if any(leaf in declared for _, declared in adapters):
                raise InputError(
                    f"ModelSpec.adapters: two have a parameter {leaf!r} at {path}; keep one"
                )
        own: dict[str, Any] = {
            leaf: module.param(leaf, nn.with_logical_partitioning(init, axes), shape)
            for leaf, (shape, axes, init) in leaves_of.items()
        }
        adapters.append((adapter, own))
    return Declared(leaves, storage, adapters)
