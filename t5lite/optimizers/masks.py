"""Which parameters weight decay acts on: the one rule of all optimizers."""

import dataclasses
import re
from typing import Any

import jax

from t5lite.errors import InputError, check_fields
from t5lite.optimizers.matrices import MatrixView, matrix_views


@dataclasses.dataclass(frozen=True)
class DecayMask:
    """Selects the parameters that weight decay acts on: those for which all of these hold.

    By default: matrices, token embeddings included, and neither norm scales, biases (stacked ones
    too) nor relative-bias tables.

    Args:
      include: regular expression that the path must contain (`re.search`); None for any path.
        Paths look like `encoder/layers/block_0/attention/query/kernel`.
      exclude: regular expression that the path must not contain; None for no path.
      matrices_only: only parameters that are matrices, see `matrices.matrix_view`.
    Raises: InputError if an expression is invalid; when called, if `include` matches no parameter.
    """

    include: str | None = None
    exclude: str | None = None
    matrices_only: bool = True

    def __post_init__(self) -> None:
        check_fields(self, matrices_only=bool)
        for field in ("include", "exclude"):
            pattern = getattr(self, field)
            try:
                if pattern is not None:
                    re.compile(pattern)
            except (re.error, TypeError) as error:
                raise InputError(
                    f"DecayMask.{field} = {pattern!r}: not a regular expression ({error})",
                    field=f"DecayMask.{field}",
                ) from error

    def __call__(self, params: Any, axes: Any) -> Any:
        """Returns the tree of `params`, True where decay acts; for `axes` see `matrix_views`."""
        paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        if self.include and not any(re.search(self.include, path) for path in paths):
            raise InputError(
                f"DecayMask.include = {self.include!r}: matches no parameter;"
                f" they look like {', '.join(paths[:3])}",
                field="DecayMask.include",
            )

        def decays(path: tuple, param: Any, view: MatrixView) -> bool:
            del param
            name = _name(path)
            return (
                (view.is_matrix or not self.matrices_only)
                and (self.include is None or re.search(self.include, name) is not None)
                and (self.exclude is None or re.search(self.exclude, name) is None)
            )

        return jax.tree_util.tree_map_with_path(decays, params, matrix_views(params, axes))


MATRICES = DecayMask()
"""The default of every optimizer."""


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
