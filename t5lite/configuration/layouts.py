"""`--layout=NAME`: a layout from a partitioning fragment, without a training configuration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5lite.configuration.binding import parse
from t5lite.configuration.source import carried, find
from t5lite.errors import InputError, unknown

if TYPE_CHECKING:
    from t5lite.parallel import Layout

_FOLDER = "partitioning"


def layout_of(name: str, search_paths: Sequence[str] = ()) -> "Layout":
    """Returns the layout that a gin fragment binds to `t5lite.train.layout`, for `--layout=NAME`.

    Replaces any earlier configuration.

    Args:
      name: of a fragment in `gin/partitioning`, such as "fsdp"; or the path of a gin file.
      search_paths: folders where files and their includes are looked up.

    Raises: InputError if there is no such fragment, or it binds no layout.
    """
    from t5lite.experiment import train

    path = name if name.endswith(".gin") else f"gin/{_FOLDER}/{name}.gin"
    if find(path, search_paths) is None:
        roots = [root / _FOLDER for root in carried("gin")]
        names = [file.stem for root in roots for file in root.glob("*.gin")]
        raise unknown("layout", name, names, field="layout")
    bound = parse([path], search_paths=search_paths).bindings_of(train)
    if "layout" not in bound:
        raise InputError(f"--layout={name}: {path} binds no t5lite.train.layout", field="layout")
    return bound["layout"]
