"""Bindings and macros that a call would ignore.

A binding is used if it is reachable from the called function, through bound values and their
references. Users' files and flags must be used; t5lite's own files exist to be overridden. A file
is also judged by itself, at its end: a later file may replace the users of its bindings.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gin import config

from t5lite.configuration.source import Binding, Source, at
from t5lite.errors import InputError, nearest


def check_used(source: Source, root: Callable, *, everywhere: bool = False) -> None:
    """Raises an InputError at the first binding or macro that a call of `root` would ignore.

    `everywhere`: t5lite's own files are checked too.
    """
    whole = len(source.statements)
    reached = {whole: _Reached(source, root, whole)}
    for number, binding in enumerate(source.statements):
        if binding.carried and not everywhere:
            continue
        for end in (whole, *binding.ends):
            if end not in reached:
                reached[end] = _Reached(source, root, end)
            if reached[end].uses(binding):
                break
        else:
            # A later binding of the same name gets the error.
            if not any(later[:3] == binding[:3] for later in source.statements[number + 1 :]):
                raise at(binding.location, reached[whole].error(binding))


class _Reached:
    """The targets, macros and scopes reachable from a function in the first `length` bindings."""

    def __init__(self, source: Source, root: Callable, length: int):
        self._source = source
        latest: dict[tuple[str, Any, str], Binding] = {}
        for binding in source.statements[:length]:
            latest[binding.scope, self._target(binding), binding.parameter] = binding
        named = [item.selector for item in latest.values() if self._target(item) is root]
        self.targets: dict[Any, str] = {root: named[0] if named else root.__name__}
        self.macros: set[str] = set()
        self.scopes: set[str] = set()
        while True:
            before = len(self.targets), len(self.macros), len(self.scopes)
            for binding in latest.values():
                if self.uses(binding):
                    self._add(binding)
            if before == (len(self.targets), len(self.macros), len(self.scopes)):
                return

    def uses(self, binding: Binding) -> bool:
        if not binding.parameter:
            return binding.name in self.macros
        target = self._target(binding)
        if not self.scopes.issuperset(filter(None, binding.scope.split("/"))):
            return False
        return target in self.targets or _decorated(target)

    def error(self, binding: Binding) -> InputError:
        if not binding.parameter:
            hint = nearest(binding.name, self.macros)
            return InputError(
                f"{binding.name} has no effect: no value in use refers to %{binding.name}{hint}"
            )
        target, call = self._target(binding), f"@{binding.selector}()"
        if target in self.targets:
            return InputError(
                f"{binding.name} has no effect: nothing is called in the scope {binding.scope}"
            )
        takers = [*self._takers(target)]
        if takers:
            fix = f"\n  set {takers[0]} = {call}"
        else:
            used = {path.rpartition(".")[2]: path for path in filter(None, self.targets.values())}
            near = difflib.get_close_matches(binding.selector.rpartition(".")[2], used, n=1)
            fix = f"; did you mean {used[near[0]]}?" if near else f"\n  {self._use(target, call)}"
        return InputError(
            f"{binding.name} has no effect: nothing in this configuration uses {call}{fix}"
        )

    def _use(self, target: Any, call: str) -> str:
        """Returns the fix for an unused binding whose name is near none in use."""
        for user, name in self.targets.items():
            if "callbacks" in _parameters(user) and _is_callback(target):
                return f"add {call} to {name}.callbacks, or leave it out"
        return f"refer to {call} where it belongs, or leave it out"

    def _add(self, binding: Binding) -> None:
        self.macros.update(binding.macros)
        self.scopes.update(binding.macros)  # gin calls what a macro refers to in its scope
        for scope, selector in binding.references:
            self.scopes.update(filter(None, scope.split("/")))
            self.targets.setdefault(self._source.target(selector), selector)

    def _target(self, binding: Binding) -> Any:
        return self._source.target(binding.selector) if binding.parameter else binding.selector

    def _takers(self, target: Any) -> Iterator[str]:
        """Yields the parameters whose default is an instance of a class."""
        if not isinstance(target, type):
            return
        for user, name in self.targets.items():
            for parameter, value in _parameters(user).items():
                if isinstance(value.default, target):
                    yield f"{name}.{parameter}"


def _is_callback(target: Any) -> bool:
    """Whether a class is a callback of `train`."""
    callable_ = isinstance(target, type) and any("__call__" in vars(cls) for cls in target.__mro__)
    return callable_ and "every" in _parameters(target)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _decorated(target: Any) -> bool:
    """Whether Python code may call a target with its bindings: a `@gin.configurable`."""
    if isinstance(target, str):  # not imported by the file: registered by its decorator alone
        return True
    inner = inspect.unwrap(target) if callable(target) else target
    registered = config._INVERSE_REGISTRY.get(inner)
    return registered is not None and registered.wrapper is target
