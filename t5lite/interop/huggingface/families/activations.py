"""transformers' names of activations."""

import functools

from t5lite.interop.huggingface.families.fields import Conversion, unsupported

# Several names each: they differ in rounding.
NAMES = {
    "relu": ("relu",),
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": (
        "gelu_new",
        "gelu_fast",
        "gelu_accurate",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
    ),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}


def activation(name: str, field: str) -> str:
    """Returns the `layers.ACTIVATIONS` entry of a transformers name; InputError for others."""
    for ours, theirs in NAMES.items():
        if name in theirs:
            return ours
    raise unsupported(field, name, (alias for theirs in NAMES.values() for alias in theirs))


def activation_name(ours: str, gelu_tanh: str = "gelu_new") -> str:
    """Returns the name to write for one of `layers.ACTIVATIONS`, or it unchanged.

    Args:
      gelu_tanh: which of the names of "gelu_tanh" the family's own configs have.
    """
    names = {alias: theirs[0] for alias, theirs in NAMES.items()} | {"gelu_tanh": gelu_tanh}
    return names.get(ours, ours)


def activations(gelu_tanh: str) -> Conversion:
    """Returns the conversion of a family, with its name of "gelu_tanh"."""
    return Conversion(activation, functools.partial(activation_name, gelu_tanh=gelu_tanh))


ACTIVATION = activations("gelu_new")
