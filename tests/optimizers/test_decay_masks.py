import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from t5lite.errors import InputError
from t5lite.optimizers import DecayMask

AXES = {
    "token_embedding": {"embedding": P("vocab", "embed")},
    "encoder": {
        "position_bias": {"embedding": P("heads", "relpos_buckets")},
        "layers": {
            "query": {"kernel": P("layers", "embed", "heads", "kv")},
            "bias": P("layers", "heads", "kv"),
            "norm": {"scale": P("layers", "embed")},
        },
        "final_norm": {"scale": P("embed")},
    },
}
PARAMS = jax.tree.map(lambda names: jnp.ones((2,) * len(names)), AXES)


def decayed(mask, axes=AXES):
    flat, _ = jax.tree_util.tree_flatten_with_path(mask(PARAMS, axes))
    assert all(isinstance(value, bool) for _, value in flat)
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, value in flat if value}


def test_matrices_are_decayed_and_scales_biases_and_bias_tables_are_not():
    assert decayed(DecayMask()) == {"token_embedding/embedding", "encoder/layers/query/kernel"}


def test_paths_narrow_the_choice():
    assert decayed(DecayMask(exclude="^token_embedding")) == {"encoder/layers/query/kernel"}
    assert decayed(DecayMask(include="embedding")) == {"token_embedding/embedding"}
    assert decayed(DecayMask(include="embedding", matrices_only=False)) == {
        "token_embedding/embedding",
        "encoder/position_bias/embedding",
    }


def test_everything_can_be_decayed():
    assert len(decayed(DecayMask(matrices_only=False))) == len(jax.tree.leaves(PARAMS))


def test_without_names_only_two_axes_make_a_matrix():
    assert "encoder/layers/norm/scale" in decayed(DecayMask(), axes=None)
    assert "encoder/final_norm/scale" not in decayed(DecayMask(), axes=None)


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"DecayMask.exclude = '\('"):
        DecayMask(exclude="(")
    with pytest.raises(InputError, match="include = 3"):
        DecayMask(include=3)
    with pytest.raises(InputError, match="matrices_only = 'yes'"):
        DecayMask(matrices_only="yes")
    with pytest.raises(InputError, match="matches no parameter"):
        DecayMask(include="kernal")(PARAMS, AXES)
