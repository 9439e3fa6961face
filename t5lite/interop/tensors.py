"""The mapping between the tensors of another library's checkpoint and a model's parameters.

A family of models is a list of `Tensor`s: the parameters in each foreign tensor as NumPy views.
Loading reads from a view and saving writes to it, so that one description serves both.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from t5lite.errors import InputError
from t5lite.interop.finite import fault, leaf_is_finite
from t5lite.interop.misfit import Misfit, misfit_error
from t5lite.interop.placing import (
    Layer,
    Piece,
    check_sharding,
    fill,
    host_pieces,
    index_of,
    local_bytes,
)
from t5lite.training.restore import named

View = Callable[[np.ndarray], np.ndarray]


def whole(array: np.ndarray) -> np.ndarray:
    """The view of a tensor that is laid out as the parameter is."""
    return array


def transposed(array: np.ndarray) -> np.ndarray:
    """The view of a matrix `[out, in]`, as PyTorch has them."""
    return array.T


class Part(NamedTuple):
    """A parameter, or one layer of it, in a foreign tensor.

    Args:
      path: of the parameter, its steps joined by "/".
      layer: index of the entry on the parameter's leading axis, or axes (layer and expert); None
        for all of the parameter.
      view: foreign tensor → an array of the parameter's (or the layer's) shape; must be a view of
        its argument: slices, transpositions, axes split, never a copy.
    """

    path: str
    layer: Layer = None
    view: View = whole


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a foreign checkpoint.

    Args:
      name: by which it is written, and looked for first.
      shape: required of the stored tensor.
      parts: the parameters in it; together they fill it. (): the tensor may be stored, but adds
        nothing to the model's spec; it is not written.
      aliases: further names of the same tensor in other files, where weights are tied.
      partial: whether the parts leave some of it out, which is then written as zeros.
      constant: makes its fixed value, where the other library wants it written although it is
        computed (sinusoidal positions). It then has no parts, and a stored one is not read.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    aliases: tuple[str, ...] = ()
    partial: bool = False
    constant: Callable[[], np.ndarray] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


class Source(Protocol):
    """An opened foreign checkpoint."""

    def tensors(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype by name, reading none."""

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, if possible mapped from its file rather than read."""


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A `Source` of other sources' tensors, or of computed ones; `read` returns one by name."""

    shapes: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[str], np.ndarray]

    def tensors(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        return self.shapes


def check_tensors(
    like: Any,
    source: Source,
    tensors: Sequence[Tensor],
    *,
    ignored: Sequence[str] = (),
    checkpoint: str,
) -> None:
    """Raises the errors of `read_params` about names, shapes and dtypes, reading nothing."""
    leaves = named(like)
    _holders(leaves, tensors)
    _find(leaves, source.tensors(), tensors, ignored=ignored, checkpoint=checkpoint)


def read_params(
    like: Any,
    source: Source,
    tensors: Sequence[Tensor],
    *,
    ignored: Sequence[str] = (),
    checkpoint: str,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Reads a model's parameters out of a foreign checkpoint, each straight into its shards.

    Host memory holds the shards of one parameter at a time, or only the parameters where the
    devices are the host's.

    Args:
      like: nested dicts of `jax.ShapeDtypeStruct`, or one by name, of all parameters or some:
        shapes, dtypes (floats are cast to them) and shardings (none: to NumPy).
      tensors: the mapping between the tensors of `source` and the parameters.
      ignored: regular expressions for whole names of further tensors that may be stored.
      checkpoint: its name in messages.
      progress: called with bytes copied to this process's devices and bytes in all.

    Returns: a tree like `like`.

    Raises: InputError before reading for tensors that are missing, unexpected, or of another shape
      or kind of dtype (all are listed), two different tensors under names of one, or a parameter
      that does not divide over its devices; while reading for numbers that are NaN, infinite, or
      too large.
    """
    leaves = named(like)
    holders = _holders(leaves, tensors, complete=False)
    stored_names = _find(leaves, source.tensors(), tensors, ignored=ignored, checkpoint=checkpoint)
    for path, leaf in leaves.items():
        check_sharding(path, leaf)
    _check_aliases(source, tensors, checkpoint=checkpoint)
    total, count = sum(map(local_bytes, leaves.values())), 0

    def copied(size: int) -> None:
        nonlocal count
        count += size
        if progress is not None:
            progress(count, total)

    def piece(name: str, part: Part) -> Piece:
        return Piece(part.layer, lambda: part.view(source.read(stored_names[name])))

    def filled(path: str, leaf: jax.ShapeDtypeStruct) -> Any:
        array = fill(leaf, (piece(tensor.name, part) for tensor, part in holders[path]), copied)
        if not leaf_is_finite(array):
            names = dict.fromkeys(stored_names[tensor.name] for tensor, _ in holders[path])
            stored = ((name, source.read(name)) for name in names)
            if (error := fault(stored, leaf.dtype, checkpoint=checkpoint)) is not None:
                raise error
        return array

    params = [filled(path, leaf) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), params)


def tensors_from(
    params: Any, tensors: Sequence[Tensor], *, dtypes: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, jax.ShapeDtypeStruct, Callable[[], np.ndarray]]]:
    """Converts parameters to a foreign checkpoint's tensors, one at a time.

    Args:
      params: nested dicts of arrays, sharded or not.
      dtypes: of tensors by name; the others have their parameters'.

    Yields: name, shape and dtype, and a function that makes the tensor, for each tensor that has
      parts or is constant.

    Raises: InputError for a parameter sharded over several processes.
    """
    leaves = named(params)
    _holders(leaves, tensors)
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise InputError(
                f"{path} is sharded over several processes; save the checkpoint with t5lite's own "
                "format, and convert it in one process"
            )

    def make(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
        array = (np.zeros if tensor.partial else np.empty)(tensor.shape, dtype)
        for part in tensor.parts:
            target = part.view(array)
            for index, values in host_pieces(leaves[part.path], part.layer):
                np.copyto(target[index], values, casting="unsafe")
        return array

    def generated() -> Iterator[tuple[str, jax.ShapeDtypeStruct, Callable[[], np.ndarray]]]:
        for tensor in tensors:
            if tensor.parts:
                kinds = {np.dtype(leaves[part.path].dtype) for part in tensor.parts}
                dtype = np.dtype((dtypes or {}).get(tensor.name) or functools.reduce(_wider, kinds))
                shape = jax.ShapeDtypeStruct(tensor.shape, dtype)
                yield tensor.name, shape, functools.partial(make, tensor, dtype)
            elif tensor.constant is not None:
                shape = jax.ShapeDtypeStruct(tensor.shape, np.dtype(np.float32))
                yield tensor.name, shape, tensor.constant

    return generated()


def _holders(
    leaves: Mapping[str, Any], tensors: Sequence[Tensor], *, complete: bool = True
) -> dict[str, list[tuple[Tensor, Part]]]:
    """Returns the tensors and their parts of each parameter.

    Raises: RuntimeError if they do not fit exactly, a mistake in the mapping and never the user's.
    """
    holders: dict[str, list[tuple[Tensor, Part]]] = {path: [] for path in leaves}
    for tensor in tensors:
        # Of one byte an entry, and never touched, so that it takes no memory.
        stand_in, filled = np.empty(tensor.shape, np.uint8), 0
        for part in tensor.parts:
            if part.path not in leaves:
                if not complete:
                    continue
                raise _bug(f"{tensor.name} has a part {part.path}, which is not a parameter")
            shape = tuple(leaves[part.path].shape)[len(index_of(part.layer)) :]
            view = part.view(stand_in)
            if view.shape != shape or (view.size and not np.may_share_memory(view, stand_in)):
                raise _bug(f"{part.path} is not a view {shape} of {tensor.name}, but {view.shape}")
            holders[part.path].append((tensor, part))
            filled += view.size
        missing = stand_in.size - filled if tensor.parts and complete else 0
        if missing < 0 or (missing and not tensor.partial):
            raise _bug(f"the parts of {tensor.name} have {filled} of {stand_in.size} entries")
    for path, parts in holders.items():
        layers = sorted(index_of(part.layer) for _, part in parts)
        leading = leaves[path].shape[: len(layers[0])] if layers else ()
        if layers != list(np.ndindex(*leading)):
            shown = [index[0] if len(index) == 1 else index or -1 for index in layers]
            raise _bug(f"{path} is made of layers {shown}" if shown else f"{path} has no source")
    return holders


def _find(
    leaves: Mapping[str, Any],
    stored: Mapping[str, jax.ShapeDtypeStruct],
    tensors: Sequence[Tensor],
    *,
    ignored: Sequence[str],
    checkpoint: str,
) -> dict[str, str]:
    """Returns the stored name of each tensor; raises one error for all that do not fit."""
    stored_names: dict[str, str] = {}
    misfit = Misfit([], [], {}, {})
    for tensor in tensors:
        if tensor.constant is not None:
            continue  # of whatever shape
        names = [name for name in tensor.names if name in stored]
        if names:
            stored_names[tensor.name] = names[0]
        elif tensor.parts:
            misfit.missing.append(tensor.name)
        dtypes = {np.dtype(leaves[p.path].dtype) for p in tensor.parts if p.path in leaves}
        for name in names:
            if stored[name].shape != tensor.shape:
                misfit.shapes[name] = (stored[name].shape, tensor.shape)
            if uncastable := [d for d in dtypes if not _castable(stored[name].dtype, d)]:
                misfit.dtypes[name] = (str(np.dtype(stored[name].dtype)), str(uncastable[0]))
    mapped = {name for tensor in tensors for name in tensor.names}
    misfit.unexpected.extend(
        name
        for name in stored
        if name not in mapped and not any(re.fullmatch(pattern, name) for pattern in ignored)
    )
    if any(misfit):
        expected = [tensor.name for tensor in tensors if tensor.parts]
        raise misfit_error(misfit, expected=expected, stored=stored, checkpoint=checkpoint)
    return stored_names


def _check_aliases(source: Source, tensors: Sequence[Tensor], *, checkpoint: str) -> None:
    """Raises unless tensors stored under two names are equal."""
    stored = source.tensors()
    for tensor in tensors:
        names = [name for name in tensor.names if name in stored]
        for alias in names[1:] if tensor.parts else ():
            if not same_values(source, names[0], alias):
                raise InputError(
                    f"{checkpoint} ties {names[0]} to {alias}, but their values differ; set "
                    "tie_word_embeddings to false in its config.json, or fix the checkpoint"
                )


def same_values(source: Source, name: str, alias: str) -> bool:
    """Whether two tensors are equal, or at most one of them is stored."""
    if name == alias or not {name, alias} <= source.tensors().keys():
        return True
    pair = source.read(name), source.read(alias)
    if pair[0].shape != pair[1].shape:
        return False
    # Bytes where dtypes agree, as NaN is not equal to itself.
    same = pair[0].dtype == pair[1].dtype
    first, second = (array.reshape(-1).view(np.uint8 if same else array.dtype) for array in pair)
    dtype, step = np.uint8 if same else np.float64, 1 << 22
    # In pieces: np.array_equal would make masks as large as the tensors.
    pieces = (slice(start, start + step) for start in range(0, len(first), step))
    return all(
        np.array_equal(first[piece].astype(dtype), second[piece].astype(dtype)) for piece in pieces
    )


def _castable(stored: Any, expected: Any) -> bool:
    floats = [jax.numpy.issubdtype(dtype, jax.numpy.floating) for dtype in (stored, expected)]
    return all(floats) or np.dtype(stored) == np.dtype(expected)


def _wider(first: np.dtype, second: np.dtype) -> np.dtype:
    try:
        return np.promote_types(first, second)
    except TypeError:  # bfloat16 and float16
        return np.dtype(np.float32)


def _bug(message: str) -> RuntimeError:
    return RuntimeError(f"internal error: {message}")
