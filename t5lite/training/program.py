"""A run's compiled functions, built from shapes alone: the same for train, inspect and plan."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from t5lite.errors import InputError
from t5lite.parallel import Layout, batch_sharding, check_batch, shardings, with_layout
from t5lite.training.state import (
    Optimizer,
    TrainState,
    initial_state,
    state_shardings,
    transformation,
)
from t5lite.training.step import Objective, Transform, Update, identity, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """The initialiser and the step of a run, for one mesh.

    Args:
      init: `seed -> TrainState`, drawn straight into its shards.
      step: `(state, batch) -> (state, metrics)`; donates the state; has `.lower(state, batch)`.
      state: shapes of the state, with their shardings.
      batch: shapes of the global batch, with their shardings.
    """

    init: Callable[[int], TrainState]
    step: Callable
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
) -> Program:
    """Builds a run's functions; computes and allocates nothing.

    Args:
      model: pure functions with `init` and `axes`, see `models.Model`.
      objective: gives the loss.
      optimizer: `make(axes)` or an Optax transformation.
      batch_shapes: of the global batch.
      layout: how arrays are sharded.
      mesh: over which devices, see `parallel.make_mesh`.
      update: microbatches, clipping, averaging.
      transform: parameters and frozen ones to what the model gets.

    Raises:
      InputError: if batch or parameters do not divide over the mesh, or the batch into
        microbatches.
    """
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

    axes = model.axes()
    optax_optimizer = transformation(optimizer, axes)
    ema = update.ema_decay is not None

    def init(params_key: jax.Array, state_key: jax.Array) -> TrainState:
        return initial_state(model.init(params_key), optax_optimizer, rng=state_key, ema=ema)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, key, key)
    placed = state_shardings(state, axes, layout=layout, mesh=mesh, optimizer=optimizer)
    rows_sharding = batch_sharding(layout, mesh)
    gradient_sharding = shardings(axes, layout.gradients or layout.parameters, mesh)

    step = functools.partial(
        train_step,
        model=model,
        objective=objective,
        optimizer=optax_optimizer,
        update=update,
        transform=transform,
        constrain_gradients=lambda g: jax.lax.with_sharding_constraint(g, gradient_sharding),
    )
    _check_divides(state, placed)
    # Without the layout's rules, which are the activations' and would first spread parameters so.
    drawn = jax.jit(init, out_shardings=placed)

    def with_sharding(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return Program(
        init=lambda seed: drawn(*jax.random.split(jax.random.key(seed))),
        step=with_layout(
            step,
            layout,
            mesh,
            in_shardings=(placed, rows_sharding),
            out_shardings=(placed, None),
            donate_argnums=0,
        ),
        state=jax.tree.map(with_sharding, state, placed),
        batch={name: with_sharding(shape, rows_sharding) for name, shape in batch_shapes.items()},
    )


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
