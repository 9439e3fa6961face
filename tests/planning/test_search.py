"""Slices by name, and which variations of a run are worth compiling."""

import pytest

from t5lite.data import ArrayData
from t5lite.errors import InputError
from t5lite.models import Model, override
from t5lite.models.remat import POLICIES
from t5lite.objectives import Seq2Seq
from t5lite.optimizers import AdamW
from t5lite.parallel import Layout
from t5lite.planning import KINDS, Slice, Variation, abstract, candidates, device_bytes, meshes
from t5lite.planning.search import RECOMPUTED, least_bytes
from t5lite.training import build


def test_a_slice_has_its_chips() -> None:
    assert Slice.parse("v5e:4x4").num_chips == 16
    assert Slice.parse("v5p:2x2x4", num_slices=3).num_chips == 48
    assert Slice.parse("v5p:2x2x4", num_slices=3).name == "3 × v5p:2x2x4"


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("v5x:4x4", 1, "unknown TPU 'v5x'; known: tpu7x, v4"),
        ("9:4x4", 1, "known: tpu7x, v4, v5e, v5p, v6e"),
        ("v5e:5x5", 1, "no such slice; of v5e there are 1x1, 2x2, 2x4, 4x4"),
        ("v5e", 1, "no such slice"),
        ("v5e:4x4", 0, "--num_slices=0: must be at least 1"),
    ],
)
def test_what_is_no_slice_is_refused(name: str, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Slice.parse(name, num_slices=count)


def test_what_is_known_of_chips_is_of_a_plausible_size() -> None:
    for kind in KINDS.values():
        assert 1e14 < kind.flops < 1e16
        assert 1e10 <= kind.link_bandwidth <= 1e11
        assert 2**34 <= kind.hbm <= 2**38


def test_meshes_multiply_to_the_devices_and_keep_what_is_kept() -> None:
    found = [dict(mesh) for mesh in meshes(16, fixed={"expert": 2}, slices={"data": 2})]
    assert {"data": 2, "fsdp": 4, "expert": 2} in found
    for mesh in found:
        assert mesh["expert"] == 2
        assert mesh.get("data", 1) % 2 == 0
        product = 1
        for size in mesh.values():
            product *= size
        assert product == 16
    assert len({tuple(mesh.items()) for mesh in found}) == len(found)


def test_variations_know_which_of_two_needs_less() -> None:
    mesh = (("fsdp", 4),)
    none, full = Variation(mesh, "none", 1), Variation(mesh, "full", 2)
    assert full.needs_no_more_than(none)
    assert not none.needs_no_more_than(full)
    assert not Variation((("data", 4),), "full", 2).needs_no_more_than(none)
    assert set(RECOMPUTED) <= set(POLICIES)


def test_a_search_leaves_out_what_cannot_fit_and_takes_promising_ones_first() -> None:
    on = Slice.parse("v5e:2x2")
    objective = Seq2Seq()
    data = ArrayData([], lengths={"inputs": 32, "targets": 8}, batch_size=64)

    def program(spec_name: str):
        model = Model(override(spec_name, {"*.dropout_rate": 0.0}))

        def made(mesh: tuple):
            return build(
                model,
                objective,
                AdamW(learning_rate=1e-3),
                data.batch_shapes(objective),
                layout=Layout(mesh=dict(mesh)),
                mesh=abstract(mesh),
            )

        return made

    all_meshes = list(meshes(4, fixed={}, slices={}))
    order, cannot = candidates(program("t5_1_1_nano"), all_meshes, on=on, stream=1e6, flops=1e12)
    assert cannot == 0
    assert order[0].num_microbatches == 1
    assert order[0].remat == "none"
    # 11 billion parameters and twice that of moments: no four chips hold them.
    order, cannot = candidates(program("t5_1_1_xxl"), all_meshes, on=on, stream=1e6, flops=1e12)
    assert order == []
    assert cannot > 0
    # Cut in four, the smallest needs a quarter of the state, and its share of the stream.
    small = program("t5_1_1_nano")((("fsdp", 4),))
    bytes_ = least_bytes(small, stream=8e6, num_microbatches=2)
    assert bytes_ == device_bytes(small.state) + device_bytes(small.state.params) + 1e6
