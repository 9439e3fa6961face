"""Host rows become global arrays, and functions know the layout they run under."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from t5lite.errors import InputError
from t5lite.parallel import (
    MESH_AXES,
    Layout,
    batch_shardings,
    check_batch,
    make_mesh,
    process_rows,
    to_devices,
    with_layout,
)

LAYOUT = Layout({"data": 2, "fsdp": 2, "seq": 2})


AXES = dict.fromkeys(("tokens", "others"), ("batch", "length")) | dict.fromkeys(
    ("labels", "label_weights", "span_starts"), ("batch",)
)


def test_every_device_gets_its_rows_and_columns():
    mesh = make_mesh(LAYOUT)
    rows = np.arange(8 * 6, dtype=np.int32).reshape(8, 6)
    placed = batch_shardings(LAYOUT, mesh, AXES, ["tokens"])
    (name, array), *none = to_devices({"tokens": rows}, placed, num_rows=8).items()
    assert (name, none) == ("tokens", [])
    np.testing.assert_array_equal(np.asarray(array), rows)
    for shard in array.addressable_shards:
        assert shard.data.shape == (2, 3)
        np.testing.assert_array_equal(np.asarray(shard.data), rows[shard.index])
    assert len({str(shard.index) for shard in array.addressable_shards}) == 8


def test_per_row_arrays_are_sharded_by_rows_alone():
    mesh = make_mesh(LAYOUT)
    rows = {
        "labels": np.arange(8 * 3, dtype=np.float32).reshape(8, 3),  # 3 does not divide over seq
        "label_weights": np.arange(8, dtype=np.float32),
        "span_starts": np.arange(8, dtype=np.int32),
    }
    shapes = {name: array.shape for name, array in rows.items()}
    check_batch(LAYOUT, mesh, shapes, AXES)
    arrays = to_devices(rows, batch_shardings(LAYOUT, mesh, AXES, shapes), num_rows=8)
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(array), rows[name])
        for shard in array.addressable_shards:
            assert shard.data.shape == (2, *shapes[name][1:])
    with pytest.raises(InputError, match="batch size 6 of span_starts"):
        check_batch(LAYOUT, mesh, {"span_starts": (6,)}, AXES)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 4), r"batch size 6 of tokens .* 4 devices \(mesh axes data, fsdp, expert\)"),
        ((8, 5), r"length size 5 of tokens .* 2 devices \(mesh axes seq\)"),
    ],
)
def test_batches_that_do_not_divide(shape, message):
    with pytest.raises(InputError, match=message):
        check_batch(LAYOUT, make_mesh(LAYOUT), {"tokens": shape}, AXES)


def test_batches_that_divide():
    check_batch(LAYOUT, make_mesh(LAYOUT), {"tokens": (4, 2), "others": (8, 6)}, AXES)
    alone = Layout()
    check_batch(alone, make_mesh(alone, jax.devices()[:1]), {"tokens": (7, 5)}, AXES)


def double(x):
    return nn.with_logical_constraint(x * 2, ("batch", "length", "embed"))


def test_names_inside_a_function_mean_the_layout():
    mesh = make_mesh(LAYOUT)
    y = with_layout(double, LAYOUT, mesh)(jnp.ones((8, 4, 3)))
    expected = jax.sharding.NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "seq"))
    assert y.sharding.is_equivalent_to(expected, 3)
    np.testing.assert_array_equal(np.asarray(y), 2)
    # Outside, they mean nothing.
    assert len(jax.jit(double)(jnp.ones((8, 4, 3))).sharding.device_set) == 1


def test_lowering_needs_only_shapes():
    fn = with_layout(double, LAYOUT, make_mesh(LAYOUT))
    lowered = fn.lower(jax.ShapeDtypeStruct((8, 4, 3), jnp.float32))
    assert lowered.out_info.shape == (8, 4, 3)


def test_options_reach_the_compiler():
    fast = Layout({"data": 8}, compiler_options={"cpu": {"xla_no_such_option": True}})
    with pytest.raises(Exception, match="xla_no_such_option"):
        with_layout(double, fast, make_mesh(fast))(jnp.ones((8, 4, 3)))


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def test_rows_of_processes_follow_the_mesh_and_may_be_shared():
    """A v5e:4x4's own order, on which pairs of devices share their rows."""
    order = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
    devices = np.empty(16, object)
    for at, process in enumerate(order):
        devices[at] = Device(at, process)
    layout = Layout({"fsdp": 8, "tensor": 2})
    rows = process_rows(layout, Mesh(devices.reshape(1, 8, 1, 2, 1), MESH_AXES), 8)
    actual = {process: each.tolist() for process, each in rows.items()}
    assert actual == {0: [0, 3, 7], 1: [1, 2], 2: [3, 6, 7], 3: [4, 5]}
