"""A terminal session: responds to each typed line, independently of earlier ones."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t5lite.data.files.readers import Line
from t5lite.errors import InputError, unknown
from t5lite.inference.options import FLAGS, Options

if TYPE_CHECKING:
    from t5lite.data.files.line_texts import LineTexts
    from t5lite.inference.answer import Answer
    from t5lite.inference.request import Reader, Request

HELP = """\
TEXT             generates a response; type a space before a text that begins with /
/set NAME VALUE  sets an option: /set temperature 0.7, /set stop ["."]; without VALUE, resets it
/options         lists the options
Ctrl-C           stops a response
Ctrl-D           ends the session"""


def converse(
    reader: "Reader",
    texts: "LineTexts",
    chosen: dict[str, Any],
    *,
    generate: Callable[[list["Request"]], Sequence["list[Answer] | InputError"]],
    stream: Callable[["Request"], Iterator[str]],
) -> int:
    """A terminal session: responds to each line alone; returns the exit code.

    Args:
      chosen: options that differ from the defaults, by name.
      generate, stream: `Engine.outcomes` and `Engine.stream` of the model.
    """
    from t5lite.inference.request import Request

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` line editing and a history

    print(f"{reader.folder}; /help, Ctrl-D ends")
    number = 0  # a text typed twice is sampled with different seeds
    while True:
        try:
            line = input("> ")
            if line.startswith("/"):
                changed = command(line, chosen, reader.options)
                reader.check(reader.options(changed))
                chosen = changed
            elif line.strip():
                text = texts.text(Line(number + 1, 0, 0, {"text": line}))
                request = Request.from_text(text, reader, reader.options(chosen), number=number)
                number += 1
                with _interruptible() as checked:
                    if reader.streams(request.options):
                        show(checked(stream(request)))
                    else:
                        (outcome,) = generate([request])
                        if isinstance(outcome, InputError):
                            raise outcome
                        for answer in outcome:
                            print(answer.text)
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(stopped)")
        except (InputError, UnicodeError) as error:
            print(f"t5lite: {error}", file=sys.stderr)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[Iterator[str]], Iterator[str]]]:
    """Yields a wrapper of a response's pieces that Ctrl-C stops, even in a library's destructor."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def checked(pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            if pressed:
                raise KeyboardInterrupt
            yield piece

    before = signal.signal(signal.SIGINT, press)
    try:
        yield checked
    finally:
        signal.signal(signal.SIGINT, before)


def command(
    line: str,
    chosen: dict[str, Any],
    options_of: Callable[[Mapping[str, Any]], Options] = lambda chosen: Options(**chosen),
) -> dict[str, Any]:
    """Runs a line that begins with `/`, and returns the chosen options; InputError if invalid."""
    name, *rest = line.split(maxsplit=2)
    if name == "/help":
        print(HELP)
    elif name == "/options":
        options = options_of(chosen)
        for option in FLAGS:
            print(f"{'*' if option in chosen else ' '} {option} = {getattr(options, option)!r}")
    elif name == "/set" and rest:
        option, *words = rest
        if option not in FLAGS:
            raise unknown("option", option, FLAGS)
        unset = {name: value for name, value in chosen.items() if name != option}
        return unset | ({option: _value(words[0])} if words else {})
    elif name == "/set":
        raise InputError("/set needs a name and a value: /set temperature 0.7")
    else:
        raise unknown("command", name, ("/help", "/options", "/set"))
    return chosen


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def show(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
