"""What a policy of rematerialisation saves, for every kernel: counted in the gradient's program."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval

from t5lite.layers import AttentionMask, AttentionSpec, MlpSpec
from t5lite.layers.kernels import cudnn, splash
from t5lite.models.block import Context, TransformerBlockSpec
from t5lite.models.remat import POLICIES

BATCH, LENGTH, EMBED = 2, 512, 128
BLOCK = TransformerBlockSpec(AttentionSpec(2, 64), MlpSpec(EMBED, "silu", gated=True))


@pytest.fixture(scope="module", autouse=True)
def kernels_of_other_platforms():
    """Lets kernels be traced, which no device here could run."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "platform", lambda: "tpu")
        patch.setattr(cudnn, "platform", lambda: "gpu")
        patch.setattr(cudnn, "_compute_capability", lambda: 9.0)
        patch.setattr(fused, "check_cudnn_version", lambda: 91900)
        patch.setattr(fused, "check_compute_capability", lambda *_: True)
        patch.setattr(fused, "is_cuda_compute_capability_equal", lambda *_: False)
        yield


@functools.cache
def work(kernel, policy):
    """How often each primitive is run in the forward and backward pass of a layer."""
    block = BLOCK.make(
        EMBED,
        dtype=jnp.dtype("bfloat16"),
        dropout_rate=0.0,
        causal=True,
        position_bias=None,
        kernel=kernel,
    )
    segments = jnp.ones((BATCH, LENGTH), jnp.int32)
    context = Context(
        mask=AttentionMask.within(segments, causal=True),
        positions=jnp.arange(LENGTH, dtype=jnp.int32)[None],
    )
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, EMBED), jnp.bfloat16)
    variables = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, context), x)

    def layer(variables, x):
        return block.apply(variables, x, context)[0]

    if policy != "none":
        layer = jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=False)

    def loss(variables, x):
        return jnp.sum(layer(variables, x).astype(jnp.float32) ** 2)

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(variables, x).jaxpr
    return count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def count(jaxpr):
    actual = Counter()
    for equation in jaxpr.eqns:
        actual[equation.primitive.name] += 1
        if equation.primitive.name == "pallas_call":
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    actual += count(inner)
    return actual


# What of attention only its forward pass runs, and how many of its products are computed again:
# where it is saved, and where not.
KERNELS = {
    "dot": ("reduce_max", 1, 2),
    "rows": ("reduce_max", 0, 2),
    "chunked": ("reduce_max", 0, 2),
    "splash": ("pallas_call", 0, 0),
    "cudnn": (cudnn.FORWARD, 0, 0),
}
# Whether attention's forward pass is saved, and how many of the layer's seven projections (query,
# key, value, output, gate, up, down) are computed again; the last one never need be.
PROMISED = {
    "none": (True, 0),
    "save_attended": (True, 0),
    "minimal": (False, 0),
    "save_qkv": (False, 3),
    "save_out": (False, 5),
    "save_gathered": (True, 6),
    "save_gathered_attention": (True, 6),
    "save_attention": (True, 6),
    "full": (False, 6),
    "offload": (False, 0),
}


def test_every_policy_is_in_the_table():
    assert {*PROMISED, "save_dots"} == set(POLICIES)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("policy", [name for name in PROMISED if name != "none"])
@pytest.mark.light("save_attended", "full", "cudnn")
def test_a_policy_saves_its_activations_with_every_kernel(kernel, policy):
    saved, num_projections = PROMISED[policy]
    forward, again_if_saved, again = KERNELS[kernel]
    actual, everything = work(kernel, policy), work(kernel, "none")
    assert actual[forward] - everything[forward] == (0 if saved else 1)
    products = actual["dot_general"] - everything["dot_general"]
    assert products == num_projections + (again_if_saved if saved else again)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_product_is_computed_again_that_is_to_be_saved(kernel):
    actual, everything = work(kernel, "save_dots"), work(kernel, "none")
    forward, *_ = KERNELS[kernel]
    for primitive in ("dot_general", forward):
        assert actual[primitive] <= everything[primitive]
