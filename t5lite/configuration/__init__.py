"""Gin: files and command-line bindings in; built arguments, calls and short errors out.

gin records neither the line of a binding nor the macros, so files are read twice: `Source` records
the statements with their locations, for errors, then gin binds them.
"""

import sys

from t5lite.errors import InputError

try:
    from t5lite.configuration.binding import Configuration, parse
    from t5lite.configuration.layouts import layout_of
    from t5lite.configuration.source import Binding, Source, find
except ImportError as error:
    if (error.name or "").partition(".")[0] != "gin":
        raise
    # A folder called gin/ on the path imports as an empty namespace if the library is missing.
    shadow = list(getattr(sys.modules.get("gin"), "__path__", ()))
    raise InputError(
        "the gin-config library is missing"
        + (f"; `import gin` finds {shadow[0]} instead" if shadow else "")
        + "\n  install it: pip install gin-config"
    ) from error

__all__ = ["Binding", "Configuration", "Source", "find", "layout_of", "parse"]
