"""Binding and calling with gin, with short errors at the place of the mistake."""

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
    """A parsed configuration. Its values live in gin, which holds one configuration at a time.

    Attributes:
      source: what the files and flags say, and where.
    """

    source: Source

    def call(self, function: Callable, **arguments: Any) -> Any:
        """Calls `function` with what is bound to it; `arguments` given here win.

        Raises: InputError, at the place of a binding that is missing or refused.
        """
        with self._explained(function):
            return gin.get_configurable(function)(**arguments)

    def bindings_of(self, function: Callable) -> dict[str, Any]:
        """Builds what is bound to `function`, without calling it.

        Returns: values by parameter; parameters that nothing binds are left out.
        Raises: InputError, at the place of a binding that is refused.
        """
        with self._explained(function):
            return gin.get_bindings(function)

    def operative_config(self) -> str:
        """Returns every value used by the calls so far, defaults included, as gin text."""
        return gin.operative_config_str()

    @contextlib.contextmanager
    def placing(self, function: Callable) -> Iterator[None]:
        """Names, in an InputError, the place of the binding of `function` that is to blame."""
        try:
            yield
        except InputError as error:
            raise at(self.source.place_of(function.__name__, error.field), error) from error

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
            found = self._call_error(error, name)
            if found is error:
                raise
            raise found from error

    def _call_error(self, error: Exception, name: str) -> Exception:
        """Returns an InputError if the configuration is to blame, `error` itself if `name` is."""
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
        return at(self.source.place_of(called, blamed.field), blamed)


def parse(
    files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()
) -> Configuration:
    """Reads gin files, then bindings over them; forgets any configuration before.

    Args:
      files: gin files, as `find` takes them; later ones win.
      bindings: `NAME=value` for macros that the files define or use, `t5lite.train.steps=5` for
        parameters; names of t5lite may leave `t5lite.` out.
      search_paths: folders where files and their includes are looked up.

    Returns: the configuration.
    Raises: InputError, at the place of the mistake.
    """
    gin.clear_config()
    source = Source(search_paths)
    for name in files:
        source.read_file(name)
    with _reading(search_paths):
        for name in files:
            with _placed(source):
                gin.parse_config_file(name)
    _bind_flags(source, bindings)
    for name, place in source.used_macros.items():
        if name not in source.macros and not _is_constant(name):
            raise _undefined(source, name, place)
    if error := unset(source):
        raise error
    with _placed(source):
        gin.finalize()
    return Configuration(source)


def _bind_flags(source: Source, bindings: Sequence[str]) -> None:
    full_names = {binding: _full_name(binding, source) for binding in bindings}
    of_files = set(source.macros)
    for binding, full_name in full_names.items():
        source.read_flag(full_name, place=f"--gin.{binding}")
    known = of_files | source.used_macros.keys()
    source.imports.setdefault("t5lite", config_parser.ImportStatement("t5lite", False, None, None))
    # gin keeps imports apart by file, and a flag is nobody's: each starts with all of them.
    imports = [
        statement.format()
        for statement in source.imports.values()
        if not statement.module.startswith("__gin__.")
    ]
    for binding, full_name in full_names.items():
        name = binding.partition("=")[0].strip()
        place = f"--gin.{binding}"
        if "." not in name and name not in known:  # gin would accept it, and nothing would read it
            raise at(place, unknown("macro", name, known))
        with _placed(source, place):
            gin.parse_config([_DYNAMIC, *imports, full_name])


def _full_name(binding: str, source: Source) -> str:
    """Writes `train.steps=5` as `t5lite.train.steps=5`, unless a file imports a `train`."""
    name, equals, value = binding.partition("=")
    scope, slash, selector = name.strip().rpartition("/")
    first, dot, _ = selector.partition(".")
    if dot and first in PUBLIC and first not in source.imports:
        selector = f"t5lite.{selector}"
    return f"{scope}{slash}{selector}{equals}{value}"


def _undefined(source: Source, name: str, place: str) -> InputError:
    """Returns the error for a macro without a value: misspelt where it is used, or defined."""
    if not source.asked_for(name):
        return at(place, unknown("macro", name, source.macros))
    unread = {macro: where for macro, where in source.macros.items() if source.unread(macro)}
    for misspelt in difflib.get_close_matches(name, unread, n=1, cutoff=0.75):
        return at(unread[misspelt], unknown("macro", misspelt, [name]))
    message = f"{name} has no value yet; set {name} = ... in a file, or add --gin.{name}=..."
    return at(place, InputError(message))


def _is_constant(name: str) -> bool:
    try:
        gin.query_parameter(name)
    except Exception:
        return False
    return True


@contextlib.contextmanager
def _reading(search_paths: Sequence[str]) -> Iterator[None]:
    """Lets gin open files as `find` finds them; its own lookup logs an error for each miss."""
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
def _placed(source: Source, place: str = "") -> Iterator[None]:
    """Raises what gin refuses, and imports that fail, as an InputError at its place."""
    try:
        yield
    except SyntaxError as error:
        place = place or f"{error.filename}:{error.lineno}"
        raise at(place, InputError(str(error.msg).partition("\n")[0])) from error
    except Exception as error:
        if not isinstance(error, InputError | ImportError) and not raised_by_gin(error):
            raise
        if diagnosed := refused(source, place=place):
            raise diagnosed from error
        message = str(without_gin(error)).partition("\n")[0]
        if "dynamic_registration" not in source.imports:
            message += f"\n  start the file with: {_DYNAMIC}"
            place = place or next((each.place for each in source.statements), "")
        raise at(place, InputError(message)) from error
