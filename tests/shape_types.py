"""The checker of shapes as types: annotations of jaxtyping are checked at calls, others are not."""

import functools
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jax
import numpy as np
from jaxtyping import AbstractArray


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `fn` with checks of its arguments and result where they are shaped arrays.

    Other annotations are left to mypy; numpy's arrays are arrays, as they are to JAX.
    """
    hints = {name: _shape(hint) for name, hint in fn.__annotations__.items()}
    if all(hint is Any for hint in hints.values()):
        return fn
    fn.__annotations__ = hints
    return beartype.beartype(fn)


def _shape(hint: Any) -> Any:
    """Returns what of an annotation is to be checked."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype[jax.Array | np.ndarray, hint.dim_str]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    shapes = [argument if argument is type(None) else _shape(argument) for argument in arguments]
    if origin in (types.UnionType, typing.Union) and Any not in shapes:
        return functools.reduce(operator.or_, shapes)
    if origin in (tuple, list) and any(shape is not Any for shape in shapes):
        return origin[tuple(shapes)]
    return Any
