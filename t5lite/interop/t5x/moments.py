"""Adafactor's state as T5X stores it, and as ours does.

Both keep, of a matrix's second moments, the means over its rows and the means over its columns.
They differ in what they call which. T5X goes by size where a parameter has two axes: `v_row` is as
long as the shorter one, or the first of two alike; where it has more, `v_row` is that of the
residual stream. Ours is that of the first side, always. An update uses both means alike, up to
rounding, so that this is a matter of names. And T5X factors what has more than two axes, layers
included, whatever its size.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.errors import InputError
from t5lite.interop.t5x.architecture import Form
from t5lite.interop.t5x.names import Leaf, inserted, leaves
from t5lite.interop.tensors import Arrays, Source, Tensor, tensors_from
from t5lite.models import Model, ModelSpec
from t5lite.optimizers import AdafactorState
from t5lite.optimizers.matrices import matrix_view
from t5lite.training.restore import named

MOMENTS = ("v_row", "v_col", "v", "m")
_PREFIX = "state.param_states."
_PLACEHOLDER = np.zeros(1, np.float32)  # what T5X has for a moment that it does not need


class _Side(NamedTuple):
    """The moments of a matrix's rows, or of its columns, in T5X's array.

    Args:
      kind: what T5X calls them.
      own_kind: what we call them.
      shape: of T5X's array.
      own_shape: of one layer of ours.
      layer_axis: along which T5X stacks layers.
      others: axes of T5X's parameter that are averaged.
    """

    kind: str
    own_kind: str
    shape: tuple[int, ...]
    own_shape: tuple[int, ...]
    layer_axis: int
    others: tuple[int, ...]

    def tensor(self, leaf: Leaf, base: str) -> Tensor:
        parts = leaf.parts(self.own_shape, f"{self.own_kind}/", layer_axis=self.layer_axis)
        return Tensor(f"{base}.{self.kind}", self.shape, parts)


def wanted(
    source: Source, spec: ModelSpec, state: AdafactorState, *, axes: Any, form: Form, where: str
) -> tuple[Source, list[Tensor]]:
    """Returns what of a checkpoint makes our state, and where it goes.

    Args:
      source: the checkpoint.
      spec: the model.
      state: ours, or its shapes.
      axes: logical axis names of the parameters.
      form: how the checkpoint stores parameters.
      where: what it is called in messages.

    Raises:
      InputError: if it holds no state of Adafactor's, or one that cannot be made ours.
    """
    stored, own = source.tensors(), named(state)
    if not any(name.startswith(_PREFIX) and name.endswith(".v_row") for name in stored):
        raise InputError(
            f"{where} holds no state of Adafactor: there is no {_PREFIX}….v_row in it; load the "
            "parameters alone"
        )
    firsts = _own_firsts(axes)
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    means: dict[str, tuple[str, tuple[int, ...]]] = {}  # of moments that T5X does not factor
    tensors: list[Tensor] = []

    def add(tensor: Tensor, mean_of: tuple[str, tuple[int, ...]] | None = None) -> None:
        """Adds a tensor that is stored, or the mean of one over some of its axes."""
        tensors.append(tensor)
        if mean_of is not None:
            means[tensor.name] = mean_of
            shapes[tensor.name] = jax.ShapeDtypeStruct(tensor.shape, np.float32)
        elif tensor.name in stored:
            shapes[tensor.name] = stored[tensor.name]

    def read(name: str) -> np.ndarray:
        if name not in means:
            return source.read(name)
        whole_name, averaged = means[name]
        return source.read(whole_name).mean(averaged, dtype=np.float32)

    for leaf in leaves(spec, form):
        path, base = leaf.places[0][0], _base(leaf, stored)
        if f"v_row/{path}" in own:
            whole = stored.get(f"{base}.v")
            unfactored = whole is not None and whole.shape == leaf.whole_shape
            for side in _sides(leaf, stored.get(f"{base}.v_row"), own_first=firsts[path]):
                full = (f"{base}.v", side.others)
                add(side.tensor(leaf, base), full if unfactored else None)
        else:
            _require(
                stored, f"{base}.v", where, "Adafactor.min_dim_size_to_factor = 1 factors it here"
            )
            add(_same(leaf, base, "v"))
        if f"m/{path}" in own:
            _require(stored, f"{base}.m", where, "Adafactor.beta1 = None does without it")
            add(_same(leaf, base, "m"))
    return Arrays(shapes, read), tensors


def saved(
    spec: ModelSpec, state: AdafactorState, *, form: Form
) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Yields name and values of T5X's moments, and whether T5X gives the array a folder.

    Args:
      spec: the model.
      state: ours.
      form: how the parameters are stored.
    """
    tree = {kind: getattr(state, kind) for kind in MOMENTS}
    own, firsts = named(tree), _own_firsts(Model(spec).axes())
    tensors, factor = [], {}
    # T5X factors all such parameters or, with `factored = False`, none.
    factors = any(path.startswith("v_row/") for path in own)
    for leaf in leaves(spec, form):
        path, base = leaf.places[0][0], f"{_PREFIX}{leaf.name}"
        if f"v_row/{path}" in own:
            sides = _sides(leaf, None, own_first=firsts[path])
            tensors += [side.tensor(leaf, base) for side in sides]
        else:
            tensors.append(_same(leaf, base, "v"))
            if factors and leaf.split is not None and _by_rule(leaf):
                factor[f"{base}.v"] = _sides(leaf, None, own_first=firsts[path])
        if f"m/{path}" in own:
            tensors.append(_same(leaf, base, "m"))
    names = {f"{_PREFIX}{leaf.name}.{kind}" for leaf in leaves(spec, form) for kind in MOMENTS}
    for name, _, make in tensors_from(tree, tensors):
        for made, values in _factored(name, make(), factor.get(name)):
            names.remove(made)
            yield made, values, made.endswith((".v", ".m"))
    for name in sorted(names):
        yield name, _PLACEHOLDER, False


