"""Hugging Face folders, both ways: `config.json`, `model.safetensors`, tokenizer files."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from t5lite.data import Vocabulary
from t5lite.interop.huggingface.families import MODULES
from t5lite.interop.huggingface.folder import describe, is_folder, open_model, save
from t5lite.interop.loaded import Loaded, place
from t5lite.models import ComputeSpec
from t5lite.parallel import Layout

__all__ = ["MODULES", "describe", "is_folder", "load", "open_model", "save"]


def load(
    folder: str | os.PathLike,
    *,
    compute: ComputeSpec = ComputeSpec(),
    layout: Layout | None = None,
    devices: Sequence[jax.Device] | None = None,
    dtype: Any = None,
    vocabulary: Vocabulary | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Opens a Hugging Face folder; `t5lite.load` does the same, and says what the arguments are.

    Raises:
      InputError: see `open_model`; or tensors that do not fit the config, all of them by name.
    """
    found = open_model(folder, vocabulary=vocabulary)
    return place(
        found, compute=compute, layout=layout, devices=devices, dtype=dtype, progress=progress
    )
