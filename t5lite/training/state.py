"""The train state, with the logical axis names and the sharding of each leaf."""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from t5lite.errors import InputError
from t5lite.parallel import Layout, shardings
from t5lite.training.tuning import Tuning

Tree = Any
# Takes axis names and shapes of the trained parameters; or is a transformation itself.
Optimizer: TypeAlias = (
    Callable[[Tree, Tree], optax.GradientTransformation] | optax.GradientTransformation
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run.

    Args:
      step: int32 scalar, updates so far, skipped ones included.
      params: trained parameters; `whole_params` merges and averages them for evaluation.
      frozen: `{"params": frozen parameters, "references": {name: parameters}}`, no gradients.
      opt_state: the optimizer's.
      rng: uint32 key data; step and microbatch are folded in, so that it never changes.
      extra: state of `Update`, by name: `ema` (an average, like the parameters), `spike` and
        `loss_scale` (the guards' scalars), `update_scale` (float32 scalar that multiplies updates,
        on top of the learning rate; callbacks may edit it).
    """

    step: jax.Array
    params: Tree
    frozen: Tree
    opt_state: Tree
    rng: jax.Array
    extra: Tree

    def replace(self, **changes: Any) -> "TrainState":
        return dataclasses.replace(self, **changes)


def frozen_of(
    params: Tree = types.MappingProxyType({}),
    references: Mapping[str, Tree] = types.MappingProxyType({}),
) -> dict[str, Tree]:
    """Returns `TrainState.frozen` of frozen parameters and those of reference models."""
    return {"params": dict(params), "references": dict(references)}


def whole_params(state: TrainState, tuning: Tuning) -> Tree:
    """Returns trained and frozen parameters merged; averaged ones where an average is kept."""
    return tuning.merge(state.extra.get("ema", state.params), state.frozen["params"])


def transformation(
    optimizer: Optimizer, axes: Tree, shapes: Tree
) -> optax.GradientTransformationExtraArgs:
    """Returns the Optax transformation of an optimizer.

    Args:
      optimizer: `make(axes, shapes)` or a transformation; anything else raises an InputError.
      axes: logical axis names of the trained parameters.
      shapes: the trained parameters, or their shapes.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        if not callable(optimizer):
            raise InputError(
                f"optimizer = {optimizer!r}: neither make(axes, shapes) nor an "
                "optax.GradientTransformation",
                field="optimizer",
            )
        optimizer = optimizer(axes, shapes)
    return optax.with_extra_args_support(optimizer)


def next_learning_rate(optimizer: Optimizer, opt_state: Tree) -> jax.Array | None:
    """Returns the learning rate of the next update, a float32 scalar.

    A schedule is evaluated at the optimizer's own count of updates, which leaves skipped ones out.
    None if the optimizer has no `learning_rate`, or a schedule and no `count` in its state.
    """
    rate = getattr(optimizer, "learning_rate", None)
    if callable(rate):
        # Every part of a chain has a count; a part that restarts never has the largest.
        counts = [count for _, count in optax.tree.get_all_with_path(opt_state, "count")]
        with jax.numpy_dtype_promotion("standard"):
            rate = rate(functools.reduce(jnp.maximum, counts)) if counts else None
    return None if rate is None else jnp.asarray(rate, jnp.float32)


def name_of(optimizer: Optimizer) -> str:
    if isinstance(optimizer, optax.GradientTransformation):
        return "an Optax transformation"
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    inner = getattr(getattr(optimizer, "make", None), "__name__", None)  # of FromOptax
    return f"{name}({inner})" if inner else name


def initial_state(
    params: Tree,
    optimizer: optax.GradientTransformation,
    *,
    rng: jax.Array,
    frozen: Mapping[str, Tree] | None = None,
    extra: Mapping[str, Tree] = types.MappingProxyType({}),
) -> TrainState:
    """Returns the state before the first step.

    Args:
      params: trained parameters, float32.
      optimizer: initialises its state.
      rng: key of dropout and other randomness in the step.
      frozen: see `frozen_of`; None: nothing is frozen.
      extra: see `Update.extra`.
    """
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen_of() if frozen is None else dict(frozen),
        opt_state=opt_state,
        rng=jax.random.key_data(rng),
        extra=dict(extra),
    )


def state_axes(
    state: TrainState, axes: Tree, optimizer: Optimizer | None = None, *, frozen: Tree = None
) -> TrainState:
    """Returns the state's tree with a `PartitionSpec` of logical axis names at each leaf.

    An optimizer with `state_axes(axes, shapes)` names its own state. Otherwise a leaf of the
    optimizer's state at a parameter's path with its shape inherits the names; one that lacks some
    axes (a factored moment) drops their names; anything else is replicated. So is `extra`, except
    an average of the parameters.

    Args:
      state: shapes are enough.
      axes: logical names of `state.params`.
      optimizer: `make(axes, shapes)` or a transformation.
      frozen: logical names of `state.frozen`; None where it is empty.
    """
    replicated = jax.tree.map(lambda _: PartitionSpec(), state)
    named: Any = getattr(optimizer, "state_axes", None)
    if named is not None:
        opt_axes = named(axes, state.params)
    else:
        opt_axes = _optimizer_axes(state.opt_state, state.params, axes)
    extra = replicated.extra | ({"ema": axes} if "ema" in state.extra else {})
    frozen = replicated.frozen if frozen is None else frozen
    return replicated.replace(params=axes, frozen=frozen, opt_state=opt_axes, extra=extra)


def state_shardings(
    state: TrainState,
    axes: Tree,
    *,
    layout: Layout,
    mesh: Mesh,
    optimizer: Optimizer | None = None,
    frozen: Tree = None,
) -> TrainState:
    """Returns the sharding of every leaf of a state under a layout; see `state_axes`."""
    named = state_axes(state, axes, optimizer, frozen=frozen)
    result = shardings(named, layout.parameters, mesh)
    if layout.optimizer is None:
        return result
    return result.replace(opt_state=shardings(named.opt_state, layout.optimizer, mesh))


def _optimizer_axes(opt_state: Tree, params: Tree, axes: Tree) -> Tree:
    """Returns axis names for an optimizer's state, by the parameters' paths and shapes in it."""
    shapes, names = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
        for t in (params, axes)
    )

    def leaf_axes(path: tuple, leaf: Any) -> PartitionSpec:
        # Moments lie at `[0].mu['encoder']['kernel']`: the longest suffix that is a parameter's.
        for start in range(len(path)):
            key = jax.tree_util.keystr(path[start:])
            if key in shapes:
                return _remaining_axes(leaf.shape, shapes[key].shape, names[key])
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(leaf_axes, opt_state)


def _remaining_axes(
    shape: tuple[int, ...], full: tuple[int, ...], names: PartitionSpec
) -> PartitionSpec:
    """Returns the names of the axes of `full` that `shape` still has, if that is unambiguous.

    `[8, 4]` of `[8, 2, 4]` is certain; of `[8, 4, 4]` either of the last two may be missing.
    """
    padded = tuple(names) + (None,) * (len(full) - len(names))
    candidates = {()} if not shape else set()
    partial: list[tuple[int, tuple]] = [(0, ())]  # matched axes of `shape`, and their names
    for size, name in zip(full, padded, strict=True):
        partial += [
            (axis + 1, (*matched, name))
            for axis, matched in partial
            if axis < len(shape) and shape[axis] == size
        ]
    candidates |= {matched for axis, matched in partial if axis == len(shape)}
    return PartitionSpec(*candidates.pop()) if len(candidates) == 1 else PartitionSpec()
