"""The compiled functions of a run, built from shapes alone, for train, inspect and plan alike."""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t5lite.errors import InputError
from t5lite.parallel import (
    Layout,
    batch_shardings,
    check_batch,
    in_memory,
    process_rows,
    shardings,
    with_layout,
)
from t5lite.training.state import (
    Optimizer,
    TrainState,
    frozen_of,
    initial_state,
    next_learning_rate,
    state_shardings,
    transformation,
)
from t5lite.training.step import Objective, train_step
from t5lite.training.tuning import Everything, Tuning, named
from t5lite.training.update import Update


@dataclasses.dataclass(frozen=True)
class Program:
    """The initialiser and the step of a run, for one mesh; all shapes carry their shardings.

    Args:
      init: `seed -> TrainState`, drawn straight into its shards; only without references.
      draw: `seed -> params`, all of the model's, as `init` draws them.
      start_from: `(params, seed, references={}) -> TrainState` from given parameters: all of the
        model's, and those of each reference model. It donates them, so no array may be in both.
      extra: `params -> TrainState.extra` as it starts from these trained parameters.
      step: `(state, batch) -> (state, metrics)`; donates the state; has `.lower(state, batch)`.
      state: shapes of the state.
      batch: shapes of the global batch.
      params: shapes of all of the model's parameters.
      tuning: bound to the model.
    """

    init: Callable[[int], TrainState]
    draw: Callable[[int], Any]
    start_from: Callable[..., TrainState]
    extra: Callable[[Any], Any]
    step: Any
    state: TrainState
    batch: Mapping[str, jax.ShapeDtypeStruct]
    params: Any
    tuning: Tuning


