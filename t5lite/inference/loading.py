"""Opens a trained model: `t5lite.load`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from t5lite.data import Vocabulary
from t5lite.inference.engine import Engine
from t5lite.inference.loaded import Loaded
from t5lite.interop import Opened, open_model
from t5lite.interop.finite import check_compute, check_dtype
from t5lite.models import ComputeSpec, Model, ModelSpec
from t5lite.parallel import Layout, make_mesh


def place(
    opened: Opened,
    *,
    compute: ComputeSpec = ComputeSpec(),
    layout: Layout | None = None,
    devices: Sequence[jax.Device] | None = None,
    dtype: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Reads the parameters of an opened checkpoint onto devices; see `load`."""
    check_dtype(dtype)
    check_compute(opened.spec.family, compute.dtype)
    layout = Layout() if layout is None else layout
    mesh = make_mesh(layout, devices)
    model, vocabulary = Model(opened.spec, compute), opened.vocabulary
    params = opened.params(model, layout=layout, mesh=mesh, dtype=dtype, progress=progress)
    engine = Engine(model, vocabulary, layout, mesh)
    return Loaded(engine, params, opened.description, opened.step, epath.Path(opened.folder))


def load(
    folder: epath.PathLike,
    *,
    compute: ComputeSpec = ComputeSpec(),
    layout: Layout | None = None,
    devices: Sequence[jax.Device] | None = None,
    dtype: Any = None,
    vocabulary: Vocabulary | None = None,
    spec: ModelSpec | None = None,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Opens a trained model: `t5lite.load("runs/quickstart").generate(["..."])`.

    Args:
      folder: a model_dir of t5lite or its checkpoints folder (the newest step), or one step, local,
        `gs://` or `s3://`, with `model.json`, `vocabulary/`, `labels.json` and `prompts.json` in it
        or in a folder above; a Hugging Face folder, local or remote: `config.json`, safetensors,
        tokenizer files; a T5X checkpoint, `checkpoint_N`, or the folder of several (the newest); or
        a model on the Hugging Face hub, `ORGANISATION/NAME` or `ORGANISATION/NAME@REVISION`, if
        huggingface_hub is installed and there is no such folder.
      compute: dtype of activations and so on, independent of training; float16 is refused for T5,
        whose activations exceed it.
      layout: how parameters and batches are sharded; by default parameters are replicated.
        Parameters of other libraries stream into their shards.
      devices: to use; None for all.
      dtype: of the parameters; None for that of each array.
      vocabulary: instead of the saved one.
      spec: of a T5X checkpoint, which does not store all of it; see `t5x.open_model`.
      revision: of a model on the hub: a branch, a tag or a commit; None for the default branch.
      progress: called with bytes read and total bytes, for other libraries' folders.
    Returns: the model with its parameters, averaged ones if a run of t5lite kept an average.
    Raises: InputError for no such folder or checkpoint, a description that does not fit the arrays,
    pickles, or parameters that are NaN, infinite, or too large for `dtype`; CheckpointError for a
    damaged checkpoint of t5lite.
    """
    return place(
        open_model(folder, vocabulary=vocabulary, spec=spec, revision=revision),
        compute=compute,
        layout=layout,
        devices=devices,
        dtype=dtype,
        progress=progress,
    )
