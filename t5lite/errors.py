"""Errors: bad input, failed runs, and messages with the nearest names."""

import contextlib
import difflib
import numbers
from collections.abc import Collection, Iterable, Iterator
from typing import Any

_flags: Collection[str] = ()  # of the command line that is being run


class InputError(ValueError):
    """Bad input: names the field, the value and the fix. The command line exits with 2.

    Args:
      message: for the user.
      field: the parameter to blame: `name` of the called function, or `Class.name` of another; the
        command line locates it in the gin files. None for none.
    """

    def __init__(self, message: str, *, field: str | None = None):
        super().__init__(message)
        self.field = field

    @property
    def parameter(self) -> str:
        return (self.field or "").rpartition(".")[2]

    def called(self, name: str) -> "InputError":
        """Returns the error with `name` in place of its field, if the message begins with it."""
        for spelling in filter(None, (self.field, self.parameter)):
            rest = str(self).removeprefix(spelling)
            if rest != str(self) and not rest[:1].isidentifier():
                return InputError(f"{name}{rest}", field=self.field)
        return self


def require_integer(name: str, value: object, *, least: int = 1, field: str | None = None) -> None:
    """Refuses anything but an integer of at least `least`; `field` as for `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name} is {value!r}; it must be an integer of at least {least}", field=field or name
        )


def check_fields(owner: object, **rules: Any) -> None:
    """Refuses an object whose fields break rules of `check_value`; errors name `Class.field`."""
    for name, rule in rules.items():
        check_value(f"{type(owner).__name__}.{name}", getattr(owner, name), rule)


def check_value(field: str, value: Any, rule: Any) -> None:
    """Raises an InputError with field, value and rule for a value that breaks the rule.

    Args:
      field: see `InputError`.
      rule: `bool`; a tuple of the allowed values; or a kind and an interval, such as
        `"number in [0, 1)"` or `"integer in [1, inf)"`, with ` or None` where None is allowed.
    """
    if rule is bool:
        valid, text = isinstance(value, bool), "True or False"
    elif isinstance(rule, tuple):
        valid, text = value in rule, " or ".join(map(repr, rule))
    else:
        valid, text = _in_interval(value, *rule.removesuffix(" or None").split(" in "))
        if rule.endswith(" or None"):
            valid, text = valid or value is None, f"{text}, or None"
    if not valid:
        raise InputError(f"{field} = {value!r}: must be {text}", field=field)


def _in_interval(value: Any, kind: str, interval: str) -> tuple[bool, str]:
    """Returns whether a value is a number of that kind in an interval, and the rule in words."""
    low, high = map(float, interval[1:-1].split(","))
    numeric = numbers.Integral if kind == "integer" else numbers.Real
    valid = isinstance(value, numeric) and not isinstance(value, bool)
    if valid:
        above = value > low or (value == low and interval[0] == "[")
        valid = above and (value < high or (value == high and interval[-1] == "]"))
    text = "a whole number" if kind == "integer" else "a number"
    if high < float("inf"):
        text += f" in {interval}"
    else:
        text += f" of at least {low:g}" if interval[0] == "[" else f" above {low:g}"
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        text += f"; write {int(value)}"
    return valid, text


class RunError(RuntimeError):
    """A failure whose message says the next step. The command line exits with 1."""


@contextlib.contextmanager
def options_as_flags(flags: Collection[str]) -> Iterator[None]:
    """Spells options as flags of a command line, such as `--truncate`, in errors inside."""
    global _flags
    before, _flags = _flags, flags
    try:
        yield
    except InputError as error:
        flag = f"--{error.parameter}"
        raise error.called(flag) if flag in flags else error  # noqa: B904
    finally:
        _flags = before


def option(name: str, value: object = None) -> str:
    """Returns an option as the user types it: `truncate=True`, or a flag; None: its name alone."""
    flag = f"--{name}"
    if flag not in _flags:
        return name if value is None else f"{name}={value!r}"
    return flag if value is None or value is True else f"{flag}={value}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns `; did you mean …?` with the nearest name, or nothing if none is near."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def unknown(
    kind: str, name: object, names: Iterable[str], *, field: str | None = None
) -> InputError:
    """Returns the error for a name that does not exist, with the nearest ones that do.

    Args:
      kind: of the name, e.g. `"preset"`.
      field: the parameter to blame, see `InputError`.
    """
    names = sorted(set(names))
    nearest = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if nearest:
        likely = " or ".join(nearest)
        return InputError(f"unknown {kind} {str(name)!r}; did you mean {likely}?", field=field)
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return InputError(f"unknown {kind} {str(name)!r}; known: {listed or 'none'}", field=field)