def build(
    model: Any,
    objective: Objective,
    optimizer: Optimizer,
    batch_shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    layout: Layout,
    mesh: Mesh,
    update: Update = Update(),
    tuning: Tuning = Everything(),
    references: Mapping[str, Any] = types.MappingProxyType({}),
) -> Program:
    """Builds a run's functions; computes and allocates nothing.

    Args:
      model: pure functions with `init` and `axes`, see `models.Model`.
      objective: gives the loss.
      optimizer: `make(axes, shapes)` or an Optax transformation.
      batch_shapes: of the global batch.
      layout: how arrays are sharded over `mesh`, see `parallel.make_mesh`.
      update: microbatches, clipping, averaging, guards.
      tuning: which parameters are trained.
      references: further models by name, whose parameters the objective's loss reads.
    Raises: InputError if batch or parameters do not divide over the mesh, or the batch into
      microbatches, or if float16 has no loss scale, or `tuning` does not fit the model.
    """
    shapes = {name: tuple(shape.shape) for name, shape in batch_shapes.items()}
    _check_loss_scale(model, update)
    _check_batch(objective, shapes, layout=layout, mesh=mesh, update=update)

    if not isinstance(tuning, Tuning):
        raise InputError(
            f"train.tuning = {tuning!r}: must be a Tuning, such as @t5lite.training.ByPath()",
            field="train.tuning",
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    whole_axes, whole = model.axes(), jax.eval_shape(model.init, key)
    tuning = tuning.bind(whole_axes, whole)
    axes, frozen_axes = tuning.split(whole_axes)
    _check_trained(tuning.split(whole)[0])
    frozen_axes = frozen_of(frozen_axes, {name: ref.axes() for name, ref in references.items()})
    optax_optimizer = transformation(optimizer, axes, tuning.split(whole)[0])

    def start_from(params: Any, references: Any, state_key: jax.Array) -> TrainState:
        trained, frozen = tuning.split(params)
        return initial_state(
            trained,
            optax_optimizer,
            rng=state_key,
            frozen=frozen_of(frozen, references),
            extra=update.extra(trained),
        )

    def init(params_key: jax.Array, state_key: jax.Array) -> TrainState:
        return start_from(model.init(params_key), {}, state_key)

    reference_shapes = {name: jax.eval_shape(ref.init, key) for name, ref in references.items()}
    state = jax.eval_shape(start_from, whole, reference_shapes, key)
    state_sharding = state_shardings(
        state, axes, layout=layout, mesh=mesh, optimizer=optimizer, frozen=frozen_axes
    )
    batch_sharding = batch_shardings(layout, mesh, objective.axes(), shapes)
    gradient_sharding = shardings(axes, layout.gradients or layout.parameters, mesh)
    if layout.optimizer_memory != "device":
        # Scalars stay on the devices: they are read every step, and weigh nothing.
        in_host_memory = jax.tree.map(
            lambda sharding, leaf: (
                in_memory(sharding, layout.optimizer_memory) if leaf.ndim else sharding
            ),
            state_sharding.opt_state,
            state.opt_state,
        )
        state_sharding = state_sharding.replace(opt_state=in_host_memory)
    _check_divides(state, state_sharding)

    step = functools.partial(
        train_step,
        model=model,
        objective=objective,
        optimizer=optax_optimizer,
        update=update,
        tuning=tuning,
        constrain_gradients=lambda g: jax.lax.with_sharding_constraint(g, gradient_sharding),
        learning_rate=functools.partial(next_learning_rate, optimizer),
    )
    if layout.optimizer_memory != "device":
        step = functools.partial(_with_fetched_moments, step, state_sharding.opt_state)
    # Plain `jit`: `with_layout` would first shard parameters by the rules of activations.
    drawn = jax.jit(init, out_shardings=state_sharding)
    # A stacked array of which some layers are frozen becomes two by a copy: nothing to donate.
    num_leaves = len(jax.tree.leaves((state.params, state.frozen["params"])))
    donated = (0, 1) if num_leaves == len(jax.tree.leaves(whole)) else 1
    started = jax.jit(start_from, out_shardings=state_sharding, donate_argnums=donated)

    def keys(seed: int) -> tuple[jax.Array, jax.Array]:
        params_key, state_key = jax.random.split(jax.random.key(seed))
        return params_key, state_key

    params_sharding = shardings(whole_axes, layout.parameters, mesh)
    draw = jax.jit(model.init, out_shardings=params_sharding)
    return Program(
        init=lambda seed: drawn(*keys(seed)),
        draw=lambda seed: draw(keys(seed)[0]),
        start_from=lambda params, seed, references={}: started(params, references, keys(seed)[1]),
        extra=jax.jit(update.extra, out_shardings=state_sharding.extra),
        step=with_layout(
            step,
            layout,
            mesh,
            in_shardings=(state_sharding, batch_sharding),
            out_shardings=(state_sharding, None),
            donate_argnums=0,
        ),
        state=_with_shardings(state, state_sharding),
        batch={name: _with_shardings(batch_shapes[name], batch_sharding[name]) for name in shapes},
        params=_with_shardings(whole, params_sharding),
        tuning=tuning,
    )


def _check_trained(params: Any) -> None:
    """Raises an InputError if a trained parameter is an integer, as encoded weights may be."""
    for name, leaf in named(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"train.tuning: {name} is {leaf.dtype}, which has no gradient; freeze it, by "
                "ByPath.exclude",
                field="train.tuning",
            )


def _check_loss_scale(model: Any, update: Update) -> None:
    compute = getattr(model, "compute", None)
    if getattr(compute, "dtype", None) == "float16" and update.loss_scale is None:
        raise InputError(
            "Update.loss_scale = None: must be a LossScale with float16, or gradients vanish; set "
            "t5lite.train.update = @t5lite.training.Update() and "
            "t5lite.training.Update.loss_scale = @t5lite.training.LossScale()",
            field="Update.loss_scale",
        )


def _check_batch(
    objective: Objective,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    layout: Layout,
    mesh: Mesh,
    update: Update,
) -> None:
    """Raises an InputError unless batch and microbatches divide over the mesh."""
    axes = objective.axes()
    check_batch(layout, mesh, shapes, axes)
    rows, parts = next(iter(shapes.values()))[0], update.num_microbatches
    if rows % parts:
        raise InputError(
            f"Update.num_microbatches = {parts}: does not divide the batch size {rows}; "
            "set a divisor",
            field="Update.num_microbatches",
        )
    parted = {name: (shape[0] // parts, *shape[1:]) for name, shape in shapes.items()}
    check_batch(layout, mesh, parted, axes)
    min_rows = objective.min_rows
    if rows // parts < min_rows:
        raise InputError(
            f"batch size {rows}, Update.num_microbatches = {parts}: "
            f"{type(objective).__name__} compares the rows of a microbatch with each other and "
            f"needs at least {min_rows}; increase the batch size",
            field="Update.num_microbatches",
        )


def _with_shardings(shapes: Any, sharding: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        sharding,
    )


def process_shards(data: Any, layout: Layout, mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Returns process → the virtual shards of the data whose rows its devices hold.

    If a process's rows are not whole shards, all processes raise the same InputError. `data` gives
    `batch_size` and `shards_of(rows)`.
    """
    rows = process_rows(layout, mesh, data.batch_size)
    return {process: data.shards_of(rows[process].tolist()) for process in rows}


def _with_fetched_moments(
    step: Callable, host_sharding: Any, state: TrainState, batch: Any
) -> tuple[TrainState, dict[str, Any]]:
    """Runs `train_step` with an optimizer state that is stored in the host's memory."""
    sharding = jax.tree.map(lambda s: in_memory(s, "device"), host_sharding)
    state = state.replace(opt_state=jax.device_put(state.opt_state, sharding))
    state, metrics = step(state, batch)
    return state.replace(opt_state=jax.device_put(state.opt_state, host_sharding)), metrics


def _check_divides(state: TrainState, state_sharding: TrainState) -> None:
    """Raises an InputError unless every array divides over the mesh axes that shard it."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(state_sharding), strict=True):
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            sizes = {axis: size for axis, size in sharding.mesh.shape.items() if size > 1}
            raise InputError(
                f"{name} {list(leaf.shape)} does not divide over the mesh {sizes} as "
                f"{tuple(sharding.spec)}; change Layout.mesh or the model's sizes",
                field="Layout.mesh",
            ) from error
