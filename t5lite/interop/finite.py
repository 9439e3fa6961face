"""Checks for parameters that are NaN or infinite, or become so in another dtype."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from t5lite.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")
_CHUNK = 1 << 20
# Types that NumPy is slow with: a view as integers, and the exponent bits of infinities and NaN.
_BITS = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
}
# Families whose feed-forward outputs exceed float16 in released checkpoints; transformers keeps
# their last layer in float32 (`_keep_in_fp32_modules`).
_WIDE_FAMILIES = ("t5", "mt5", "umt5", "switch_transformers")
_WIDE_PATH = "/mlp/down/kernel"


def stays_float32(family: str, path: str, dtype: Any) -> bool:
    """Whether a parameter stays float32 where the others become float16."""
    wide = family in _WIDE_FAMILIES and path.endswith(_WIDE_PATH)
    return wide and dtype is not None and jnp.dtype(dtype) == jnp.float16


def check_dtype(dtype: Any) -> None:
    """Raises an InputError unless parameters may have a dtype, or None."""
    try:
        allowed = dtype is None or jnp.dtype(dtype).name in DTYPES
    except TypeError:
        allowed = False
    if not allowed:
        raise InputError(
            f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}, or None", field="dtype"
        )


def check_compute(family: str, dtype: str) -> None:
    """Raises an InputError if a family's activations exceed a dtype's range."""
    if dtype == "float16" and family in _WIDE_FAMILIES:
        raise InputError(
            f"compute.dtype = {dtype!r}: activations of {family!r} models exceed its largest "
            "number, 65,504, and become NaN; set ComputeSpec(dtype='bfloat16')",
            field="compute",
        )


def is_finite(array: np.ndarray) -> bool:
    array = array.reshape(-1)
    view, bits = _BITS.get(array.dtype, (None, 0))
    if view is None and array.dtype.kind != "f":
        return True
    for start in range(0, array.size, _CHUNK):
        chunk = array[start : start + _CHUNK]
        if view is None:
            if not np.isfinite(chunk).all():
                return False
        elif (chunk.view(view) & 0x7FFF).max() >= bits:
            return False
    return True


def leaf_is_finite(leaf: Any) -> bool:
    """Whether the shards of an array that this process holds are finite."""
    if not isinstance(leaf, jax.Array):
        return is_finite(np.asarray(leaf))
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return True
    for shard in leaf.addressable_shards:
        if shard.replica_id:
            continue
        if shard.device.platform == "cpu":
            if not is_finite(np.asarray(shard.data)):
                return False
        elif not bool(jnp.isfinite(shard.data).all()):
            return False
    return True


def fault(
    tensors: Iterable[tuple[str, np.ndarray]], dtype: Any, *, checkpoint: str
) -> InputError | None:
    """Returns the error for a parameter that is not finite; None if it is.

    Args:
      tensors: names and stored values of the parameter's tensors.
      dtype: of the parameter.
    """
    kind = jnp.dtype(dtype)
    for name, stored in tensors:
        tensor = f"{name} of {checkpoint}"
        values = np.asarray(stored, np.promote_types(stored.dtype, np.float32))
        bad = ~np.isfinite(values)
        if bad.any():
            first = [int(axis) for axis in np.argwhere(bad)[0]]
            return InputError(
                f"{tensor} has {int(bad.sum()):,} of {bad.size:,} numbers that are NaN or "
                f"infinite, the first at {first}: the run that wrote it diverged, or the file is "
                "damaged; take an earlier checkpoint, or copy it again"
            )
        largest, most = float(np.abs(values).max(initial=0.0)), float(jnp.finfo(kind).max)
        with np.errstate(over="ignore"):
            if not is_finite(values.astype(kind)):
                wider = "bfloat16 or float32" if kind == jnp.float16 else "float32"
                return InputError(
                    f"dtype = {kind.name!r}: {tensor} has numbers up to {largest:,.6g}, beyond its "
                    f"largest, {most:,.6g}; choose {wider}",
                    field="dtype",
                )
    return None
