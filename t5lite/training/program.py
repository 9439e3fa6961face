"""A run's compiled functions, built from shapes alone: the same for train, inspect and plan."""

import dataclasses
import functools
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
    initial_state,
    next_learning_rate,
    state_shardings,
    transformation,
)
from t5lite.training.step import Objective, Transform, identity, train_step
from t5lite.training.update import Update


@dataclasses.dataclass(frozen=True)
class Program:
    """The initialiser and the step of a run, for one mesh.

    Args:
      init: `seed -> TrainState`, drawn straight into its shards.
      start_from: `(params, seed) -> TrainState`, the same from given parameters, which become its
        own: what an optimizer keeps of parameters is of these, not of drawn ones.
      extra: `params -> TrainState.extra` as it starts from these.
      step: `(state, batch) -> (state, metrics)`; donates the state; has `.lower(state, batch)`.
      state: shapes of the state, with their shardings.
      batch: shapes of the global batch, with their shardings.
    """

    init: Callable[[int], TrainState]
    start_from: Callable[[Any, int], TrainState]
    extra: Callable[[Any], Any]
    step: Any
    state: TrainState
    batch: Mapping[str, jax.ShapeDtypeStruct]


def build(
    model: Any,
    objective: Objective,
    optimizer: Optimizer,
    batch_shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    layout: Layout,
    mesh: Mesh,
    update: Update = Update(),
    transform: Transform = identity,
    update_scale: bool = False,
) -> Program:
    """Builds a run's functions; computes and allocates nothing.

    Args:
      model: pure functions with `init` and `axes`, see `models.Model`.
      objective: gives the loss.
      optimizer: `make(axes)` or an Optax transformation.
      batch_shapes: of the global batch.
      layout: how arrays are sharded.
      mesh: over which devices, see `parallel.make_mesh`.
      update: microbatches, clipping, averaging, guards.
      transform: parameters and frozen ones to what the model gets.
      update_scale: whether a callback will scale updates, see `Callback`.

    Raises:
      InputError: if batch or parameters do not divide over the mesh, or the batch into
        microbatches, or if float16 has no loss scale.
    """
    compute = getattr(model, "compute", None)
    if getattr(compute, "dtype", None) == "float16" and update.loss_scale is None:
        raise InputError(
            "Update.loss_scale = None: must be a LossScale with float16, or gradients vanish; set "
            "t5lite.train.update = @t5lite.training.Update() and "
            "t5lite.training.Update.loss_scale = @t5lite.training.LossScale()"
        )
    shapes = {name: tuple(shape.shape) for name, shape in batch_shapes.items()}
    check_batch(layout, mesh, shapes)
    rows = next(iter(shapes.values()))[0]
    if rows % update.num_microbatches:
        raise InputError(
            f"batch size {rows} does not divide into Update.num_microbatches = "
            f"{update.num_microbatches}"
        )
    check_batch(
        layout, mesh, {k: (s[0] // update.num_microbatches, *s[1:]) for k, s in shapes.items()}
    )

    min_rows = objective.min_rows
    if rows // update.num_microbatches < min_rows:
        raise InputError(
            f"batch size {rows}, Update.num_microbatches = {update.num_microbatches}: "
            f"{type(objective).__name__} compares the rows of a microbatch with each other and "
            f"needs at least {min_rows}; increase the batch size"
        )

    axes = model.axes()
    optax_optimizer = transformation(optimizer, axes)

    def extra(params: Any) -> dict[str, Any]:
        return update.extra(params) | ({"update_scale": jnp.float32(1)} if update_scale else {})

    def start_from(params: Any, state_key: jax.Array) -> TrainState:
        return initial_state(params, optax_optimizer, rng=state_key, extra=extra(params))

    def init(params_key: jax.Array, state_key: jax.Array) -> TrainState:
        return start_from(model.init(params_key), state_key)

    def keys(seed: int) -> tuple[jax.Array, jax.Array]:
        params_key, state_key = jax.random.split(jax.random.key(seed))
        return params_key, state_key

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, key, key)
    placed = state_shardings(state, axes, layout=layout, mesh=mesh, optimizer=optimizer)
    batch_placed = batch_shardings(layout, mesh, shapes)
    gradient_sharding = shardings(axes, layout.gradients or layout.parameters, mesh)

    placed = placed.replace(opt_state=_kept(placed.opt_state, state.opt_state, layout))
    step = functools.partial(
        _step,
        placed.opt_state if layout.optimizer_memory != "device" else None,
        model=model,
        objective=objective,
        optimizer=optax_optimizer,
        update=update,
        transform=transform,
        constrain_gradients=lambda g: jax.lax.with_sharding_constraint(g, gradient_sharding),
        learning_rate=functools.partial(next_learning_rate, optimizer),
    )
    _check_divides(state, placed)
    # Without the layout's rules, which are the activations' and would first spread parameters so.
    drawn = jax.jit(init, out_shardings=placed)
    started = jax.jit(start_from, out_shardings=placed, donate_argnums=0)

    def with_sharding(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return Program(
        init=lambda seed: drawn(*keys(seed)),
        start_from=lambda params, seed: started(params, keys(seed)[1]),
        extra=jax.jit(extra, out_shardings=placed.extra),
        step=with_layout(
            step,
            layout,
            mesh,
            in_shardings=(placed, batch_placed),
            out_shardings=(placed, None),
            donate_argnums=0,
        ),
        state=jax.tree.map(with_sharding, state, placed),
        batch={name: with_sharding(batch_shapes[name], batch_placed[name]) for name in shapes},
    )


def process_shards(data: Any, layout: Layout, mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Returns the virtual shards of the data whose rows each process's devices hold, by process.

    Args:
      data: gives `batch_size` and `shards_of(rows)`.
      layout: how batches are sharded.
      mesh: over which devices.

    Raises:
      InputError: if a process's rows are not whole shards; the same one in every process.
    """
    rows = process_rows(layout, mesh, data.batch_size)
    return {process: data.shards_of(rows[process].tolist()) for process in rows}


def _kept(opt_placed: Any, opt_state: Any, layout: Layout) -> Any:
    """Returns where an optimizer's state is between steps: its arrays, not its few scalars."""
    if layout.optimizer_memory == "device":
        return opt_placed
    return jax.tree.map(
        lambda sharding, leaf: (
            in_memory(sharding, layout.optimizer_memory) if leaf.ndim else sharding
        ),
        opt_placed,
        opt_state,
    )


def _step(
    opt_placed: Any, state: TrainState, batch: Any, **options: Any
) -> tuple[TrainState, dict[str, Any]]:
    """`train_step`, to which an optimizer's state comes from where it is kept, and goes back."""
    if opt_placed is None:
        return train_step(state, batch, **options)
    near = jax.tree.map(lambda sharding: in_memory(sharding, "device"), opt_placed)
    state = state.replace(opt_state=jax.device_put(state.opt_state, near))
    state, metrics = train_step(state, batch, **options)
    return state.replace(opt_state=jax.device_put(state.opt_state, opt_placed)), metrics


def _check_divides(state: TrainState, placed: TrainState) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(placed), strict=True):
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            sizes = {axis: size for axis, size in sharding.mesh.shape.items() if size > 1}
            raise InputError(
                f"{name} {list(leaf.shape)} does not divide over the mesh {sizes} as "
                f"{tuple(sharding.spec)}; change Layout.mesh or the model's sizes"
            ) from error
