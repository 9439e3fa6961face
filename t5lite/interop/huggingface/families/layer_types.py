"""Full or windowed attention by layer, and the pattern that repeats."""

from t5lite.errors import InputError
from t5lite.interop.huggingface.families.fields import Config

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_types(config: Config, default: list[str]) -> list[str]:
    """Returns `FULL` or `SLIDING` for each layer; InputError for other kinds or another number."""
    kinds = config.get("layer_types") or default
    if len(kinds) != len(default) or not set(kinds) <= {FULL, SLIDING}:
        raise InputError(
            f"layer_types = {kinds!r}: must name {len(default)} of {FULL}, {SLIDING}",
            field="layer_types",
        )
    return list(kinds)


def period(kinds: list[str]) -> list[str]:
    """Returns the shortest pattern that repeats through `kinds`, the last repeat perhaps cut."""
    for size in range(1, len(kinds)):
        if all(kind == kinds[index % size] for index, kind in enumerate(kinds)):
            return kinds[:size]
    return kinds
