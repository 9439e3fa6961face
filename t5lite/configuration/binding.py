"""Binding and calling with gin; errors are short and name the location of the mistake."""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gin
from gin import config_parser

from t5lite.configuration.diagnosis import (
    last_call,
    raised_by_gin,
    refused,
    unset,
    without_gin,
)
from t5lite.configuration.source import Source, at, find
from t5lite.configuration.unused import check_used
from t5lite.errors import InputError, unknown
from t5lite.public_names import PUBLIC

_DYNAMIC = "from __gin__ import dynamic_registration"


@dataclass(frozen=True)
class Configuration:
    """A configuration with its `source`; its values live in gin, which holds one at a time."""

    source: Source

    def call(self, function: Callable, **arguments: Any) -> Any:
        """Calls `function` with its bindings, which `arguments` override; errors have locations."""
        with self._explained(function):
            return gin.get_configurable(function)(**arguments)

    def bindings_of(self, function: Callable) -> dict[str, Any]:
        """Returns the bound values of `function` by parameter, uncalled; errors have locations."""
        with self._explained(function):
            return gin.get_bindings(function)

    def operative_config(self) -> str:
        """Returns all values used by calls so far, defaults included, as gin text."""
        return gin.operative_config_str()

    @contextlib.contextmanager
    def locating(self, function: Callable) -> Iterator[None]:
        """Prefixes an InputError with the location of the binding to blame."""
        try:
            yield
        except InputError as error:
            raise at(self.source.location_of(function.__name__, error.field), error) from error

    @contextlib.contextmanager
    def _explained(self, function: Callable) -> Iterator[None]:
        name = function.__name__
        if not any(binding.selector.split(".")[-1] == name for binding in self.source.bindings):
            raise InputError(
                f"nothing is configured for {name}; "
                "name a file, such as --gin_file=configs/quickstart.gin"
            )
        check_used(self.source, function)
        try:
            yield
        except Exception as error:
            diagnosed = self._call_error(error, name)
            if diagnosed is error:
                raise
            raise diagnosed from error

    def _call_error(self, error: Exception, name: str) -> Exception:
        """Returns an InputError for a mistake in the configuration, otherwise `error` itself."""
        cause, call = without_gin(error), last_call(error)
        called = call.name if call else name
        missing = call.missing() if call and isinstance(cause, TypeError) else []
        if isinstance(cause, InputError):
            blamed = InputError(str(cause), field=cause.field)
        elif missing:
            needed = " and ".join(map(repr, missing))
            blamed = InputError(f"{called} needs {needed}, which no file or flag binds")
        elif called != name and isinstance(cause, TypeError | ValueError):
            refusal = f"{type(cause).__name__}: {cause}"
            blamed = InputError(f"{called} refused its arguments: {refusal}")
        elif raised_by_gin(error):
            blamed = InputError(str(cause))
        else:
            return cause
        return at(self.source.location_of(called, blamed.field), blamed)


def parse(
    files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()
) -> Configuration:
    """Parses gin files, then bindings that override them; replaces any earlier configuration.

    Args:
      files: gin files, see `find`; later ones override earlier ones.
      bindings: `NAME=value` for macros that the files define or use, `t5lite.train.steps=5` for
        parameters; the prefix `t5lite.` is optional.
      search_paths: folders where files and their includes are searched.

    Raises: InputError, at the location of the mistake.
    """
    gin.clear_config()
    source = Source(search_paths)
    for name in files:
        source.read_file(name)
    with _reading(search_paths):
        for name in files:
            with _located(source):
                gin.parse_config_file(name)
    _bind_flags(source, bindings)
    for name, location in source.used_macros.items():
        if name not in source.macros and not _is_constant(name):
            raise _undefined(source, name, location)
    if error := unset(source):
        raise error
    with _located(source):
        gin.finalize()
    return Configuration(source)


def _bind_flags(source: Source, bindings: Sequence[str]) -> None:
    full_names = {binding: _full_name(binding, source) for binding in bindings}
    macros = set(source.macros)
    for binding, full_name in full_names.items():
        source.read_flag(full_name, location=f"--gin.{binding}")
    macros |= source.used_macros.keys()
    source.imports.setdefault("t5lite", config_parser.ImportStatement("t5lite", False, None, None))
    # gin scopes imports to files, and a flag has none: it starts with all of them.
    imports = [
        statement.format()
        for statement in source.imports.values()
        if not statement.module.startswith("__gin__.")
    ]
    for binding, full_name in full_names.items():
        name = binding.partition("=")[0].strip()
        location = f"--gin.{binding}"
        if "." not in name and name not in macros:  # gin would accept and ignore it
            raise at(location, unknown("macro", name, macros))
        with _located(source, location):
            gin.parse_config([_DYNAMIC, *imports, full_name])


def _full_name(binding: str, source: Source) -> str:
    """Returns `t5lite.train.steps=5` for `train.steps=5`, unless a file imports a `train`."""
    name, equals, value = binding.partition("=")
    scope, slash, selector = name.strip().rpartition("/")
    first, dot, _ = selector.partition(".")
    if dot and first in PUBLIC and first not in source.imports:
        selector = f"t5lite.{selector}"
    return f"{scope}{slash}{selector}{equals}{value}"


def _undefined(source: Source, name: str, location: str) -> InputError:
    """Returns the error for a macro without a value."""
    if not source.used_by_carried(name):
        return at(location, unknown("macro", name, source.macros))
    unread = filter(source.unread, source.macros)
    for misspelt in difflib.get_close_matches(name, unread, n=1, cutoff=0.75):
        return at(source.macros[misspelt], unknown("macro", misspelt, [name]))
    message = f"{name} has no value yet; set {name} = ... in a file, or add --gin.{name}=..."
    return at(location, InputError(message))


def _is_constant(name: str) -> bool:
    try:
        gin.query_parameter(name)
    except Exception:
        return False
    return True


@contextlib.contextmanager
def _reading(search_paths: Sequence[str]) -> Iterator[None]:
    """Lets gin open files by `find`; its own search logs an error for each miss."""
    reader = (
        lambda name: open(str(find(name, search_paths)), encoding="utf-8"),  # noqa: SIM115
        lambda name: find(name, search_paths) is not None,
    )
    gin.config._FILE_READERS.insert(0, reader)
    try:
        yield
    finally:
        gin.config._FILE_READERS.remove(reader)


@contextlib.contextmanager
def _located(source: Source, location: str = "") -> Iterator[None]:
    """Turns gin's errors and failed imports into InputErrors with a location."""
    try:
        yield
    except SyntaxError as error:
        location = location or f"{error.filename}:{error.lineno}"
        raise at(location, InputError(str(error.msg).partition("\n")[0])) from error
    except Exception as error:
        if not isinstance(error, InputError | ImportError) and not raised_by_gin(error):
            raise
        if diagnosed := refused(source, location=location):
            raise diagnosed from error
        message = str(without_gin(error)).partition("\n")[0]
        if "dynamic_registration" not in source.imports:
            message += f"\n  start the file with: {_DYNAMIC}"
            location = location or next((item.location for item in source.statements), "")
        raise at(location, InputError(message)) from error
