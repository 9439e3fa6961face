"""Statements of gin files and flags with their places, read without binding or importing."""

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
    """One `scope/selector.parameter = value`, or a macro, which has no parameter.

    Args:
      scope: "" for none.
      selector: as it is written; of a macro its name.
      parameter: "" for a macro.
      place: `file:line`, or the command-line flag.
      references: scope and selector of every `@scope/selector` in the value.
      macros: the names of every `%macro` in it.
      macro: the macro that is the whole value, "" for none.
      carried: whether it stands in a file that t5lite carries.
      ends: how many bindings there are at the end of its file, and of those that include it.
    """

    scope: str
    selector: str
    parameter: str
    place: str
    references: tuple[tuple[str, str], ...] = ()
    macros: tuple[str, ...] = ()
    macro: str = ""
    carried: bool = False
    ends: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What the user typed left of the equals sign."""
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{self.selector}" + (f".{self.parameter}" if self.parameter else "")


class _Reference(NamedTuple):
    scope: str
    selector: str


class _Macro(NamedTuple):
    name: str


class _Names(config_parser.ParserDelegate):
    """Keeps names as names: nothing is imported or looked up while reading."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return _Reference(scope, selector)

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)


@dataclass
class Source:
    """What gin files and flags say, and where.

    Attributes:
      search_paths: folders where files are looked up after the current one.
      statements: macros defined and parameters bound, in order.
      imports: each name that an import makes, with gin's statement.
      import_places: the place of each import.
      includes: the files named by `include`.
    """

    search_paths: Sequence[str] = ()
    statements: list[Binding] = field(default_factory=list)
    imports: dict[str, Any] = field(default_factory=dict)
    import_places: dict[str, str] = field(default_factory=dict)
    includes: list[str] = field(default_factory=list)
    _of_files: dict[str, set[str]] = field(default_factory=dict)

    @property
    def bindings(self) -> list[Binding]:
        """The parameters bound, in order."""
        return [each for each in self.statements if each.parameter]

    @property
    def macros(self) -> dict[str, str]:
        """Each macro defined, with its last place."""
        return {each.name: each.place for each in self.statements if not each.parameter}

    @property
    def used_macros(self) -> dict[str, str]:
        """Each macro that a value refers to, with its place; a value that is replaced uses none."""
        latest = {each[:3]: each for each in self.statements}
        return {name: each.place for each in latest.values() for name in each.macros}

    def unread(self, macro: str) -> bool:
        """Whether a user has defined a macro that no value refers to."""
        defined = [each for each in self.statements if not each.parameter and each.name == macro]
        return macro not in self.used_macros and not all(each.carried for each in defined)

    def asked_for(self, macro: str) -> bool:
        """Whether a file that t5lite carries refers to a macro."""
        return any(each.carried and macro in each.macros for each in self.statements)

    def read_file(self, name: str, *, place: str = "", within: tuple[Path, ...] = ()) -> None:
        """Notes what a file and its includes say.

        Args:
          name: the file, as `find` takes it.
          place: where it was named, for errors.
          within: the files that include it.

        Raises: InputError if there is no such file, it includes itself, or it is not gin.
        """
        path = find(name, self.search_paths)
        if path is None:
            raise at(place, unknown("file", name, _known_files(name, self.search_paths)))
        if path in within:
            raise at(place, InputError(f"{name} includes itself"))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise at(place, InputError(f"cannot read {path}: {error}")) from error
        first = len(self.statements)
        for statement, line in _statements(text, str(path)):
            here = f"{path}:{line}"
            if isinstance(statement, config_parser.IncludeStatement):
                self.includes.append(statement.filename)
                self.read_file(statement.filename, place=here, within=(*within, path))
            else:
                self._note(statement, here, carried=_is_carried(path))
        end = len(self.statements)
        for number in range(first, end):
            known = self.statements[number]
            self.statements[number] = known._replace(ends=(*known.ends, end))

    def read_flag(self, binding: str, *, place: str) -> None:
        """Notes what one command-line binding, `NAME=value`, says."""
        for statement, _ in _statements(binding, flag=place):
            self._note(statement, place)

    def _note(self, statement: Any, place: str, *, carried: bool = False) -> None:
        if isinstance(statement, config_parser.ImportStatement):
            self.imports[statement.bound_name()] = statement
            self.import_places[statement.bound_name()] = place
            self._of_files.setdefault(place.rpartition(":")[0], set()).add(statement.bound_name())
        elif isinstance(statement, config_parser.BindingStatement):
            scope, selector, parameter, value, _ = statement
            names = list(_names(value))
            self.statements.append(
                Binding(
                    scope or "",
                    selector,
                    parameter or "",
                    place,
                    references=tuple(each[:] for each in names if isinstance(each, _Reference)),
                    macros=tuple(each.name for each in names if isinstance(each, _Macro)),
                    macro=value.name if isinstance(value, _Macro) else "",
                    carried=carried,
                )
            )

    def place_of(self, configurable: str, field: str | None) -> str:
        """Returns the place to blame for an error raised by a call to `configurable`, or "".

        That is the binding of the field; without one, the place where `configurable` is referred
        to. A value that is a macro is blamed where that is defined.

        Args:
          configurable: its name.
          field: of the error: `name` of the configurable's parameter or `Class.name` of another's.
        """
        owner, _, name = (field or "").rpartition(".")
        places = [self._place_of(owner, name)] if owner not in ("", configurable) else []
        places += [self._place_of(configurable, name if owner in ("", configurable) else "")]
        return next(filter(None, places), "")

    def _place_of(self, configurable: str, field: str) -> str:
        bound = [item for item in self.bindings if item.selector.split(".")[-1] == configurable]
        for item in reversed(bound):
            if field == item.parameter:
                return self._origin(item).place
        built_at = [
            item.place
            for item in self.statements
            for _, selector in item.references
            if selector.split(".")[-1] == configurable
        ]
        if built_at and len({item.parameter for item in bound}) == 1:
            return bound[-1].place
        return built_at[-1] if built_at else ""

    def _origin(self, binding: Binding) -> Binding:
        """Returns where a value comes from that may be a macro, and that again."""
        macros = {each.name: each for each in self.statements if not each.parameter}
        for _ in self.statements:  # at most as often: a macro may refer to itself
            if binding.macro not in macros:
                break
            binding = macros[binding.macro]
        return binding

    def imports_at(self, place: str) -> set[str]:
        """Returns the imported names that a statement may use: its file's; of a flag, all."""
        own = self._of_files.get(place.rpartition(":")[0], set())
        return set(self.imports) if place.startswith("--gin.") else own

    def target(self, selector: str) -> Any:
        """Returns what a selector names; the last of its names if no import leads there."""
        found, missing = self.resolve(selector)
        return selector.rpartition(".")[2] if missing else found

    def resolve(self, selector: str) -> tuple[Any, str]:
        """Follows a selector through the imports, as far as it goes.

        Returns: the last object there is, and the first name that is not there ("" if all are).
        """
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
    """Finds a gin file.

    Args:
      name: a path. `configs/...` and `gin/...` are also found inside t5lite, from any folder, and
        `package/file.gin` inside a Python package.
      search_paths: folders to look in after the current one.

    Returns: the path of the first file there is, or None.
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
    """Whether t5lite carries a file, or a user wrote it."""
    roots = [root.resolve() for kind in ("configs", "gin") for root in carried(kind)]
    return any(path.resolve().is_relative_to(root) for root in roots)


def carried(kind: str) -> tuple[Path, Path]:
    """Returns where `configs` or `gin` lies in an installed wheel, and in a checkout."""
    return _PACKAGE / f"_{kind}", _PACKAGE.parent / kind


def _known_files(name: str, search_paths: Iterable[str]) -> Iterator[str]:
    for kind in ("configs", "gin"):
        for root in carried(kind):
            yield from (str(kind / path.relative_to(root)) for path in root.rglob("*.gin"))
    for folder in ("", *search_paths):
        for path in Path(folder, name).parent.glob("*.gin"):
            yield str(path.relative_to(folder))


def _statements(text: str, file: str = "", *, flag: str = "") -> Iterator[tuple[Any, int]]:
    """Parses gin text without binding it.

    Yields: each statement and its line.
    Raises: InputError at the place of a syntax error.
    """
    try:
        for statement in config_parser.ConfigParser(text, _Names()):
            yield statement, statement.location.line_num
    except (SyntaxError, tokenize.TokenError) as error:
        line = (error.lineno if isinstance(error, SyntaxError) else _unclosed(text)) or 1
        problem = str(error.args[0]).partition("\n")[0].rstrip(".")
        if "malformed node" in problem:  # ast's words for a bare name
            problem = "Unable to parse value"
        content = text.splitlines()[line - 1].strip()
        hint = "values are Python literals, @function, @function() or %MACRO"
        name, _, value = (part.strip() for part in content.partition("="))
        if re.fullmatch(r"[\w./~:-]+", value):
            hint = f"strings take quotes: {name} = '{value}'"
            if flag:  # quoted again, for the shell
                hint = f"strings take quotes: --gin.{name}=\"'{value}'\""
        place = flag or f"{file}:{line}"
        raise InputError(f"{place}: not gin: {problem}\n  {content}\n  {hint}") from error


def _unclosed(text: str) -> int:
    """Returns the line of the last bracket left open, which tokenize only reports at the end."""
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


def at(place: str, error: InputError) -> InputError:
    """Returns the error with its place in front, if there is one."""
    return InputError(f"{place}: {error}", field=error.field) if place else error
