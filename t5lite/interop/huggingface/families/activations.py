"""transformers' names of activations."""

from t5lite.interop.huggingface.families.family import unsupported

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
    """Returns which of `layers.ACTIVATIONS` transformers' `name` is.

    Args:
      name: in a config.
      field: of the config, for the message.

    Raises:
      InputError: if it is none.
    """
    for ours, theirs in NAMES.items():
        if name in theirs:
            return ours
    raise unsupported(field, name, (alias for theirs in NAMES.values() for alias in theirs))


def activation_name(ours: str, *, gelu_tanh: str = "gelu_new") -> str:
    """Returns the name to write for one of `layers.ACTIVATIONS`.

    Args:
      ours: its name; one that transformers lacks comes back as it is.
      gelu_tanh: which of the names of "gelu_tanh" the family's own configs have.
    """
    names = {alias: theirs[0] for alias, theirs in NAMES.items()} | {"gelu_tanh": gelu_tanh}
    return names.get(ours, ours)
