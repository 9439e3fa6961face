"""The embedded corpus as tables in files, to try `FileData` on real text before one's own.

They are written on first use from the running Python's standard library, like `python_docs`, and
differ by Python version as it does.
"""

import ast
import builtins
import csv
import functools
import hashlib
import io
import json
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from t5lite.data.demo import python_docs
from t5lite.data.paths import cache_folder, write_whole

_FORMAT = 1
_WORD = re.compile(r"\w+|[^\w\s]")
_MAX_WORDS = 256
_RUN = 8  # words, which texts of their own rarely share


class Documented(NamedTuple):
    """A docstring, the top-level module it is from, and its function's parameters, if any."""

    docstring: str
    module: str
    parameters: tuple[str, ...]


def modules_csv(*, num_modules: int = 16) -> str:
    """Returns a CSV file: which standard-library module does this docstring come from?

    Args:
      num_modules: how many of the modules with the most docstrings; at least 2.

    Returns:
      The path of a file with the columns `docstring` and `module`.
    """

    def write() -> str:
        found = _documented()
        counts = Counter(item.module for item in found)
        chosen = {module for module, _ in counts.most_common(num_modules)}
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(["docstring", "module"])
        table.writerows([item.docstring, item.module] for item in found if item.module in chosen)
        return text.getvalue()

    return _written(f"modules_{num_modules}.csv", write)


def names_jsonl() -> str:
    """Returns a JSON-lines file: which words of a function's docstring name something of Python's?

    The tags are what a look-up gives, not what a person would: `PARAMETER` for a parameter of the
    function, else `EXCEPTION`, `TYPE` or `MODULE` for a name of the language or its library, else
    `O` (distant supervision: Mintz et al. 2009, P09-1113).

    Returns:
      The path of a file with the columns `words` and `tags`, lists of equal length. Texts without
      any such name are left out.
    """

    def write() -> str:
        lines = []
        for item in _documented():
            words = _WORD.findall(item.docstring)[:_MAX_WORDS]
            tags = [_tag(word, item.parameters) for word in words]
            if item.parameters and set(tags) != {"O"}:
                lines.append(json.dumps({"words": words, "tags": tags}, ensure_ascii=False) + "\n")
        return "".join(lines)

    return _written("names.jsonl", write)


def functions_jsonl() -> str:
    """Returns a JSON-lines file of functions' docstrings, to count and to find parameters in.

    Returns:
      The path of a file with the columns `docstring`, `num_parameters`, and `answer` and `start`:
      the parameter that the docstring mentions first, and at which character. Functions whose
      docstring mentions none are left out.
    """

    def write() -> str:
        lines = []
        for item in _documented():
            found = (each for each in _WORD.finditer(item.docstring) if each[0] in item.parameters)
            first = next(found, None)
            if first is not None:
                row = {
                    "docstring": item.docstring,
                    "num_parameters": len(item.parameters),
                    "answer": first[0],
                    "start": first.start(),
                }
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        return "".join(lines)

    return _written("functions.jsonl", write)


def documents_jsonl() -> str:
    """Returns a JSON-lines file of the corpus's training documents, with the column `text`."""
    return _written("documents.jsonl", lambda: _lines(python_docs.documents("train")))


def held_out_documents_jsonl() -> str:
    """Returns a JSON-lines file of documents to test on, with the column `text`.

    These are the corpus's validation documents without near copies of training documents: a fifth
    of them, docstrings that modules have from each other, would reward memory.
    """

    def write() -> str:
        return _lines(novel(python_docs.documents("validation"), python_docs.documents("train")))

    return _written("held_out_documents.jsonl", write)


def novel(texts: Sequence[str], known: Iterable[str], *, most_shared: float = 0.2) -> list[str]:
    """Returns the texts that are not near copies of known ones.

    Args:
      texts: in any order, which is kept.
      known: what was trained on.
      most_shared: the share, in [0, 1], of a text's runs of eight words that known texts may have.

    Source: Lee et al. 2022, arXiv:2107.06499, §4 (near copies of held-out text in training text).
    """
    seen: set[tuple[str, ...]] = set()
    for text in known:
        seen |= _runs(text)

    def shared(text: str) -> float:
        runs = _runs(text)
        return len(runs & seen) / len(runs)

    return [text for text in texts if shared(text) <= most_shared]


def _runs(text: str) -> set[tuple[str, ...]]:
    """Returns all runs of `_RUN` words of a text; of a shorter text the one run that it is."""
    words = _WORD.findall(text)
    return {tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))}


def _lines(texts: Iterable[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def _tag(word: str, parameters: tuple[str, ...]) -> str:
    if word in parameters:
        return "PARAMETER"
    return _known_names().get(word, "O")


@functools.cache
def _known_names() -> dict[str, str]:
    """Names of the language and its library that are hardly ever other words."""
    names = {name: "MODULE" for name in sys.stdlib_module_names if not name.startswith("_")}
    for name, value in vars(builtins).items():
        if isinstance(value, type):
            names[name] = "EXCEPTION" if issubclass(value, BaseException) else "TYPE"
    # Modules whose name is an everyday word of documentation.
    for word in ("code", "this", "token", "test", "types", "string", "time", "select", "copy"):
        names.pop(word, None)
    for word in ("calendar", "queue", "platform", "profile", "statistics", "operator", "symbol"):
        names.pop(word, None)
    return names


@functools.cache
def _documented() -> tuple[Documented, ...]:
    """Every docstring of the standard library once, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Documented] = {}
    for path in python_docs.library_files(root):
        module = path.relative_to(root).with_suffix("").parts[0]
        for node, docstring in python_docs.docstrings(path):
            if len(docstring) >= python_docs.MIN_CHARACTERS:
                found.setdefault(docstring, Documented(docstring, module, _parameters(node)))
    return tuple(found.values())


def _parameters(node: ast.AST) -> tuple[str, ...]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ()
    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return tuple(each.arg for each in every if each.arg not in ("self", "cls"))


def _written(name: str, write: Callable[[], str]) -> str:
    """Returns the path of a file in the cache, written if it is not there yet."""
    digest = hashlib.sha256(f"{_FORMAT} {python_docs.load().sha256}".encode()).hexdigest()[:12]
    path = cache_folder() / "python_docs" / digest / name
    if not path.exists():
        write_whole(path, write().encode())
    return str(path)
