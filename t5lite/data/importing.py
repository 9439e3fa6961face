"""Imports of SeqIO, which brings TensorFlow, and of user modules."""

import importlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from t5lite.data.user_code import user_error
from t5lite.errors import InputError


def import_seqio() -> Any:
    """Returns SeqIO, imported quietly, with TensorFlow kept off JAX's accelerators."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX's, under which errors come twice
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    try:
        with _without_startup_chatter():
            import seqio
            import tensorflow as tf

            for kind in ("GPU", "TPU"):
                tf.config.set_visible_devices([], kind)
    except ModuleNotFoundError as error:
        raise InputError(
            f"SeqIO tasks need {error.name}, which is not installed; "
            "install t5lite with its requirements, or train on arrays with ArrayData"
        ) from error
    except RuntimeError:  # TensorFlow is in use already, with its devices chosen
        pass
    return seqio


def import_user_module(name: str) -> None:
    """Imports a user's module for what it registers; raises InputError if that fails."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        fix = f"install {missing}"
        if name == missing or name.startswith(f"{missing}."):
            fix = "add its folder to PYTHONPATH"
        raise InputError(f"cannot import module {name!r}: {error}; {fix}") from error
    except SystemExit as error:
        raise InputError(
            f"module {name!r} ends the program when imported (sys.exit({error.code!r})); "
            "run that part under `if __name__ == '__main__':` only"
        ) from error
    except Exception as error:  # user code may raise anything
        raise user_error(f"the import of module {name!r}", error) from error


@contextmanager
def _without_startup_chatter() -> Iterator[None]:
    """Drops what TensorFlow's C++ logs before it reads its log level; all else reaches stderr."""
    try:
        stderr = os.dup(2)
    except OSError:  # without a stderr
        yield
        return
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            buffer.seek(0)
            for line in buffer:
                if not re.match(rb"[IWE]\d{4} |WARNING: All log messages before absl", line):
                    os.write(2, line)
