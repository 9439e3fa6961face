"""In which dtype gradients are added up, read off the traced step: CPUs compute in another."""

import math

import jax
import jax.numpy as jnp
import pytest

from t5lite.errors import InputError
from t5lite.models import ComputeSpec, Model, override
from t5lite.objectives import MaskedLM
from t5lite.optimizers import SGD
from t5lite.parallel import Layout, make_mesh
from t5lite.training import build

# It has tables of three kinds, biases, norms and tied logits.
SPEC = override(
    "bert_nano",
    {
        "vocab": 64,
        "embed": 16,
        "encoder.num_layers": 1,
        "encoder.blocks.*.attention.num_heads": 2,
        "encoder.blocks.*.attention.head_dim": 8,
        "encoder.blocks.*.mlp.hidden": 32,
    },
)
BATCH, LENGTH = 64, 8


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def traced(mesh, gradient_dtype, dtype="bfloat16"):
    layout = Layout(mesh, gradient_dtype=gradient_dtype)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    names = ("encoder_input_tokens", "encoder_target_tokens", "encoder_segment_ids")
    shapes = dict.fromkeys(names, tokens)
    weights = jax.ShapeDtypeStruct(tokens.shape, jnp.float32)
    program = build(
        Model(SPEC, ComputeSpec(dtype=dtype)),
        MaskedLM(),
        SGD(0.5),
        shapes | {"encoder_loss_weights": weights},
        layout=layout,
        mesh=make_mesh(layout),
    )
    jaxpr = program.step.trace(program.state, program.batch).jaxpr.jaxpr
    return list(equations(jaxpr)), program


def dtypes(actual, *names):
    chosen = [each for each in actual if each.primitive.name in names]
    return [each.outvars[0].aval.dtype.name for each in chosen]


def num_terms(equation):
    """How many numbers one number of the result is the sum of, at most."""
    if equation.primitive.name == "scatter-add":
        return equation.invars[2].aval.size
    shape = equation.invars[0].aval.shape
    return math.prod(shape[axis] for axis in equation.params["axes"])


@pytest.mark.parametrize("gradient_dtype", ["float32", "compute"])
def test_sums_over_rows_are_float32_and_exchanged_in_the_gradient_dtype(gradient_dtype):
    actual, program = traced({"fsdp": 8}, gradient_dtype)
    travels = {"float32": "float32", "compute": "bfloat16"}[gradient_dtype]
    scattered = dtypes(actual, "reduce_scatter")
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(program.state.params)]
    matrices = [path for path in paths if path[-1].key in ("kernel", "embedding")]
    # One for each matrix and table, and one more for the table that the logits share.
    assert len(scattered) == len(matrices) + 1
    assert set(scattered) == {travels}
    # What travels was added up in float32 on each device.
    parts = [each for each in actual if each.primitive.name == "shard_map"]
    local = [each for part in parts for each in equations(part.params["jaxpr"])]
    assert set(dtypes(local, "dot_general", "scatter-add")) == {"float32"}
    # Nothing else adds up more than a few numbers of bfloat16.
    for each in actual:
        if each.primitive.name in ("reduce_sum", "scatter-add"):
            dtype = each.outvars[0].aval.dtype
            assert dtype.itemsize >= 4 or num_terms(each) < 16, each


def test_all_reduced_gradients_are_exchanged_in_the_gradient_dtype_too():
    actual, _ = traced({"data": 8}, "compute")
    sums = dtypes(actual, "psum", "psum_invariant")
    assert "bfloat16" in sums
    assert not dtypes(actual, "reduce_scatter")
    # Otherwise it is left to the compiler, which adds up what it is given.
    actual, _ = traced({"data": 8}, "float32")
    assert not dtypes(actual, "psum", "psum_invariant", "shard_map")


def test_a_gradient_dtype_that_does_not_exist():
    with pytest.raises(InputError, match=r"Layout.gradient_dtype.*'bf16'"):
        Layout(gradient_dtype="bf16")
