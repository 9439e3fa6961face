"""T5X checkpoints, both ways."""

from t5lite.interop.t5x.adafactor import load_adafactor
from t5lite.interop.t5x.architecture import Form, infer_form, infer_spec
from t5lite.interop.t5x.files import find_checkpoint, open_checkpoint
from t5lite.interop.t5x.names import tensors
from t5lite.interop.t5x.opened import open_model
from t5lite.interop.t5x.saving import save

__all__ = [
    "Form",
    "find_checkpoint",
    "infer_form",
    "infer_spec",
    "load_adafactor",
    "open_checkpoint",
    "open_model",
    "save",
    "tensors",
]
