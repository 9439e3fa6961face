"""Diagnosis of refused statements and failed calls, without parsing gin's messages."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from t5lite.configuration.source import Binding, Source, at
from t5lite.errors import InputError, unknown
from t5lite.public_names import PUBLIC, ROOMS


class Call(NamedTuple):
    """A call made by gin: the configurable's name, the function, and its keyword arguments."""

    name: str
    function: Callable
    arguments: Mapping[str, Any]

    def missing(self) -> list[str]:
        kinds = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
        return [
            name
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind in kinds
            and parameter.default is parameter.empty
            and name not in self.arguments
        ]


def last_call(error: BaseException) -> Call | None:
    """Returns the innermost of gin's calls in an error's traceback; None for none."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        if frame.f_code.co_name == "gin_wrapper":
            variables = frame.f_locals
            name = variables["name"].rpartition(".")[2]
            return Call(name, variables["fn"], variables["new_kwargs"])
    return None


def without_gin(error: BaseException) -> Any:
    """Returns the original exception; gin appends lines to its message, in a subclass."""
    inner = error.__context__
    if error.__suppress_context__ and inner is not None and type(inner) in type(error).__bases__:
        return without_gin(inner)
    return error


def raised_by_gin(error: BaseException) -> bool:
    """Whether gin itself raised an error, rather than a function called by it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("gin", "inspect")


def refused(source: Source, *, location: str = "") -> InputError | None:
    """Returns the error of the first statement with an unknown name; None for none.

    Args:
      source: of files and flags; imports up to the refused statement have run.
      location: of the only possible statement; "" for any.
    """
    for name, statement in source.imports.items():
        if statement.module not in sys.modules and not statement.module.startswith("__gin__"):
            return _failed_import(statement.module, source.import_locations.get(name, location))
    for item in source.statements:
        if location in ("", item.location) and (error := _unknown_name(source, item)):
            return at(item.location, error)
    return None


def unset(source: Source) -> InputError | None:
    """Returns the error of a macro or parameter that is still `%gin.REQUIRED`; None for none."""
    latest = {
        (item.scope, source.target(item.selector), item.parameter): item
        for item in source.statements
    }
    for item in latest.values():
        if item.macro == "gin.REQUIRED":
            message = f"{item.name} has no value yet; add --gin.{item.name}=..."
            return at(item.location, InputError(message))
    return None


def _failed_import(module: str, location: str) -> InputError | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return at(location, InputError(str(error)))
    return None


def _unknown_name(source: Source, item: Binding) -> InputError | None:
    for selector in _selectors(item):
        first = selector.partition(".")[0]
        if "dynamic_registration" not in source.imports:
            return None
        if first not in source.imports_at(item.location):
            return _not_imported(source, first)
        target, name = source.resolve(selector)
        if name:
            public = getattr(
                target, "__all__", [attribute for attribute in dir(target) if attribute[0] != "_"]
            )
            return unknown(f"{selector.partition(f'.{name}')[0]} name", name, public)
    target, _ = source.resolve(item.selector)
    if item.parameter and callable(target):
        parameters = inspect.signature(target).parameters
        takes_any = any(value.kind is value.VAR_KEYWORD for value in parameters.values())
        if item.parameter not in parameters and not takes_any:
            return unknown(f"{item.selector} parameter", item.parameter, parameters)
    return None


def _selectors(item: Binding) -> Iterator[str]:
    if item.parameter:
        yield item.selector
    for _, selector in item.references:
        yield selector


def _not_imported(source: Source, name: str) -> InputError:
    if name in PUBLIC:
        return InputError(f"{name} is not imported; write t5lite.{name}")
    for room in ROOMS:
        if hasattr(importlib.import_module(f"t5lite.{room}"), name):
            return InputError(f"{name} is not imported; write t5lite.{room}.{name}")
    return unknown("import", name, source.imports)
