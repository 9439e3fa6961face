"""Errors of user code in a few lines: what failed, at which line of which file, and why."""

import functools
import inspect
import os
import re
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from t5lite.errors import InputError

_PACKAGE = str(Path(__file__).parent.parent)
_FRAMEWORKS = (_PACKAGE, *map(sysconfig.get_path, ("stdlib", "purelib")))
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
# TensorFlow's additions to a message: functions before it, nodes and the op after it.
_DECORATION = re.compile(
    r"^(\{\{.*?\}\} )+|Error in user-defined function .*? with iterator: \S+: "
    r"|\s*\[\[\{\{node.*|\s*\[Op:\w+\].*"
)


def user_error(subject: str, error: BaseException, *, fix: str = "") -> InputError:
    """Returns the error to raise after an error of user code; `fix` is another line.

    The `subject` begins the message, e.g. `"task 'mine': metric f1 (metrics.py:7)"`.
    """
    lines = [f"{subject} failed", f"  {type(error).__name__}: {reason(error)}"]
    if frame := _frame(error):
        lines.append(f"  at {frame}")
    return InputError("\n".join([*lines, *([f"  {fix}"] if fix else [])]))


def reason(error: BaseException) -> str:
    """Returns an error's message on one line, without TensorFlow's decoration."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return "no message"
    line = lines[0]
    if line == "in user code:":  # AutoGraph's, which ends with the message
        line = lines[-1].partition(": ")[2] or lines[-1]
    line = _DECORATION.sub("", line).strip()
    return line if len(line) <= 200 else line[:199] + "…"


def place_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    name = getattr(function, "__qualname__", type(function).__qualname__).rpartition("<locals>.")[2]
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    return f"{name} ({_shown(code.co_filename)}:{code.co_firstlineno})"


def _frame(error: BaseException) -> str | None:
    """Returns the last line of user code in an exception's traceback."""
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    # The messages of AutoGraph and py_function name frames that the traceback lacks.
    frames += [(name, int(line)) for name, line in _FRAME.findall(str(error))]
    for name, line in reversed(frames):
        if os.path.isfile(name) and not name.startswith(_FRAMEWORKS) and "__autograph" not in name:
            return f"{_shown(name)}:{line}"
    return None


def _shown(path: str) -> str:
    """Returns a path relative to the working folder, if it lies there."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
