"""Numbers that are NaN or infinite: where they come from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5lite.errors import InputError


class Source(NamedTuple):
    """Parameters, their model and its folder."""

    params: Any
    model: Any
    folder: Any = "the model"


def not_finite(loaded: Any, what: str) -> InputError:
    """Returns the error of a model whose numbers are NaN or infinite, naming a parameter if it is
    at fault.

    Args:
      loaded: the model: a `Loaded` or a `Source`.
      what: the numbers, such as "the logits".
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return InputError(
                f"{what} are NaN or infinite: so is the parameter {name} of {loaded.folder}; load "
                "an earlier checkpoint, or convert the model again"
            )
    dtype = loaded.model.compute.dtype
    fix = "" if dtype == "float32" else "; load(..., compute=ComputeSpec(dtype='float32'))"
    return InputError(
        f"{what} are NaN or infinite, though all parameters are finite: activations overflow in "
        f"{dtype}{fix}"
    )
