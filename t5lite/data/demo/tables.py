"""The embedded corpus as files for `FileData`, written at first use; differs by Python version."""

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5lite.data.demo import python_docs
from t5lite.data.paths import cache_folder, write_whole

_FORMAT = 1
_WORD = re.compile(r"\w+|[^\w\s]")
_MAX_WORDS = 256
_RUN = 8  # words, which independent texts rarely share
# Modules whose names are everyday words of documentation.
_EVERYDAY = {"code", "this", "token", "test", "types", "string", "time", "select", "copy", "symbol"}
_EVERYDAY |= {"calendar", "queue", "platform", "profile", "statistics", "operator"}


class Documented(NamedTuple):
    """A docstring, its top-level module, and its function's parameters, if any."""

    docstring: str
    module: str
    parameters: tuple[str, ...]


def modules_csv(*, num_modules: int = 16) -> str:
    """Returns a CSV file with the columns `docstring` and `module`, to classify docstrings.

    The modules are the `num_modules` >= 2 of the standard library with the most docstrings.
    """

    def write() -> str:
        counts = Counter(item.module for item in _documented())
        chosen = {module for module, _ in counts.most_common(num_modules)}
        rows = [item[:2] for item in _documented() if item.module in chosen]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("docstring", "module"), *rows])
        return text.getvalue()

    return _cached(f"modules_{num_modules}.csv", write)


def names_jsonl() -> str:
    """Returns a JSON-lines file with the columns `words` and `tags`, to find Python's names.

    A word of a function's docstring is tagged by look-up: `PARAMETER` for a parameter of the
    function, else `EXCEPTION`, `TYPE` or `MODULE` for a name of the language or its library, else
    `O` (distant supervision: Mintz et al. 2009, P09-1113). Docstrings without names are left out.
    """

    def rows() -> Iterator[dict[str, Any]]:
        names = _python_names()
        for item in _documented():
            words = _WORD.findall(item.docstring)[:_MAX_WORDS]
            tagged = names | dict.fromkeys(item.parameters, "PARAMETER")
            tags = [tagged.get(word, "O") for word in words]
            if item.parameters and set(tags) != {"O"}:
                yield {"words": words, "tags": tags}

    return _cached("names.jsonl", lambda: _lines(rows()))


def functions_jsonl() -> str:
    """Returns a JSON-lines file of functions' docstrings, to count and to find parameters in.

    Its columns are `docstring`, `num_parameters`, and `answer` and `start`: the first parameter in
    the docstring, and its first character. Functions without one are left out.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for item in _documented():
            words = (word for word in _WORD.finditer(item.docstring) if word[0] in item.parameters)
            if first := next(words, None):
                yield {
                    "docstring": item.docstring,
                    "num_parameters": len(item.parameters),
                    "answer": first[0],
                    "start": first.start(),
                }

    return _cached("functions.jsonl", lambda: _lines(rows()))


def documents_jsonl() -> str:
    """Returns a JSON-lines file of the corpus's training documents, with the column `text`."""
    return _cached("documents.jsonl", lambda: _texts(python_docs.documents("train")))


def held_out_documents_jsonl() -> str:
    """Returns a JSON-lines file of test documents, with the column `text`.

    They are the corpus's validation documents without near copies of training documents, which
    would reward memory (a fifth of them, docstrings that modules share).
    """

    def write() -> str:
        return _texts(novel(python_docs.documents("validation"), python_docs.documents("train")))

    return _cached("held_out_documents.jsonl", write)


def novel(texts: Sequence[str], trained: Iterable[str], *, most_shared: float = 0.2) -> list[str]:
    """Returns the texts that are not near copies of training texts, in order.

    `most_shared` is the largest fraction, in [0, 1], of a text's runs of eight words in `trained`.

    Source: Lee et al. 2022, arXiv:2107.06499, §4 (near copies of held-out text in training text).
    """
    seen = {run for text in trained for run in _runs(text)}
    runs = ((text, _runs(text)) for text in texts)
    return [text for text, own in runs if len(own & seen) / len(own) <= most_shared]


def _runs(text: str) -> set[tuple[str, ...]]:
    """Returns all runs of `_RUN` words of a text, or a shorter text as one run."""
    words = _WORD.findall(text)
    return {tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))}


def _texts(texts: Iterable[str]) -> str:
    return _lines({"text": text} for text in texts)


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _python_names() -> dict[str, str]:
    """Returns the tags of the language's and its library's names that are rarely other words."""
    names = {name: "MODULE" for name in sys.stdlib_module_names if not name.startswith("_")}
    for name, value in vars(builtins).items():
        if isinstance(value, type):
            names[name] = "EXCEPTION" if issubclass(value, BaseException) else "TYPE"
    return {name: tag for name, tag in names.items() if name not in _EVERYDAY}


@functools.cache
def _documented() -> tuple[Documented, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    items: dict[str, Documented] = {}
    for path in python_docs.library_files(root):
        module = path.relative_to(root).with_suffix("").parts[0]
        for node, docstring in python_docs.docstrings(path):
            if len(docstring) >= python_docs.MIN_CHARACTERS:
                items.setdefault(docstring, Documented(docstring, module, _parameters(node)))
    return tuple(items.values())


def _parameters(node: ast.AST) -> tuple[str, ...]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ()
    parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return tuple(item.arg for item in parameters if item.arg not in ("self", "cls"))


def _cached(name: str, write: Callable[[], str]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {python_docs.load().sha256}".encode()).hexdigest()[:12]
    path = cache_folder() / "python_docs" / digest / name
    if not path.exists():
        write_whole(path, write().encode())
    return str(path)
