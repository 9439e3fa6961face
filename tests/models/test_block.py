"""Where a block has its norms and sums, against its sublayers put together by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox

from t5lite.layers import AttentionMask, AttentionSpec, MlpSpec, RMSNormSpec
from t5lite.models import TransformerBlockSpec
from t5lite.models.block import Context

EMBED, LENGTH = 8, 5
NORM, FLOAT32 = RMSNormSpec(0.1), jnp.dtype("float32")
PLAIN = TransformerBlockSpec(AttentionSpec(2, 4), MlpSpec(6), norm=NORM)
CROSSED = PLAIN.replace(cross_attention=AttentionSpec(2, 4, logits_softcap=1.0))
MASK = AttentionMask.within(jnp.ones((1, LENGTH), jnp.int32), causal=True)
RNG = np.random.default_rng(0)
X, ENCODED = (
    jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for shape in ((2, LENGTH, EMBED), (2, 3, 12))
)
CONTEXT = Context(mask=MASK, positions=jnp.arange(LENGTH, dtype=jnp.int32)[None], encoded=ENCODED)


def by_hand(spec, params, x):
    """The block's formula in its docstring, of sublayers and norms by name."""

    def norm(name, x):
        return NORM.make(FLOAT32).apply({"params": params[f"{name}_norm"]}, x)

    def attend(name, x):
        own = getattr(spec, name).make(EMBED, dtype=FLOAT32, dropout_rate=0.0)
        mask, read = (MASK, x) if name == "attention" else (None, ENCODED)
        return own.apply(
            {"params": params[name]},
            x,
            read,
            method=lambda m, x, y: m(x, m.key_values(y), mask=mask),
        )

    def sublayer(name, x):
        if name != "mlp":
            return attend(name, x)
        mlp = spec.mlp.make(EMBED, dtype=FLOAT32, dropout_rate=0.0)
        return mlp.apply({"params": params["mlp"]}, x)

    if spec.parallel:
        attended = sublayer("attention", norm("attention", x))
        return x + attended + sublayer("mlp", norm("mlp", x))
    for name in ("attention", "cross_attention", "mlp"):
        if getattr(spec, name) is None:
            continue
        if spec.norm_placement == "after":
            x = norm(name, x + sublayer(name, x))
        elif spec.norm_placement == "around":
            x = x + norm(f"{name}_output", sublayer(name, norm(name, x)))
        elif name == "attention" and not spec.attention_norm:
            x = x + sublayer(name, x)
        else:
            x = x + sublayer(name, norm(name, x))
    return x


@pytest.mark.parametrize(
    "spec",
    [
        CROSSED,
        CROSSED.replace(norm_placement="after"),
        CROSSED.replace(norm_placement="around"),
        PLAIN.replace(attention_norm=False),
        PLAIN.replace(parallel=True),
    ],
    ids=["before", "after", "around", "no_attention_norm", "parallel"],
)
def test_norms_and_sums_are_where_the_spec_has_them(spec):
    block = spec.make(
        EMBED,
        dtype=FLOAT32,
        dropout_rate=0.0,
        causal=True,
        position_bias=None,
        kernel="dot",
    )
    shapes = unbox(jax.eval_shape(block.init, jax.random.key(0), X, CONTEXT))["params"]
    params = jax.tree.map(
        lambda leaf: jnp.asarray(RNG.standard_normal(leaf.shape), jnp.float32), shapes
    )
    actual, cached = jax.jit(lambda params: block.apply({"params": params}, X, CONTEXT))(params)
    assert cached is None
    expected = jax.jit(lambda params: by_hand(spec, params, X))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
