"""The command line: `t5lite VERB`, a table from verbs to the modules of `t5lite.commands`.

Exit codes: 0 success, 1 failure, 2 bad input, 130 interrupted; a command may return its own.
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
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\n  flags: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (None: the shell's, without `t5lite`) and returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(arguments) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        with contextlib.suppress(OSError):  # so that Python's exit prints no error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, debug="--debug" in arguments)


def _report(error: BaseException, *, debug: bool) -> int:
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

    # A configuration may import the user's modules, from the current folder.
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

    _cache_compilations()
    from t5lite import configuration

    search_paths = [path for paths in options.gin_search_paths for path in paths.split(",")]
    with contextlib.nullcontext() if options.debug else _quiet():
        if options.module:
            from t5lite.data.importing import import_user_module

            for name in options.module:
                import_user_module(name)
        if getattr(options, "layout", None) is not None:
            options.layout = configuration.layout_of(options.layout, search_paths)
        configured = configuration.parse(options.gin_file, bindings, search_paths)
        if verb in _WITHOUT_GIN and configured.source.statements:
            raise InputError(
                f"{verb} reads no gin configuration; leave --gin_file and --gin.NAME out"
            )
        # With a configuration, fields are parameters bound there.
        spelled = options_as_flags(() if configured.source.statements else flags)
        with _processes(options, preemptible=verb == "train"), spelled:
            return command.run(options, configured)


@contextlib.contextmanager
def _processes(options: argparse.Namespace, *, preemptible: bool) -> Iterator[None]:
    """Joins this process with the others of its program, if any."""
    if not hasattr(options, "coordinator_address"):
        yield
        return
    from t5lite.parallel import group, joined

    members = group(options.coordinator_address, options.num_processes, options.process_id)
    try:
        with joined(members, timeout=options.coordinator_timeout, preemptible=preemptible):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if members is None:
            raise
        # Python's exit would wait for the other processes in vain.
        code = _report(error, debug=options.debug)
        sys.stderr.flush()
        os._exit(code)


def _cache_compilations() -> None:
    """Configures JAX's compilation cache, before JAX is imported; a folder per kind of processor.

    JAX_COMPILATION_CACHE_DIR moves it, JAX_ENABLE_COMPILATION_CACHE=false disables it.
    """
    from t5lite.data.paths import cache_folder

    kind = platform.machine() + platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind += next(line for line in lines if line.startswith(("flags", "Features")))
    folder = cache_folder() / "compiled" / hashlib.sha256(kind.encode()).hexdigest()[:8]
    with contextlib.suppress(OSError):  # no cache on a read-only disk
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    # Most functions of decoding compile in less than JAX's default limit of a second.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences logs of failures that are reported anyway; warnings print one line."""
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
    """Returns the arguments after the verb without `--gin.NAME=value`, and these as `NAME=value`.

    Raises: InputError if a binding has no value.
    """
    rest, bindings = [], []
    for argument in arguments:
        if not argument.startswith("--gin."):
            rest.append(argument)
        elif "=" in argument:
            bindings.append(argument.removeprefix("--gin."))
        else:
            raise InputError(f"{argument} has no value; write {argument}=VALUE, in one word")
    return rest, bindings


def _parser(verb: str) -> _Parser:
    parser = _Parser(prog=f"t5lite {verb}", description=COMMANDS[verb], allow_abbrev=False)
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file: in this folder, --gin_search_paths or t5lite itself; repeatable, later "
        "files override earlier ones",
    )
    parser.add_argument(
        "--gin_search_paths",
        action="append",
        default=[],
        metavar="FOLDERS",
        help="comma-separated folders, searched for gin files and their includes",
    )
    # For --help alone: split_bindings has removed these flags.
    parser.add_argument(
        "--gin.NAME",
        dest="_",
        metavar="VALUE",
        help="override a macro or a parameter of the files: --gin.TRAIN_STEPS=100, "
        "--gin.train.seed=1, --gin.MODEL_DIR=\"'/tmp/run'\" (strings keep their quotes)",
    )
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="NAME",
        help="import a module of your own first, with blocks, adapters or tunings (repeatable)",
    )
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
    """Returns the message of an unexpected error, and the path of its traceback."""
    text = str(error).strip() or "no message"
    message = text if isinstance(error, RunError) else text.splitlines()[0]
    path = _written("".join(traceback.format_exception(error)))
    hint = f"traceback: {path} (or add --debug)" if path else "add --debug to see the traceback"
    message = _shortened(f"t5lite: failed: {type(error).__name__}: {message}", _ERROR_LINES - 1)
    return f"{message}\n  {hint}"


def _shortened(message: str, num_lines: int) -> str:
    """Returns a message in few lines: the first ones, the path of all, and the last, the advice."""
    lines = message.splitlines()
    if len(lines) <= num_lines:
        return message
    path = _written(message + "\n")
    rest = f"all {len(lines)} lines: {path}" if path else "add --debug to see the rest"
    return "\n".join([*lines[: num_lines - 2], f"  {rest}", lines[-1]])


def _written(text: str) -> str | None:
    """Writes a text to a temporary file; returns its path, None if that fails."""
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="t5lite-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return path
    return None


if __name__ == "__main__":
    sys.exit(main())
