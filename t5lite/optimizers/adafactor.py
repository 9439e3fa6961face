"""Adafactor with T5X's numerics, the same for stacked layers as for layers one by one."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from t5lite.optimizers.checks import Schedule, check_optimizer
from t5lite.optimizers.masks import MATRICES, DecayMask
from t5lite.optimizers.matrices import MatrixView, matrix_views, rms


class AdafactorState(NamedTuple):
    """State of Adafactor; each tree mirrors the parameters, None where one has no such moment.

    Attributes:
      count: updates so far, int32 scalar.
      v_row: second moments of factored parameters, float32, averaged over the columns' axes.
      v_col: the same, averaged over the rows' axes.
      v: second moments of all other parameters, float32, of the parameter's shape.
      m: momentum, `mu_dtype`, of the parameter's shape; None without momentum.
    """

    count: Any
    v_row: Any
    v_col: Any
    v: Any
    m: Any


class _Moments(NamedTuple):
    """One parameter's share of the state."""

    v_row: Any = None
    v_col: Any = None
    v: Any = None
    m: Any = None


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adam's second moment in the memory of a row and a column per matrix, T5's optimizer.

    Arguments are named as T5X's, and updates equal those of its Adafactor under its standard
    logical factor rules, but for two things: `min_dim_size_to_factor` also holds for stacked
    parameters, which T5X factors whatever their size (every published T5 is large enough for it not
    to matter), and weight decay obeys a mask.

    Args:
      learning_rate: number >= 0, or a schedule; relative to the size of a parameter.
      multiply_by_parameter_scale: multiply updates by `max(epsilon2, rms(parameter))`, layer by
        layer; without it the learning rate is absolute.
      beta1: decay of the momentum of updates, in [0, 1); None for none.
      decay_rate: exponent c >= 0 of the second moment's decay `1 - t^-c` at the t-th update.
      step_offset: updates after which t starts again from 1, >= 0, to forget the moments of
        pretraining.
      clipping_threshold: largest RMS of a layer's update before scaling, > 0; None for no clipping.
      weight_decay_rate: >= 0; a step subtracts this times the parameter, *not* times the rate.
      weight_decay_rate_lr_exponent: >= 0; the decay is multiplied by `learning_rate` to this power
        (T5X: 0; AdamW-like: 1; PaLM: 2).
      decay_mask: of weight decay, matrices by default; T5X's is `DecayMask(matrices_only=False)`.
      factored: whether to factor at all.
      min_dim_size_to_factor: smallest number of rows and of columns to factor, >= 1.
      epsilon1: added to squared gradients, > 0.
      epsilon2: smallest parameter scale, > 0.
      mu_dtype: of the momentum, float32 or bfloat16.

    Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 6, §7.2 and §8.
    """

    learning_rate: float | Schedule
    multiply_by_parameter_scale: bool = True
    beta1: float | None = None
    decay_rate: float = 0.8
    step_offset: int = 0
    clipping_threshold: float | None = 1.0
    weight_decay_rate: float = 0.0
    weight_decay_rate_lr_exponent: float = 0.0
    decay_mask: DecayMask = MATRICES
    factored: bool = True
    min_dim_size_to_factor: int = 128
    epsilon1: float = 1e-30
    epsilon2: float = 1e-3
    mu_dtype: Any = "float32"

    def __post_init__(self) -> None:
        check_optimizer(
            self,
            multiply_by_parameter_scale=bool,
            beta1="number in [0, 1) or None",
            decay_rate="number in [0, inf)",
            step_offset="integer in [0, inf)",
            clipping_threshold="number in (0, inf) or None",
            weight_decay_rate="number in [0, inf)",
            weight_decay_rate_lr_exponent="number in [0, inf)",
            factored=bool,
            min_dim_size_to_factor="integer in [1, inf)",
            epsilon1="number in (0, inf)",
            epsilon2="number in (0, inf)",
        )

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformation:
        """Returns the transformation of parameters (or shapes) with these logical axis names.

        `axes` is their tree with PartitionSpec leaves; None without names: then no axis is a stack,
        and only two-dimensional parameters are matrices.
        """
        views, decayed = matrix_views(shapes, axes), self.decay_mask(shapes, axes)
        return optax.GradientTransformation(
            functools.partial(self._init, views), functools.partial(self._update, views, decayed)
        )

    def state_axes(self, axes: Any, shapes: Any) -> AdafactorState:
        """Returns the state's tree with a PartitionSpec of logical names at each leaf.

        Shapes alone cannot tell which axis a factored moment of a square matrix lacks.
        """
        if axes is None:
            axes = jax.tree.map(lambda _: PartitionSpec(), shapes)

        def named(shape: Any, names: PartitionSpec, view: MatrixView) -> _Moments:
            padded = (*names, *[None] * (len(shape.shape) - len(names)))
            return self._moments(
                shape.shape, view, padded, lambda names, dtype: PartitionSpec(*names)
            )

        moments = jax.tree.map(named, shapes, axes, matrix_views(shapes, axes))
        return _state(PartitionSpec(), shapes, moments)

    def _factors(self, view: MatrixView, shape: tuple[int, ...]) -> bool:
        sizes = [math.prod(shape[axis] for axis in part) for part in (view.rows, view.columns)]
        return self.factored and view.is_matrix and min(sizes) >= self.min_dim_size_to_factor

    def _moments(
        self,
        shape: tuple[int, ...],
        view: MatrixView,
        per_axis: tuple,
        make: Callable[[tuple, Any], Any],
    ) -> _Moments:
        """Returns one parameter's moments, each `make(its axes' entries of per_axis, dtype)`."""
        m = None if self.beta1 is None else make(per_axis, self.mu_dtype)
        if not self._factors(view, shape):
            return _Moments(v=make(per_axis, jnp.float32), m=m)
        return _Moments(
            v_row=make(_without(per_axis, view.columns), jnp.float32),
            v_col=make(_without(per_axis, view.rows), jnp.float32),
            m=m,
        )

    def _init(self, views: Any, params: optax.Params) -> AdafactorState:
        def zeros(param: jax.Array, view: MatrixView) -> _Moments:
            return self._moments(param.shape, view, param.shape, jnp.zeros)

        moments = jax.tree.map(zeros, params, views)
        return _state(jnp.zeros([], jnp.int32), params, moments)

    def _update(
        self,
        views: Any,
        decayed: Any,
        gradients: optax.Updates,
        state: AdafactorState,
        params: optax.Params,
    ) -> tuple[optax.Updates, AdafactorState]:
        rate = self._rate(state.count)
        # At the t-th update the moments decay by 1 - t^-c; t starts again at `step_offset`.
        count = jnp.where(
            state.count >= self.step_offset, state.count - self.step_offset, state.count
        )
        moment_decay = 1.0 - (count.astype(jnp.float32) + 1.0) ** (-self.decay_rate)
        weight_decay: Any = self.weight_decay_rate
        if self.weight_decay_rate_lr_exponent:
            weight_decay = weight_decay * rate**self.weight_decay_rate_lr_exponent

        def new_update(param, gradient, view, decays, *old):
            value = param.astype(jnp.float32)
            step, new = self._step(
                value, gradient.astype(jnp.float32), view, _Moments(*old), moment_decay
            )
            step = rate * step
            if self.beta1 is not None:
                step = self.beta1 * new.m.astype(jnp.float32) + (1.0 - self.beta1) * step
                new = new._replace(m=step.astype(self.mu_dtype))
            if decays and self.weight_decay_rate:
                step = step + weight_decay * value
            return -step.astype(param.dtype), new

        both = jax.tree.map(new_update, params, gradients, views, decayed, *state[1:])
        updates = jax.tree.map(lambda _, pair: pair[0], params, both)
        moments = jax.tree.map(lambda _, pair: pair[1], params, both)
        return updates, _state(optax.safe_increment(state.count), params, moments)

    def _step(
        self,
        param: jax.Array,
        gradient: jax.Array,
        view: MatrixView,
        old: _Moments,
        moment_decay: jax.Array,
    ) -> tuple[jax.Array, _Moments]:
        """Returns one parameter's step at learning rate 1 and its new second moments."""
        squared = jnp.square(gradient) + self.epsilon1

        def averaged(past: jax.Array, present: jax.Array) -> jax.Array:
            return moment_decay * past + (1.0 - moment_decay) * present

        if self._factors(view, param.shape):
            v_row = averaged(old.v_row, jnp.mean(squared, axis=view.columns))
            v_col = averaged(old.v_col, jnp.mean(squared, axis=view.rows))
            new = old._replace(v_row=v_row, v_col=v_col)
            rows = jnp.expand_dims(v_row, view.columns)
            rows = rows / jnp.mean(rows, axis=view.rows, keepdims=True)
            step = gradient * jax.lax.rsqrt(rows)
            step = step * jax.lax.rsqrt(jnp.expand_dims(v_col, view.rows))
        else:
            v = averaged(old.v, squared)
            new = old._replace(v=v)
            step = gradient * jax.lax.rsqrt(v)

        if self.clipping_threshold is not None:
            step = step / jnp.maximum(1.0, rms(step, view) / self.clipping_threshold)
        if self.multiply_by_parameter_scale:
            step = step * jnp.maximum(rms(param, view), self.epsilon2)
        return step, new

    def _rate(self, count: jax.Array) -> jax.Array:
        rate: Any = self.learning_rate
        if callable(rate):
            # It may be one of Optax's, whose schedules mix dtypes.
            with jax.numpy_dtype_promotion("standard"):
                rate = rate(count)
        return jnp.asarray(rate, jnp.float32)


def _without(items: tuple, positions: tuple[int, ...]) -> tuple:
    return tuple(item for position, item in enumerate(items) if position not in positions)


def _state(count: Any, params: Any, moments: Any) -> AdafactorState:
    """Transposes a tree of moments into moments of trees."""

    def part(name: str) -> Any:
        return jax.tree.map(lambda _, moment: getattr(moment, name), params, moments)

    return AdafactorState(count, *(part(name) for name in _Moments._fields))