def _factored(
    name: str, values: np.ndarray, sides: tuple[_Side, _Side] | None
) -> Iterator[tuple[str, np.ndarray]]:
    if sides is None:
        yield name, values
    else:
        for side in sides:
            yield f"{name}_{side.kind[2:]}", values.mean(side.others, dtype=np.float32)


def _own_firsts(axes: Any) -> dict[str, bool]:
    """Returns, for each matrix of ours, whether its `v_row` is that of its first side."""
    views = {
        path: matrix_view(names, (1,) * len(names))  # of which the sizes do not matter
        for path, names in named(axes).items()
    }
    return {path: view.rows[0] < view.columns[0] for path, view in views.items() if view.is_matrix}


def _sides(leaf: Leaf, row: jax.ShapeDtypeStruct | None, *, own_first: bool) -> tuple[_Side, _Side]:
    """Returns the two sides of a matrix.

    Args:
      leaf: the matrix.
      row: shape of what a checkpoint has as `v_row`, which decides where it can.
      own_first: whether our `v_row` is that of the first side.
    """
    assert leaf.split is not None
    axes = [axis + (leaf.scanned and axis > 0) for axis in range(len(leaf.shape))]
    first, second = leaf.shape[: leaf.split], leaf.shape[leaf.split :]
    if leaf.scanned:
        first = inserted(first, len(leaf.places), axis=1)
        second = inserted(second, len(leaf.places), axis=0)
    by_size = leaf.shape[0] <= leaf.shape[1]
    first_is_row = leaf.rows_are_embed if _by_rule(leaf) else by_size
    if row is not None and row.shape in (first, second) and first != second:
        first_is_row = row.shape == first
    kinds = ("v_row", "v_col") if first_is_row else ("v_col", "v_row")
    own_kinds = ("v_row", "v_col") if own_first else ("v_col", "v_row")
    own_split = leaf.own_split
    return (
        _Side(
            kinds[0], own_kinds[0], first, leaf.own_shape[:own_split], 1, tuple(axes[leaf.split :])
        ),
        _Side(
            kinds[1], own_kinds[1], second, leaf.own_shape[own_split:], 0, tuple(axes[: leaf.split])
        ),
    )


def _by_rule(leaf: Leaf) -> bool:
    """Whether T5X's factor rules say what is factored, rather than sizes."""
    return leaf.scanned or len(leaf.shape) > 2


def _same(leaf: Leaf, base: str, kind: str) -> Tensor:
    """Returns a moment of the parameter's own shape."""
    parts = leaf.parts(leaf.own_shape, f"{kind}/", layer_axis=1)
    return Tensor(f"{base}.{kind}", leaf.whole_shape, parts)


def _base(leaf: Leaf, stored: Mapping[str, Any]) -> str:
    """Returns what the names of a parameter's moments begin with."""
    alias = f"{_PREFIX}{leaf.alias}"
    return alias if f"{alias}.v" in stored else f"{_PREFIX}{leaf.name}"


def _require(stored: Mapping[str, Any], name: str, where: str, otherwise: str) -> None:
    if name in stored and stored[name].shape == _PLACEHOLDER.shape:
        raise InputError(f"{where} has nothing in {name}, which this Adafactor needs: {otherwise}")
