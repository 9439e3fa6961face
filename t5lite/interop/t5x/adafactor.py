"""Adafactor's state as T5X stores it.

T5X calls the means over one side of a matrix `v_row` and over the other `v_col`: by size where a
parameter has two axes (`v_row` is as long as the shorter one, or the first of two alike), otherwise
`v_row` is that of the residual stream. Ours is always that of the first side; an update uses both
alike, up to rounding. T5X also factors all parameters of more than two axes, layers included,
whatever their size.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from t5lite.errors import InputError
from t5lite.interop.t5x.architecture import Form, infer_form
from t5lite.interop.t5x.files import open_checkpoint
from t5lite.interop.t5x.names import Leaf, leaves
from t5lite.interop.tensors import Arrays, Tensor, read_params, tensors_from
from t5lite.models import Model, ModelSpec
from t5lite.optimizers import Adafactor, AdafactorState
from t5lite.training.restore import named

_MOMENTS = ("v_row", "v_col", "v", "m")
_PREFIX = "state.param_states."
_PLACEHOLDER = np.zeros(1, np.float32)  # T5X's value for a moment that it does not need


def load_adafactor(folder: epath.PathLike, spec: ModelSpec, optimizer: Adafactor) -> AdafactorState:
    """Reads Adafactor's state from a T5X checkpoint, to NumPy.

    Moments that T5X stores whole and `optimizer` factors are averaged, which is exact: a mean of
    running averages is the running average of the means.

    Args:
      folder: as for `open_model`.
      optimizer: decides which moments are factored, and whether there is momentum.

    Raises:
      InputError: no such state, one that is factored where `optimizer` does not, or one without
        momentum where `optimizer` has it.
      CheckpointError: a damaged checkpoint.
    """
    source, model = open_checkpoint(folder), Model(spec)
    stored, checkpoint = source.tensors(), str(source.folder)
    if not any(name.startswith(_PREFIX) and name.endswith(".v_row") for name in stored):
        raise InputError(
            f"{checkpoint} holds no state of Adafactor: it has no {_PREFIX}….v_row; load the "
            "parameters alone"
        )
    like = jax.eval_shape(optimizer(model.axes(), model.shapes()).init, model.shapes())
    state, moments = named(like), []
    means: dict[str, tuple[str, tuple[int, ...]]] = {}  # of moments that T5X does not factor
    for leaf in leaves(spec, infer_form(stored)):
        base = f"{_PREFIX}{leaf.name}"
        if f"{_PREFIX}{leaf.alias}.v" in stored:
            base = f"{_PREFIX}{leaf.alias}"
        required = {"m": "Adafactor.beta1 = None does without it"}
        if f"v_row/{leaf.path}" in state:
            whole = stored.get(f"{base}.v")
            for tensor, averaged in _sides(leaf, base, stored.get(f"{base}.v_row")):
                moments.append(tensor)
                if whole is not None and whole.shape == leaf.whole_shape:
                    means[tensor.name] = (f"{base}.v", averaged)
        else:
            required["v"] = "Adafactor.min_dim_size_to_factor = 1 factors it here"
        for kind, fix in required.items():
            name = f"{base}.{kind}"
            if f"{kind}/{leaf.path}" not in state:
                continue
            if name in stored and stored[name].shape == _PLACEHOLDER.shape:
                raise InputError(
                    f"{checkpoint} has nothing in {name}, which this Adafactor needs: {fix}"
                )
            moments.append(leaf.tensor(name, f"{kind}/"))

    def read(name: str) -> np.ndarray:
        if name not in means:
            return source.read(name)
        whole, averaged = means[name]
        return source.read(whole).mean(averaged, dtype=np.float32)

    shapes = {
        tensor.name: jax.ShapeDtypeStruct(tensor.shape, np.float32)
        if tensor.name in means
        else stored[tensor.name]
        for tensor in moments
        if tensor.name in means or tensor.name in stored
    }
    tree = {kind: getattr(like, kind) for kind in _MOMENTS}
    values = read_params(tree, Arrays(shapes, read), moments, checkpoint=checkpoint)
    return AdafactorState(np.asarray(source.step, like.count.dtype), **values)


def stored_moments(
    spec: ModelSpec, state: AdafactorState, *, form: Form
) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Yields name and values of T5X's moments, and whether T5X gives the array a folder."""
    tree = {kind: getattr(state, kind) for kind in _MOMENTS}
    own = named(tree)
    # T5X factors all parameters of more than two axes or, with `factored = False`, none.
    factors = any(path.startswith("v_row/") for path in own)
    tensors, factored = [], {}
    names = set()
    for leaf in leaves(spec, form):
        base = f"{_PREFIX}{leaf.name}"
        names |= {f"{base}.{kind}" for kind in _MOMENTS}
        sides = _sides(leaf, base) if leaf.split is not None else []
        if f"v_row/{leaf.path}" in own:
            tensors += [tensor for tensor, _ in sides]
        else:
            tensors.append(leaf.tensor(f"{base}.v", "v/"))
            if factors and sides and _by_rule(leaf):
                factored[f"{base}.v"] = sides
        if f"m/{leaf.path}" in own:
            tensors.append(leaf.tensor(f"{base}.m", "m/"))
    for whole, _, make in tensors_from(tree, tensors):
        values = make()
        arrays = {
            tensor.name: values.mean(averaged, dtype=np.float32)
            for tensor, averaged in factored.get(whole, ())
        }
        for name, array in (arrays or {whole: values}).items():
            names.remove(name)
            yield name, array, name.endswith((".v", ".m"))
    for name in sorted(names):
        yield name, _PLACEHOLDER, False


def _sides(leaf: Leaf, base: str, row: Any = None) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Returns T5X's means over the two sides of a matrix, and the axes that each averages.

    Args:
      base: of the names of its moments.
      row: shape of a checkpoint's `v_row`, which decides the names where it can.
    """
    split, own_split = leaf.split, leaf.own_split
    axes = tuple(axis + (leaf.scanned and axis > 0) for axis in range(len(leaf.shape)))
    first, second = leaf.stacked(leaf.shape[:split], 1), leaf.stacked(leaf.shape[split:], 0)
    first_is_row = leaf.rows_are_embed if _by_rule(leaf) else leaf.shape[0] <= leaf.shape[1]
    if row is not None and row.shape in (first, second) and first != second:
        first_is_row = row.shape == first
    names = ("v_row", "v_col") if first_is_row else ("v_col", "v_row")
    rows = leaf.parts(leaf.own_shape[:own_split], "v_row/", layer_axis=1)
    columns = leaf.parts(leaf.own_shape[own_split:], "v_col/", layer_axis=0)
    return [
        (Tensor(f"{base}.{names[0]}", first, rows), axes[split:]),
        (Tensor(f"{base}.{names[1]}", second, columns), axes[:split]),
    ]


def _by_rule(leaf: Leaf) -> bool:
    """Whether T5X's factor rules, rather than sizes, decide whether a matrix is factored."""
    return leaf.scanned or len(leaf.shape) > 2
