"""What is read out of compiled programs: by hand-written ones, and by known ones compiled here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t5lite.parallel import Layout, make_mesh
from t5lite.planning import hlo

LOOP = """
HloModule test

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[], f32[8,128]{1,0}) parameter(0)
  %x = f32[8,128]{1,0} get-tuple-element(%state), index=1
  %work = f32[8,128]{1,0} fusion(%x), calls=%inner, "estimated_cycles":"100"
  %all = f32[8,128]{1,0} all-reduce(%work), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %out = (s32[], f32[8,128]{1,0}) tuple(%i, %all)
}

%condition (state: (s32[], f32[8,128])) -> pred[] {
  %state = (s32[], f32[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8,128]) -> f32[64,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %start = (s32[], f32[8,128]{1,0}) tuple(%zero, %p)
  %loop = (s32[], f32[8,128]{1,0}) while(%start), condition=%condition, body=%body
  %kernel = f32[8,128]{1,0} custom-call(%p), custom_call_target="tpu_custom_call"
  %unknown = f32[8,128]{1,0} fusion(%p), calls=%in, "estimated_cycles":"9223372036854775807"
  ROOT %gathered = f32[64,128]{1,0} all-gather(%p), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}
}
"""


def test_loops_count_as_often_as_they_turn() -> None:
    found = hlo.read(LOOP)
    assert found.cycles == 500  # the absurd number is no estimate
    assert (found.kernels, found.unknown_loops) == (1, 0)
    reduce, gather = found.collectives["all-reduce"], found.collectives["all-gather"]
    assert (reduce.count, gather.count) == (5, 1)
    assert reduce.bytes == 5 * 2 * (3 / 4) * 8 * 128 * 4
    assert gather.bytes == 7 / 8 * 64 * 128 * 4
    assert found.heaviest[0][:2] == (500, 5)


def test_a_kernels_own_lines_do_not_end_its_program() -> None:
    kernel = 'custom_call_target="tpu_custom_call"'
    told = (
        kernel
        + """, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="splash"}"""
    )
    assert kernel in LOOP
    assert hlo.read(LOOP.replace(kernel, told)) == hlo.read(LOOP)


def test_what_goes_between_slices_is_counted_apart() -> None:
    found = hlo.read(LOOP, slice_of=[0, 0, 0, 0, 1, 1, 1, 1])
    assert found.collectives["all-reduce"].slow_bytes == 0
    assert found.collectives["all-gather"].slow_bytes == found.collectives["all-gather"].bytes


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['fsdp'=4] {'fsdp':(2)2}", [[0, 1], [2, 3]]),
        ("nothing of the kind", []),
    ],
)
def test_groups_of_devices_are_read_in_every_form(text: str, groups: list) -> None:
    assert hlo.groups_of(text) == groups


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("bf16[2,3]{1,0:T(8,128)S(1)}", [12.0]),
        ("(f32[4]{0}, s4[8]{0})", [16.0, 4.0]),
        ("pred[]", [1.0]),
        ("f8e4m3fn[16]", [16.0]),
    ],
)
def test_sizes_of_types(text: str, sizes: list[float]) -> None:
    assert list(hlo.sizes_of(text)) == sizes


def test_a_known_program_sends_what_it_must() -> None:
    mesh = make_mesh(Layout(mesh={"fsdp": 8}))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))

    def step(x: jax.Array, weights: jax.Array) -> jax.Array:
        def layer(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), rows), None

        y, _ = jax.lax.scan(layer, x, weights)
        return jnp.sum(y, axis=0)

    shapes = (
        jax.ShapeDtypeStruct((16, 32), np.float32, sharding=rows),
        jax.ShapeDtypeStruct((6, 32, 32), np.float32, sharding=whole),
    )
    compiled = jax.jit(step, out_shardings=whole).lower(*shapes).compile()
    found = hlo.read(compiled.as_text())
    assert set(found.collectives) == {"all-reduce"}
    assert found.collectives["all-reduce"].bytes == 2 * (7 / 8) * 32 * 4
    assert found.unknown_loops == 0
