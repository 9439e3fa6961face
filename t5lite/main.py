"""The command line: `t5lite VERB`, a table from verbs to the modules of `t5lite.commands`.

Exit codes: 0 done, 1 a failure, 2 bad input, 130 interrupted; a command may choose its own.
"""

import argparse
import contextlib
import hashlib
import importlib
import logging
import os
import platform
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import t5lite
from t5lite.errors import InputError, RunError, options_as_flags, unknown

COMMANDS = {
    "train": "train a model from a configuration, or resume a run",
    "evaluate": "evaluate a checkpoint on held-out data",
    "generate": "generate text with a trained model",
    "infer": "generate for a file or a task, as JSON lines; resumable",
    "predict": "predict with a trained head: classes, numbers, tags, answer spans",
    "score": "log-probabilities and perplexity of texts",
    "embed": "embed texts, and find the nearest neighbours of a query",
    "convert": "convert a checkpoint between t5lite, Hugging Face and T5X",
    "adapt": "initialise a model from another: topology, experts, vocabulary",
    "cache": "tokenise, prepare and pack a run's data once",
    "inspect": "show a run's data, model, memory and cost before training",
    "plan": "compile a run ahead of time for a TPU slice: memory, time, cost",
    "bench": "benchmark a run's training steps on the local devices",
    "report": "draw one or more runs as an HTML page",
}
_WITHOUT_GIN = ("generate", "predict", "score", "embed", "convert", "adapt", "report")
_ERROR_LINES = 5


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints in the form every other error has."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\n  flags: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
      arguments: what follows `t5lite`; None takes them from the shell.

    Returns: the exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(arguments) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads, `head` for one, has seen enough
        with contextlib.suppress(OSError):  # nothing is left to be said when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _say(error, debug="--debug" in arguments)


