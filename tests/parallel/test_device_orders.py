"""Batches reach the processes of real slices, whose meshes follow the links between chips.

A CPU's devices come in the order of the processes; a slice's do not: in a v5e:4x4 it is 0, 0, 1, 1,
1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0.
"""

import dataclasses
import functools
import importlib.util
import math

import numpy as np
import pytest
from test_layouts import PROMISED, layout_of

from t5lite.data import ArrayData
from t5lite.parallel import Layout, batch_shardings, make_mesh, process_rows
from t5lite.planning import KINDS, Slice
from t5lite.training import process_shards

SLICES = [
    on
    for kind in ("v4", "v5e", "v5p", "v6e")
    for shape in KINDS[kind].shapes
    for num_slices in (1, 2)
    if (on := Slice.parse(f"{kind}:{shape}", num_slices=num_slices)).num_chips <= 256 * num_slices
]


def check_rows(layout, mesh):
    """Each process makes the rows that its devices hold, and JAX finds them among these."""
    num_parts = math.prod(mesh.shape[axis] for axis in ("data", "fsdp", "expert"))
    data = ArrayData([], lengths={}, batch_size=2 * num_parts)
    shape = (data.batch_size, 16 * mesh.shape["seq"])
    rows = process_rows(layout, mesh, data.batch_size)
    shards = process_shards(data, layout, mesh)
    size = data.batch_size // len(set().union(*shards.values()))
    assert set().union(*map(set, rows.values())) == set(range(data.batch_size))
    if mesh.shape["seq"] == mesh.shape["tensor"] == 1:
        assert sum(map(len, rows.values())) == data.batch_size
    of_process = {}
    (sharding,) = batch_shardings(
        layout, mesh, {"tokens": ("batch", "length")}, ["tokens"]
    ).values()
    for device, (held, _) in sharding.devices_indices_map(shape).items():
        start, stop, _ = held.indices(data.batch_size)
        of_process.setdefault(device.process_index, set()).add((start, stop))
    for process, parts in of_process.items():
        global_rows = np.concatenate([shard * size + np.arange(size) for shard in shards[process]])
        np.testing.assert_array_equal(global_rows, rows[process])
        # As `jax.make_array_from_process_local_data` does: parts in the order of their rows.
        parts = sorted(parts)
        np.testing.assert_array_equal(
            global_rows, np.concatenate([np.arange(*part) for part in parts])
        )


# Axes longer than a host's four or eight chips.
WIDE = {
    "tensor over hosts": Layout({"fsdp": -1, "tensor": 16}),
    "sequence over hosts": Layout({"data": -1, "seq": 8, "tensor": 2}),
}


@functools.cache
def devices_of(on):
    return on.devices()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("fragment", [*PROMISED, *WIDE])
def test_every_process_of_a_slice_can_make_the_rows_that_its_devices_hold(fragment):
    layout = WIDE[fragment] if fragment in WIDE else layout_of(fragment)
    num_checked = num_scattered = 0
    axis = next(iter(layout.mesh))
    for on in SLICES:
        slices = {axis: on.num_slices} if on.num_slices > 1 else None
        if fragment == "multislice" and on.num_slices != layout.slices["data"]:
            continue
        fitting = dataclasses.replace(layout, slices=slices)
        devices = devices_of(on)
        if len(devices) // on.num_slices % math.prod(s for s in layout.mesh.values() if s > 0):
            continue
        assert len(devices) == on.num_chips
        mesh = make_mesh(fitting, devices)
        check_rows(fitting, mesh)
        order = [device.process_index for device in mesh.devices.flat]
        num_scattered += order != sorted(order)
        num_checked += 1
    assert num_checked >= 20
    assert num_scattered >= 10  # or this shows nothing
