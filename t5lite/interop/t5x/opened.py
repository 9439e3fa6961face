"""A checkpoint of T5X's as a model, for `load` and `convert`."""

from etils import epath

from t5lite.interop.foreign import Foreign
from t5lite.interop.t5x.architecture import infer_form, infer_spec
from t5lite.interop.t5x.files import open_checkpoint
from t5lite.interop.t5x.names import tensors
from t5lite.models import ModelSpec


def open_model(folder: epath.PathLike, *, spec: ModelSpec | None = None) -> Foreign:
    """Opens a checkpoint, reading names and shapes alone.

    Args:
      folder: `checkpoint_N`, or the folder that holds them, of which the last is opened.
      spec: the model; None for what names and shapes say, see `infer_spec`.

    Raises:
      InputError: if it is no checkpoint of T5X's, or of a model that T5X's names do not tell.
    """
    source = open_checkpoint(folder)
    there = source.tensors()
    form = infer_form(there)
    spec = infer_spec(there) if spec is None else spec
    return Foreign(
        spec,
        source.part("target"),
        tensors(spec, scanned=form.scanned, joined=form.joined),
        where=str(source.folder),
        step=source.step,
    )