def _say(error: BaseException, *, debug: bool) -> int:
    """Prints what went wrong and returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("t5lite: interrupted", file=sys.stderr)
        return 130
    if debug:
        traceback.print_exception(error)
    bad_input = isinstance(error, InputError)
    message = _shortened(f"t5lite: {error}", _ERROR_LINES) if bad_input else _failure(error)
    print(message, file=sys.stderr)
    return 2 if bad_input else 1


def _dispatch(arguments: list[str]) -> int | None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        print(f"t5lite {t5lite.__version__}")
        return 0
    if verb.startswith("-"):
        raise InputError(f"the verb comes first: t5lite {'|'.join(COMMANDS)} {verb} ...")
    if verb not in COMMANDS:
        raise unknown("verb", verb, COMMANDS)

    # A configuration may import modules of the user's own, from where the command was called.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    parser = _parser(verb)
    command = importlib.import_module(f"t5lite.commands.{verb}")
    command.add_arguments(parser)
    rest, bindings = split_bindings(rest)
    options, extra = parser.parse_known_args(rest)
    options.bindings = bindings
    flags = re.findall(r"--[\w.-]+", parser.format_usage())
    if extra:
        raise unknown("argument", extra[0].partition("=")[0], flags)

    _keep_compilations()
    from t5lite import configuration

    search_paths = [path for paths in options.gin_search_paths for path in paths.split(",")]
    with contextlib.nullcontext() if options.debug else _quiet():
        if getattr(options, "layout", None) is not None:
            options.layout = configuration.layout_of(options.layout, search_paths)
        configured = configuration.parse(options.gin_file, bindings, search_paths)
        if verb in _WITHOUT_GIN and configured.source.statements:
            raise InputError(
                f"{verb} reads no gin configuration; leave --gin_file and --gin.NAME out"
            )
        # With a configuration, a name is that of a parameter there.
        spelled = options_as_flags(() if configured.source.statements else flags)
        with _processes(options, preemptible=verb == "train"), spelled:
            return command.run(options, configured)


@contextlib.contextmanager
def _processes(options: argparse.Namespace, *, preemptible: bool) -> Iterator[None]:
    """Joins the processes that are one program with this one, if it is not alone."""
    if not hasattr(options, "coordinator_address"):
        yield
        return
    from t5lite.parallel import group, joined

    which = group(options.coordinator_address, options.num_processes, options.process_id)
    try:
        with joined(which, timeout=options.coordinator_timeout, preemptible=preemptible):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if which is None:
            raise
        # At its end, Python would wait for the others in vain.
        code = _say(error, debug=options.debug)
        sys.stderr.flush()
        os._exit(code)


def _keep_compilations() -> None:
    """Lets JAX, which is not imported yet, find what an earlier command has compiled.

    A folder for each kind of processor, whose instructions the compiled code is made of.
    JAX_COMPILATION_CACHE_DIR is another place, JAX_ENABLE_COMPILATION_CACHE=false none.
    """
    from t5lite.data.paths import cache_folder

    kind = platform.machine() + platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind += next(line for line in lines if line.startswith(("flags", "Features")))
    folder = cache_folder() / "compiled" / hashlib.sha256(kind.encode()).hexdigest()[:8]
    with contextlib.suppress(OSError):  # a disk that cannot be written to keeps nothing
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    # Most that decoding compiles takes less than JAX's own limit of a second.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to messages: libraries log no failure that is said anyway, warnings show no source."""
    loggers = [logging.getLogger(library) for library in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    showwarning = warnings.showwarning
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    warnings.showwarning = _note
    try:
        yield
    finally:
        sys.unraisablehook, warnings.showwarning = hook, showwarning
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _note(message: Warning | str, *_: object, **__: object) -> None:
    print(f"t5lite: note: {message}", file=sys.stderr)


def split_bindings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the `--gin.NAME=value` flags out of a command line.

    Args:
      arguments: what follows the verb.

    Returns: the other arguments, and the bindings as `NAME=value`.
    Raises: InputError if a binding has no value.
    """
    others, bindings = [], []
    for argument in arguments:
        if not argument.startswith("--gin."):
            others.append(argument)
        elif "=" in argument:
            bindings.append(argument.removeprefix("--gin."))
        else:
            raise InputError(f"{argument} has no value; write {argument}=VALUE, in one word")
    return others, bindings


def _parser(verb: str) -> _Parser:
    parser = _Parser(prog=f"t5lite {verb}", description=COMMANDS[verb], allow_abbrev=False)
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file, found from here, in --gin_search_paths or inside t5lite; repeatable, "
        "later files win",
    )
    parser.add_argument(
        "--gin_search_paths",
        action="append",
        default=[],
        metavar="FOLDERS",
        help="folders, comma-separated, where gin files and their includes are looked up",
    )
    # Listed for the reader alone: split_bindings has taken these out.
    parser.add_argument(
        "--gin.NAME",
        dest="_",
        metavar="VALUE",
        help="a macro or a parameter set over the files: --gin.TRAIN_STEPS=100, "
        "--gin.train.seed=1, --gin.MODEL_DIR=\"'/tmp/run'\" (strings keep their quotes)",
    )
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser


def _help() -> str:
    verbs = "\n".join(f"  {verb:10}{line}" for verb, line in COMMANDS.items())
    return (
        "usage: t5lite VERB [--gin_file=FILE ...] [--gin.NAME=VALUE ...] [flags]\n\n"
        f"{verbs}\n\n"
        "flags of a verb: t5lite VERB --help    version: t5lite --version\n"
        "example: t5lite train --gin_file=configs/quickstart.gin"
    )


def _failure(error: BaseException) -> str:
    """Returns what went wrong without the user's doing, and where its traceback is.

    Of an error that is not one of ours a line is enough: the rest is for those who read the code.
    """
    text = str(error).strip() or "no message"
    message = text if isinstance(error, RunError) else text.splitlines()[0]
    path = _kept("".join(traceback.format_exception(error)))
    hint = f"traceback: {path} (or add --debug)" if path else "add --debug to see the traceback"
    message = _shortened(f"t5lite: failed: {type(error).__name__}: {message}", _ERROR_LINES - 1)
    return f"{message}\n  {hint}"


def _shortened(message: str, num_lines: int) -> str:
    """Returns a message in few lines: its first ones, where all are, and its last, the advice."""
    lines = message.splitlines()
    if len(lines) <= num_lines:
        return message
    path = _kept(message + "\n")
    rest = f"all {len(lines)} lines: {path}" if path else "add --debug to see the rest"
    return "\n".join([*lines[: num_lines - 2], f"  {rest}", lines[-1]])


def _kept(text: str) -> str | None:
    """Writes what is too long for a terminal to a file of its own, and returns its path."""
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="t5lite-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return path
    return None


if __name__ == "__main__":
    sys.exit(main())
