"""Statements of gin files and flags with their locations, read without binding or importing."""

import contextlib
import importlib.util
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from t5lite.errors import InputError, unknown

_PACKAGE = Path(__file__).parent.parent


class Binding(NamedTuple):
    """One `scope/selector.parameter = value`, or a macro, which has no parameter ("").

    Args:
      scope: "" for none.
      selector: as spelled; of a macro its name.
      location: `file:line`, or the command-line flag.
      references: scope and selector of each `@scope/selector` in the value.
      macros: name of each `%macro` in the value.
      macro: the macro that is the whole value; "" for none.
      carried: whether its file is one of t5lite's own.
      ends: number of bindings at the end of its file, and of the files that include it.
    """

    scope: str
    selector: str
    parameter: str
    location: str
    references: tuple[tuple[str, str], ...] = ()
    macros: tuple[str, ...] = ()
    macro: str = ""
    carried: bool = False
    ends: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The text left of the equals sign."""
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{self.selector}" + (f".{self.parameter}" if self.parameter else "")


class _Reference(NamedTuple):
    scope: str
    selector: str


class _Macro(NamedTuple):
    name: str


class _Names(config_parser.ParserDelegate):
    """Reads names as names, without importing or resolving them."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return _Reference(scope, selector)

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)


@dataclass
class Source:
    """The statements of gin files and flags, with their locations.

    Attributes:
      search_paths: folders searched after the current one.
      statements: macros and bound parameters, in order.
      imports: gin's import statements, by the name that they bind.
      includes: the files named by `include`.
    """

    search_paths: Sequence[str] = ()
    statements: list[Binding] = field(default_factory=list)
    imports: dict[str, Any] = field(default_factory=dict)
    import_locations: dict[str, str] = field(default_factory=dict)
    includes: list[str] = field(default_factory=list)
    _imported: dict[str, set[str]] = field(default_factory=dict)

    @property
    def bindings(self) -> list[Binding]:
        return [item for item in self.statements if item.parameter]

    @property
    def macros(self) -> dict[str, str]:
        """The defined macros, with their last locations."""
        return {item.name: item.location for item in self.statements if not item.parameter}

    @property
    def used_macros(self) -> dict[str, str]:
        """The macros that values refer to, with their locations; replaced values count for none."""
        latest = {item[:3]: item for item in self.statements}
        return {name: item.location for item in latest.values() for name in item.macros}

    def unread(self, macro: str) -> bool:
        """Whether a user's macro is referred to by no value."""
        defined = [item for item in self.statements if not item.parameter and item.name == macro]
        return macro not in self.used_macros and not all(item.carried for item in defined)

    def used_by_carried(self, macro: str) -> bool:
        """Whether one of t5lite's own files refers to a macro."""
        return any(item.carried and macro in item.macros for item in self.statements)

    def read_file(self, name: str, *, location: str = "", within: tuple[Path, ...] = ()) -> None:
        """Reads a file and its includes; InputError for a missing or cyclic one, or a syntax error.

        Args:
          location: of the name, for errors.
          within: the files that include it.
        """
        path = find(name, self.search_paths)
        if path is None:
            raise at(location, unknown("file", name, _known_files(name, self.search_paths)))
        if path in within:
            raise at(location, InputError(f"{name} includes itself"))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise at(location, InputError(f"cannot read {path}: {error}")) from error
        first = len(self.statements)
        for statement, line in _statements(text, str(path)):
            here = f"{path}:{line}"
            if isinstance(statement, config_parser.IncludeStatement):
                self.includes.append(statement.filename)
                self.read_file(statement.filename, location=here, within=(*within, path))
            else:
                self._note(statement, here, carried=_is_carried(path))
        end = len(self.statements)
        self.statements[first:] = [
            item._replace(ends=(*item.ends, end)) for item in self.statements[first:]
        ]

    def read_flag(self, binding: str, *, location: str) -> None:
        """Reads a command-line binding, `NAME=value`."""
        for statement, _ in _statements(binding, flag=location):
            self._note(statement, location)

    def _note(self, statement: Any, location: str, *, carried: bool = False) -> None:
        if isinstance(statement, config_parser.ImportStatement):
            self.imports[statement.bound_name()] = statement
            self.import_locations[statement.bound_name()] = location
            self._imported.setdefault(location.rpartition(":")[0], set()).add(
                statement.bound_name()
            )
        elif isinstance(statement, config_parser.BindingStatement):
            scope, selector, parameter, value, _ = statement
            names = list(_names(value))
            self.statements.append(
                Binding(
                    scope or "",
                    selector,
                    parameter or "",
                    location,
                    references=tuple(item[:] for item in names if isinstance(item, _Reference)),
                    macros=tuple(item.name for item in names if isinstance(item, _Macro)),
                    macro=value.name if isinstance(value, _Macro) else "",
                    carried=carried,
                )
            )

    def location_of(self, configurable: str, field: str | None) -> str:
        """Returns the location to blame for an error raised by a call to `configurable`, or "".

        The binding of the field, or the definition of its macro; without one, the reference to
        `configurable`. `field`: `name` of its parameter or `Class.name` of another's.
        """
        owner, _, name = (field or "").rpartition(".")
        locations = [self._location_of(owner, name)] if owner not in ("", configurable) else []
        locations += [self._location_of(configurable, name if owner in ("", configurable) else "")]
        return next(filter(None, locations), "")

    def _location_of(self, configurable: str, field: str) -> str:
        bound = [item for item in self.bindings if item.selector.split(".")[-1] == configurable]
        for item in reversed(bound):
            if field == item.parameter:
                return self._origin(item).location
        built_at = [
            item.location
            for item in self.statements
            for _, selector in item.references
            if selector.split(".")[-1] == configurable
        ]
        if built_at and len({item.parameter for item in bound}) == 1:
            return bound[-1].location
        return built_at[-1] if built_at else ""

    def _origin(self, binding: Binding) -> Binding:
        """Returns the statement that defines a value, through any chain of macros."""
        macros = {item.name: item for item in self.statements if not item.parameter}
        for _ in self.statements:  # no endless loop: a macro may refer to itself
            if binding.macro not in macros:
                break
            binding = macros[binding.macro]
        return binding

    def imports_at(self, location: str) -> set[str]:
        """Returns the imported names visible to a statement: its file's; to a flag, all."""
        own = self._imported.get(location.rpartition(":")[0], set())
        return set(self.imports) if location.startswith("--gin.") else own

    def target(self, selector: str) -> Any:
        """Returns the object of a selector; its last name if no import leads there."""
        target, missing = self.resolve(selector)
        return selector.rpartition(".")[2] if missing else target

    def resolve(self, selector: str) -> tuple[Any, str]:
        """Returns the last object on a selector's path, and the first missing name, or ""."""
        first, *rest = selector.split(".")
        if first not in self.imports:
            return None, first
        statement = self.imports[first]
        target: Any = sys.modules[
            statement.module if statement.is_from or statement.alias else first
        ]
        for name in rest:
            if not hasattr(target, name):
                return target, name
            target = getattr(target, name)
        return target, ""


