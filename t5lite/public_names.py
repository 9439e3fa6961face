"""The names that `import t5lite` offers, and rooms whose names load when they are first used."""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FUNCTIONS = {"train": "t5lite.experiment", "load": "t5lite.inference", "infer": "t5lite.inference"}
ROOMS = (
    "data",
    "decoding",
    "errors",
    "evaluation",
    "experiment",
    "inference",
    "interop",
    "layers",
    "models",
    "objectives",
    "optimizers",
    "parallel",
    "planning",
    "reporting",
    "training",
)
PUBLIC = ("__version__", *FUNCTIONS, *ROOMS)


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package, which import a name when it is first used.

    Names and modules are those of its `if TYPE_CHECKING:` block, the only place that lists both.
    """
    module = sys.modules[package]
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(module, name, value)
        return value

    return load, lambda: sorted({*vars(module), *modules})
