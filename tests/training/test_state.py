"""Every leaf of a state is named, and stands where its layout says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tiny_runs import OBJECTIVE, SPEC, array_data

from t5lite.models import Model, override
from t5lite.optimizers import SGD, Adafactor, AdamW, AdamWScale, FromOptax, Lion
from t5lite.parallel import PARAMETERS, Layout, make_mesh
from t5lite.training import (
    Update,
    build,
    initial_state,
    state_axes,
    state_shardings,
    transformation,
)

MODEL = Model(SPEC)
AXES = MODEL.axes()
OPTIMIZERS = {
    "adafactor": Adafactor(0.1, min_dim_size_to_factor=8),
    "adafactor_momentum": Adafactor(0.1, beta1=0.9, min_dim_size_to_factor=8),
    "adafactor_unfactored": Adafactor(0.1, factored=False),
    "adamw": AdamW(0.1),
    "adamw_scale": AdamWScale(0.1),
    "lion": Lion(0.1),
    "sgd": SGD(0.1),
    "sgd_momentum": SGD(0.1, momentum=0.9),
    "from_optax": FromOptax(optax.adabelief, 0.1),
    "bare_adam": optax.adam(0.1),
    "bare_chain": optax.chain(optax.clip(1.0), optax.trace(0.9), optax.adam(0.1)),
    "bare_adafactor": optax.adafactor(0.1, min_dim_size_to_factor=8),
}
MOMENTS = {  # how many trees of moments there are, each of the parameters' shapes
    "adafactor": 0,
    "adafactor_momentum": 1,
    "adafactor_unfactored": 1,
    "adamw": 2,
    "adamw_scale": 2,
    "lion": 1,
    "sgd": 0,
    "sgd_momentum": 1,
    "from_optax": 2,
    "bare_adam": 2,
    "bare_chain": 3,
    "bare_adafactor": 0,
}


def state_of(optimizer, *, model=MODEL, ema=False):
    """Shapes of a state."""

    def make(key):
        chosen = transformation(optimizer, model.axes(), model.shapes())
        params = model.init(key)
        update = Update(ema_decay=0.9 if ema else None, spike_threshold=6.0)
        return initial_state(params, chosen, rng=key, extra=update.extra(params))

    return jax.eval_shape(make, jax.random.key(0))


def paired(shapes, axes):
    """All leaves with their names, by path; fails if the trees differ."""
    actual = {}
    jax.tree_util.tree_map_with_path(
        lambda path, shape, names: actual.update(
            {jax.tree_util.keystr(path): (shape.shape, names)}
        ),
        shapes,
        axes,
    )
    return actual


# How long each named axis is, where that is the same all over the model.
SIZES = {"vocab": 32, "embed": 16, "mlp": 24, "heads": 8, "kv": 4, "layers": 2, "relpos_buckets": 8}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_leaf_is_named_after_its_axes(name):
    state = state_of(OPTIMIZERS[name], ema=True)
    named = state_axes(state, AXES, OPTIMIZERS[name])
    leaves = paired(state, named)
    for path, (shape, names) in leaves.items():
        assert len(names) in (0, len(shape)), path
        assert all(SIZES[axis] == size for axis, size in zip(names, shape, strict=False)), path
    of_parameters = list(paired(state.params, AXES).values())
    assert all(len(names) == len(shape) for shape, names in of_parameters)
    assert named.extra["ema"] == AXES
    actual = [leaf for leaf in paired(state.opt_state, named.opt_state).values() if leaf[1]]
    # Every tree of moments has all the parameters' names.
    for leaf in of_parameters:
        assert actual.count(leaf) >= MOMENTS[name] * of_parameters.count(leaf)


def test_factored_moments_lose_one_side():
    state = state_of(OPTIMIZERS["adafactor"])
    named = state_axes(state, AXES, OPTIMIZERS["adafactor"]).opt_state
    query = "encoder", "layers", "block_0", "attention", "query", "kernel"
    row, column = named.v_row, named.v_col
    for step in query:
        row, column = row[step], column[step]
    assert row == PartitionSpec("layers", "embed")
    assert column == PartitionSpec("layers", "heads", "kv")


def test_axis_names_are_inferred_from_shapes_only_if_unambiguous():
    # A square matrix of a foreign Adafactor: which side its moments lost cannot be known.
    params = {"square": jnp.zeros((16, 16)), "oblong": jnp.zeros((16, 8)), "scale": jnp.zeros(16)}
    axes = {
        "square": PartitionSpec("embed", "mlp"),
        "oblong": PartitionSpec("embed", "mlp"),
        "scale": PartitionSpec("embed"),
    }
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=8)
    with jax.numpy_dtype_promotion("standard"):
        state = initial_state(params, optimizer, rng=jax.random.key(0))
    moments = state_axes(state, axes, optimizer).opt_state[0]
    assert moments.v_row["square"] == moments.v_col["square"] == PartitionSpec()
    sides = {moments.v_row["oblong"], moments.v_col["oblong"]}
    assert sides == {PartitionSpec("embed"), PartitionSpec("mlp")}
    assert moments.v["oblong"] == PartitionSpec()  # a dummy
    assert moments.v["scale"] == PartitionSpec("embed")
    assert moments.v_row["scale"] == PartitionSpec()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_sharded_like_their_parameters(name):
    optimizer = OPTIMIZERS[name]
    layout = Layout({"fsdp": 2, "tensor": 4})
    mesh = make_mesh(layout)
    state = state_of(optimizer, ema=True)
    placed = state_shardings(state, AXES, layout=layout, mesh=mesh, optimizer=optimizer)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    assert placed.extra["ema"] == placed.params
    assert all(sharding.is_fully_replicated for sharding in placed.extra["spike"].values())
    assert placed.params["token_embedding"]["embedding"].spec == PartitionSpec("tensor", "fsdp")
    by_shape = {
        leaf.shape: sharding
        for leaf, sharding in zip(*map(jax.tree.leaves, (state.params, placed.params)), strict=True)
    }
    whole = [
        (leaf, sharding)
        for leaf, sharding in zip(
            *map(jax.tree.leaves, (state.opt_state, placed.opt_state)), strict=True
        )
        if leaf.shape in by_shape and sharding.spec
    ]
    assert len(whole) >= MOMENTS[name] * len(jax.tree.leaves(state.params))
    for leaf, sharding in whole:
        assert sharding.is_equivalent_to(by_shape[leaf.shape], len(leaf.shape))


def bytes_on_one_device(tree):
    device = jax.devices()[3]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


@pytest.mark.parametrize("name", ["adamw", "adafactor_momentum"])
def test_zero_shards_the_moments_and_not_the_parameters(name):
    replicated = tuple((axis, None) for axis, _ in PARAMETERS)
    layout = Layout({"data": 8}, parameters=replicated, optimizer=by_data(), gradients=by_data())
    program = build(
        MODEL,
        OBJECTIVE,
        OPTIMIZERS[name],
        array_data().batch_shapes(OBJECTIVE),
        layout=layout,
        mesh=make_mesh(layout),
        update=Update(),
    )
    state = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), program.state
    )
    assert bytes_on_one_device(state.params) == sum(x.nbytes for x in jax.tree.leaves(state.params))
    moments = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert moments / 8 <= bytes_on_one_device(state.opt_state) < moments / 7


def by_data():
    return tuple((axis, {"embed": "data", "heads": "data"}.get(axis)) for axis, _ in PARAMETERS)


def test_an_odd_pattern_of_layers_is_named_too():
    blocks = SPEC.encoder.blocks * 2
    spec = SPEC.replace(encoder=SPEC.encoder.replace(num_layers=3, blocks=blocks))
    model = Model(override(spec, {"*.position_bias.per_layer": True}))
    for optimizer in (OPTIMIZERS["adafactor"], OPTIMIZERS["bare_adafactor"]):
        state = state_of(optimizer, model=model)
        named = state_axes(state, model.axes(), optimizer)
        for path, (shape, names) in paired(state, named).items():
            assert all(SIZES[axis] == n for axis, n in zip(names, shape, strict=False)) or (
                "layers" in names and shape[0] == 1
            ), path


def test_the_average_is_a_copy():
    params = {"slope": jnp.ones(3)}
    extra = Update(ema_decay=0.9).extra(params)
    state = initial_state(params, optax.sgd(0.1), rng=jax.random.key(0), extra=extra)
    assert state.extra["ema"]["slope"] is not state.params["slope"]
    donate = jax.jit(lambda state: state, donate_argnums=0)
    donate(state)  # would raise: the same buffer donated twice