def find(name: str, search_paths: Iterable[str] = ()) -> Path | None:
    """Returns the path of the first existing file of a name, or None.

    Args:
      name: a path. `configs/...` and `gin/...` are also found inside t5lite, from any folder, and
        `package/file.gin` inside a Python package.
      search_paths: folders to look in after the current one.
    """
    candidates = [Path(folder, name) for folder in ("", *search_paths)]
    *folders, file = Path(name).parts or ("",)
    if folders and folders[0] in ("configs", "gin"):
        candidates += [Path(root, *folders[1:], file) for root in carried(folders[0])]
    elif folders and all(folder.isidentifier() for folder in folders):
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(".".join(folders))
            roots = spec.submodule_search_locations if spec else None
            candidates += [Path(root, file) for root in roots or ()]
    return next((path for path in candidates if path.is_file()), None)


def _is_carried(path: Path) -> bool:
    roots = [root.resolve() for kind in ("configs", "gin") for root in carried(kind)]
    return any(path.resolve().is_relative_to(root) for root in roots)


def carried(kind: str) -> tuple[Path, Path]:
    """Returns the folder of `configs` or `gin` in an installed wheel, and in a checkout."""
    return _PACKAGE / f"_{kind}", _PACKAGE.parent / kind


def _known_files(name: str, search_paths: Iterable[str]) -> Iterator[str]:
    for kind in ("configs", "gin"):
        for root in carried(kind):
            yield from (str(kind / path.relative_to(root)) for path in root.rglob("*.gin"))
    for folder in ("", *search_paths):
        for path in Path(folder, name).parent.glob("*.gin"):
            yield str(path.relative_to(folder))


def _statements(text: str, file: str = "", *, flag: str = "") -> Iterator[tuple[Any, int]]:
    """Yields gin's statements and their lines; InputError at the location of a syntax error."""
    try:
        for statement in config_parser.ConfigParser(text, _Names()):
            yield statement, statement.location.line_num
    except (SyntaxError, tokenize.TokenError) as error:
        line = (error.lineno if isinstance(error, SyntaxError) else _unclosed(text)) or 1
        problem = str(error.args[0]).partition("\n")[0].rstrip(".")
        if "malformed node" in problem:  # ast's message for a bare name
            problem = "Unable to parse value"
        content = text.splitlines()[line - 1].strip()
        hint = "values are Python literals, @function, @function() or %MACRO"
        name, _, value = (part.strip() for part in content.partition("="))
        if re.fullmatch(r"[\w./~:-]+", value):
            hint = f"strings take quotes: {name} = '{value}'"
            if flag:  # quoted again, for the shell
                hint = f"strings take quotes: --gin.{name}=\"'{value}'\""
        location = flag or f"{file}:{line}"
        raise InputError(f"{location}: not gin: {problem}\n  {content}\n  {hint}") from error


def _unclosed(text: str) -> int:
    """Returns the line of the last unclosed bracket; tokenize reports the end of the file."""
    lines = [1]
    with contextlib.suppress(tokenize.TokenError):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP and token.string in "([{":
                lines.append(token.start[0])
            elif token.type == tokenize.OP and token.string in ")]}":
                lines.pop()
    return lines[-1]


def _names(value: Any) -> Iterator[_Reference | _Macro]:
    if isinstance(value, _Reference | _Macro):
        yield value
    elif isinstance(value, dict):
        yield from _names([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item)


def at(location: str, error: InputError) -> InputError:
    """Returns the error with its location, if any, as prefix."""
    return InputError(f"{location}: {error}", field=error.field) if location else error
