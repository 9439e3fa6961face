"""Whole checkpoints of T5X's: the model, its parameters and Adafactor's state, read and written."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from t5lite.errors import InputError
from t5lite.interop.t5x.architecture import Form, infer_form
from t5lite.interop.t5x.files import open_checkpoint
from t5lite.interop.t5x.moments import MOMENTS, saved, wanted
from t5lite.interop.t5x.names import tensors
from t5lite.interop.t5x.writing import write_checkpoint
from t5lite.interop.tensors import read_params, tensors_from
from t5lite.models import Model, ModelSpec
from t5lite.optimizers import Adafactor, AdafactorState


def load_adafactor(
    folder: epath.PathLike,
    spec: ModelSpec,
    optimizer: Adafactor,
    *,
    like: AdafactorState | None = None,
) -> AdafactorState:
    """Reads Adafactor's state from a T5X checkpoint.

    Moments that T5X holds whole and `optimizer` factors are averaged, which is exact: a mean of
    running averages is the running average of the means.

    Args:
      folder: as for `open_model`.
      spec: the model.
      optimizer: which moments are wanted: what it factors, and whether there is momentum.
      like: its state as `jax.ShapeDtypeStruct`s with shardings; None for NumPy.

    Raises:
      InputError: if there is no such state, or it is factored where `optimizer` does not, or
        without the momentum that it wants.
      CheckpointError: if it is damaged.
    """
    source, model = open_checkpoint(folder), Model(spec)
    where, axes, form = str(source.folder), model.axes(), infer_form(source.tensors())
    if like is None:
        like = jax.eval_shape(optimizer(axes, model.shapes()).init, model.shapes())
    assert like is not None
    means, state_tensors = wanted(source, spec, like, axes=axes, form=form, where=where)
    tree = {kind: getattr(like, kind) for kind in MOMENTS}
    moments = read_params(tree, means, state_tensors, where=where)
    count: Any = np.asarray(source.step, like.count.dtype)
    if getattr(like.count, "sharding", None) is not None:
        count = jax.device_put(count, like.count.sharding)
    return AdafactorState(count, **moments)


def save(
    folder: epath.PathLike,
    spec: ModelSpec,
    params: Any,
    *,
    step: int = 0,
    scanned: bool = False,
    joined: bool | None = None,
    adafactor: AdafactorState | None = None,
) -> epath.Path:
    """Writes a checkpoint in the layout that T5X releases, whole or not at all.

    T5X must be configured to the same activation, dropout and relative buckets: no checkpoint of
    its says them. Without `adafactor` it can be decoded with, evaluated and fine-tuned from.

    Args:
      folder: in which `checkpoint_N` is made; made too if need be.
      spec: the model.
      params: its parameters; their dtypes stay.
      step: N, updates done.
      scanned: for T5X's `scalable_t5`, which scans layers, rather than for `t5`; see `Form`.
      joined: see `Form`; None as these two have it: where the layers are not scanned.
      adafactor: its state; None for none.

    Returns:
      The folder `checkpoint_N`.

    Raises:
      InputError: if T5X has no such model (with the reason), the parameters are sharded over
        several processes, or the folder exists.
      CheckpointError: if it cannot be written.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise InputError(f"step = {step!r}: must be a whole number, at least 0", field="step")
    form = Form(scanned, not scanned if joined is None else joined)
    target = tensors(spec, scanned=form.scanned, joined=form.joined)
    if adafactor is not None and int(adafactor.count) != step:
        raise InputError(
            f"step = {step}, but the state of Adafactor has done {int(adafactor.count)} updates: "
            "T5X has one number for both",
            field="step",
        )
    made = tensors_from(params, target)

    def arrays() -> Iterator[tuple[str, np.ndarray, bool]]:
        for name, _, make in made:
            yield name, make(), True
        yield "state.step", np.asarray(step, np.int32), False
        if adafactor is not None:
            yield from saved(spec, adafactor, form=form)

    return write_checkpoint(folder, arrays(), step=step)
