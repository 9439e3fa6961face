import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5lite.errors import InputError
from t5lite.optimizers.matrices import matrix_view, matrix_views, rms


@pytest.mark.parametrize(
    ("names", "rows", "columns"),
    [
        (P("vocab", "embed"), (0,), (1,)),
        (P("embed", "heads", "kv"), (0,), (1, 2)),
        (P("heads", "kv", "embed"), (0, 1), (2,)),
        (P("layers", "heads", "kv", "embed"), (1, 2), (3,)),
        (P("layers", "embed", "joined_kv"), (1,), (2,)),
        (P("layers", "experts", "embed", "mlp"), (2,), (3,)),
        (P("embed", "stack", "mlp"), (0,), (2,)),
        (P("embed", "embed"), (0,), (1,)),
        (P("heads", "heads"), (0,), (1,)),
        (P("embed", None, "mlp"), (0,), (1, 2)),
        (P(), (), ()),
        (P("embed"), (), ()),
        (P("heads", "kv"), (), ()),
        (P("layers", "heads", "kv"), (), ()),
        (P("layers", "embed"), (), ()),
        (P("heads", "relpos_buckets"), (), ()),
        (P("layers", "heads", "relpos_buckets"), (), ()),
        (P("width", "height", "mlp"), (), ()),
        (P("width", "embed", "embed"), (), ()),
    ],
)
def test_rows_and_columns(names, rows, columns):
    view = matrix_view(names, (2,) * len(names))
    assert (view.rows, view.columns) == (rows, columns)
    assert view.is_matrix == bool(rows)
    stacked = {i for i, name in enumerate(names) if name in ("layers", "stack", "experts")}
    assert view.inner == tuple(i for i in range(len(names)) if i not in stacked)


def test_axes_without_a_name_are_their_own_dimension():
    assert matrix_view(P(), (3, 4)) == matrix_view(P("a", "b"), (3, 4))
    assert not matrix_view(P("layers"), (3, 4)).is_matrix
    views = matrix_views({"w": jnp.ones((3, 4)), "b": jnp.ones(3)}, None)
    assert views["w"].is_matrix
    assert not views["b"].is_matrix


def test_more_names_than_axes_is_an_input_error():
    with pytest.raises(InputError, match="more names"):
        matrix_view(P("embed", "mlp"), (3,))


def test_rms_is_computed_per_layer():
    x = jnp.stack([jnp.full((2, 3), 2.0), jnp.full((2, 3), 5.0)])
    measured = rms(x, matrix_view(P("layers", "embed", "mlp"), x.shape))
    np.testing.assert_allclose(measured, np.array([2.0, 5.0]).reshape(2, 1, 1), rtol=1e-6)
