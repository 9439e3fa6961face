"""Models written as folders, their descriptions given by keywords."""

from t5lite import interop
from t5lite.interop import Description, huggingface


def description(model, **parts):
    """Returns the description of a model, or of its spec."""
    return Description(getattr(model, "spec", model), **parts)


def save_model(folder, model, params, *, kind="t5lite", step=0, scanned=False, **parts):
    """Writes a folder of any kind."""
    options = {"kind": kind, "step": step, "scanned": scanned}
    interop.save(folder, description(model, **parts), params, **options)


def save_huggingface(folder, model, params, **parts):
    """Writes a Hugging Face folder, whatever lies there."""
    huggingface.save(folder, description(model, **parts), params)
