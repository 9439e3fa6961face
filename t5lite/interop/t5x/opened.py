"""Opens a T5X checkpoint as a model."""

from etils import epath

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.interop.description import Description
from t5lite.interop.foreign import ForeignCheckpoint
from t5lite.interop.t5x.architecture import infer_form, infer_spec
from t5lite.interop.t5x.files import open_checkpoint
from t5lite.interop.t5x.names import tensors
from t5lite.models import ModelSpec
from t5lite.training.restore import absolute


def open_model(
    folder: epath.PathLike,
    *,
    spec: ModelSpec | None = None,
    step: int | None = None,
    vocabulary: Vocabulary | None = None,
) -> ForeignCheckpoint:
    """Opens a T5X checkpoint as a model, reading names and shapes alone.

    Args:
      folder: `checkpoint_N`, or the folder that holds them.
      spec: the model; None to infer it from names and shapes, see `infer_spec`.
      step: N of `checkpoint_N` in the folder; None for the last.
      vocabulary: of the token ids, which T5X does not store.

    Raises: InputError for anything but a T5X checkpoint, or a model that cannot be inferred from
      T5X's names.
    """
    if step is not None:
        path = absolute(folder) / f"checkpoint_{step}"
        if not path.exists():
            raise InputError(
                f"step = {step}: {str(folder)!r} has no checkpoint_{step}", field="step"
            )
        folder = path
    source = open_checkpoint(folder)
    stored = source.tensors()
    form = infer_form(stored)
    spec = infer_spec(stored) if spec is None else spec
    return ForeignCheckpoint(
        "t5x",
        Description(spec, vocabulary),
        source.part("target"),
        tensors(spec, scanned=form.scanned, joined=form.joined),
        folder=str(source.folder),
        step=source.step,
    )
