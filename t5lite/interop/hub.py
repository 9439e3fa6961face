"""Models by their names on the Hugging Face hub, where its library and a network are at hand."""

from t5lite.errors import InputError

# No pickles: what is not downloaded cannot be opened by mistake.
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.spm")


def from_hub(name: str) -> str:
    """Returns the local folder of a model, downloaded unless it is in the library's cache.

    Args:
      name: `ORGANISATION/NAME`.

    Raises:
      InputError: if huggingface_hub is not installed, the hub cannot be reached, or has no such
        model.
    """
    missing = f"there is no folder {name!r}"
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError(
            f"{missing}; to load a model of that name from the Hugging Face hub: "
            "pip install huggingface_hub"
        ) from error
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=list(FILES))
    except Exception as error:  # its own, Python's, and those of what it reaches the network by
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise InputError(
            f"{missing}, and the Hugging Face hub gave no model of that name: {reason}"
        ) from error
