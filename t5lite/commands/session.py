"""A terminal session: each line is answered as it is written, whatever came before it."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from t5lite.data.files.readers import Line
from t5lite.errors import InputError, unknown
from t5lite.inference.options import FLAGS, Options

if TYPE_CHECKING:
    from t5lite.data.files.line_texts import LineTexts
    from t5lite.inference.generator import Generator

HELP = """\
TEXT             is answered; put a space before one that begins with /
/set NAME VALUE  changes an option: /set temperature 0.7, /set stop ["."]; no VALUE: as it was
/options         shows them
Ctrl-C           stops an answer
Ctrl-D           ends the session"""


def converse(generator: "Generator", prompts: "LineTexts", chosen: dict[str, Any]) -> int:
    """Answers what is typed until its end; returns the exit code.

    Args:
      generator: answers.
      prompts: makes texts of lines.
      chosen: options that differ from the default, by name.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` line editing and a history

    print(f"{generator.loaded.folder}; /help, Ctrl-D ends")
    number = 0  # a text that is asked again is drawn anew
    while True:
        try:
            line = input("> ")
            if line.startswith("/"):
                changed = command(line, chosen, generator.options)
                generator.check(generator.options(changed))
                chosen = changed
            elif line.strip():
                text = prompts.text(Line(number + 1, 0, 0, {"text": line}))
                question = generator.read(text, generator.options(chosen), number=number)
                number += 1
                with _interruptible() as checked:
                    if generator.streams(question.options):
                        show(checked(generator.stream(question)))
                    else:
                        for answer in generator.answers([question])[0]:
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
    """Lets Ctrl-C end what is inside, also where its exception is lost.

    Libraries drop an exception that is raised while they call Python, in a destructor for one.
    What this gives passes the pieces of an answer on, until Ctrl-C was pressed.
    """
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
    """Does what a line that begins with `/` says, and returns the options from then on.

    Raises:
      InputError: an unknown command or option, or a value that it cannot have.
    """
    name, *rest = line.split(maxsplit=2)
    if name == "/help":
        print(HELP)
    elif name == "/options":
        options = options_of(chosen)
        for option in FLAGS:
            print(f"{'*' if option in chosen else ' '} {option} = {getattr(options, option)!r}")
    elif name == "/set" and rest:
        option, *value = rest
        if option not in FLAGS:
            raise unknown("option", option, FLAGS)
        others = {key: value for key, value in chosen.items() if key != option}
        return others | ({option: _value(value[0])} if value else {})
    elif name == "/set":
        raise InputError("/set needs a name and a value: /set temperature 0.7")
    else:
        raise unknown("command", name, ("/help", "/options", "/set"))
    return chosen


def _value(text: str) -> Any:
    """Returns what JSON says, and otherwise the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def show(pieces: Iterable[str]) -> None:
    """Prints an answer as it is written."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
