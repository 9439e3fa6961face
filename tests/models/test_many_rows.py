"""Sums over a batch do not saturate: in bfloat16, equal rows have that many times one's gradient.

Added up in bfloat16, whose numbers above 256 are two apart, many equal terms end at 256 of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from varied_models import VARIED

from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    RelativeBiasSpec,
)
from t5lite.models import ComputeSpec, Model, ModelSpec, StackSpec, TransformerBlockSpec

FEW, MANY, LENGTH = 8, 4096, 3
# Every kind of parameter that rows share: tables, positions both ways, types and biases.
SHARED = ModelSpec(
    family="bert",
    vocab=16,
    embed=8,
    encoder=StackSpec(
        1,
        (
            TransformerBlockSpec(
                AttentionSpec(2, 4, use_bias=True),
                MlpSpec(8, use_bias=True),
                norm=LayerNormSpec(),
            ),
        ),
        causal=False,
        position_embedding=LearnedPositionsSpec(LENGTH),
        position_bias=RelativeBiasSpec(4, 8),
        embedding_norm=LayerNormSpec(),
    ),
    heads=(MaskedLMHeadSpec(),),
    num_token_types=2,
)


def check(spec, *, kernel="dot", packed=False):
    model = Model(spec, ComputeSpec(dtype="bfloat16", attention=kernel))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), model.shapes())
    row = np.array([[3, 5, 3]], np.int32)
    batch = {f"{side}_input_tokens": row for side in spec.topology.split("_")}
    if packed:
        batch["encoder_segment_ids"] = np.array([[1, 1, 2]], np.int32)
    batch = {name: np.repeat(tokens, MANY, axis=0) for name, tokens in batch.items()}

    @jax.jit
    @jax.grad
    def gradients(params, num_rows):
        logits = model.logits(params, model.hidden(params, batch)[0])
        mixed = jax.random.normal(jax.random.key(1), (1, *logits.shape[1:]))
        counts = (jnp.arange(MANY) < num_rows)[:, None, None]
        return jnp.sum(jnp.where(counts, jnp.broadcast_to(mixed, logits.shape) * logits, 0.0))

    def compare(path, few, large):
        few, large = few / FEW, large / MANY
        largest = np.abs(few).max()
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(large, few, rtol=0, atol=1e-3 * largest, err_msg=name)

    few, large = jax.device_get((gradients(params, FEW), gradients(params, MANY)))
    jax.tree_util.tree_map_with_path(compare, few, large)


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gradients_of_all_that_rows_share(packed):
    check(SHARED, packed=packed)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("kernel", ["dot", "rows"])
def test_gradients_of_every_kind_of_layer(name, kernel):
    check(VARIED[name], kernel=kernel)
