"""Names of options as a command line takes them."""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from t5lite.errors import InputError

_advice_typed: ContextVar[Callable[[str], str]] = ContextVar("_advice_typed", default=str)


def as_typed(error: Exception) -> str:
    """Returns a line's error with its advice as flags, inside `naming_options`.

    Other names may be the line's own columns, as in `infer`.
    """
    return _advice_typed.get()(str(error))


@contextlib.contextmanager
def naming_options(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Has errors name options as a command line takes them: `truncate=True` is `--truncate`.

    Names of several words are always options; others where a value follows.
    """
    flags = {each.dest: each.nargs == 0 for each in parser._actions if each.option_strings}
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    named = re.compile(rf"(?<![\w.'/-])({names})\b(?:( ?= ?)(True\b)?(?=\S| |$))?")

    def flag(found: re.Match) -> str:
        name, equals, true = found.groups()
        if flags[name] and true:
            return f"--{name}"
        return f"--{found[0]}" if equals or "_" in name else found[0]

    def typed(message: str) -> str:
        return "\n".join(
            line if "gin" in line.partition(": ")[0] else named.sub(flag, line)
            for line in message.splitlines()
        )

    switches = "|".join(re.escape(name) for name, is_switch in flags.items() if is_switch)
    advised = re.compile(rf"\bset ({switches})=True\b")
    before = _advice_typed.set(lambda message: advised.sub(r"set --\1", message))
    try:
        yield
    except InputError as error:
        if (message := typed(str(error))) == str(error):
            raise
        raise InputError(message, field=error.field) from error
    finally:
        _advice_typed.reset(before)
