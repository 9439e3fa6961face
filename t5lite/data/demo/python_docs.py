"""The embedded corpus: English technical text that comes with every CPython.

The documents are the sections of the language reference as kept for `help()` (`pydoc_data.topics`)
and the docstrings of the standard library; the pairs are functions without their docstring, and its
first line. Everything is read with `ast`; nothing is imported. The text differs by Python version,
so print `describe()` beside any number measured on it.
"""

import ast
import functools
import hashlib
import inspect
import json
import os
import platform
import re
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from t5lite.data.paths import cache_folder, write_whole
from t5lite.errors import InputError, unknown

SPLITS = ("train", "validation")

_FORMAT = 1
MIN_CHARACTERS = 20  # of a docstring; "See base class." teaches nothing
_MIN_SUMMARY = 10
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_BEFORE_HEADING = re.compile(r'^(?=\S.*\n[*=~^"-]{3,}$)', re.MULTILINE)
_UNDERLINE = re.compile(r'\A(.*)\n[*=~^"-]{3,}\n+')
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)


@dataclass(frozen=True)
class Corpus:
    """Documents and (source, summary) pairs, by split; `str()` of it describes it in a line."""

    documents: dict[str, list[str]]
    pairs: dict[str, list[tuple[str, str]]]

    @property
    def characters(self) -> int:
        """Characters in all documents."""
        return sum(len(text) for texts in self.documents.values() for text in texts)

    @property
    def sha256(self) -> str:
        """Hex hash of all documents and pairs in order."""
        return hashlib.sha256(json.dumps([self.documents, self.pairs]).encode()).hexdigest()

    def __str__(self) -> str:
        documents = {split: len(texts) for split, texts in self.documents.items()}
        pairs = {split: len(pairs) for split, pairs in self.pairs.items()}
        return (
            f"python_docs of Python {platform.python_version()}: {self.characters:,} characters, "
            f"documents {documents['train']:,} train + {documents['validation']:,} validation, "
            f"pairs {pairs['train']:,} + {pairs['validation']:,}, sha256 {self.sha256[:12]}"
        )


def documents(split: str) -> list[str]:
    """Returns the documents of "train" or "validation" (about 5 %), each once, in a fixed order."""
    return _of_split(load().documents, split)


def pairs(split: str) -> list[tuple[str, str]]:
    """Returns (function source without docstring, docstring's first line) of a split.

    A pair is in the split of its docstring, so what `documents("train")` shows gives no
    validation pair away, and no source occurs twice.
    """
    return _of_split(load().pairs, split)


def describe() -> str:
    """Returns one line: Python version, characters, documents, pairs and hash."""
    return str(load())


@functools.cache
def load() -> Corpus:
    """Returns the corpus of the running Python, extracted on first use and then kept in the cache.

    Raises:
      InputError: if this Python comes without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    listing = [(str(path.relative_to(root)), path.stat().st_size) for path in library_files(root)]
    version = [_FORMAT, platform.python_version(), str(root), int(root.stat().st_mtime), listing]
    key = hashlib.sha256(json.dumps(version).encode()).hexdigest()[:16]
    path = cache_folder() / "python_docs" / f"{platform.python_version()}_{key}.json"
    try:
        kept = json.loads(path.read_bytes())
        split_pairs = {
            split: [(source, summary) for source, summary in kept["pairs"][split]]
            for split in SPLITS
        }
        return Corpus({split: kept["documents"][split] for split in SPLITS}, split_pairs)
    except (OSError, ValueError, KeyError, TypeError):
        corpus = extract(root)
    if corpus.characters < 100_000:
        raise InputError(
            f"{root} holds only {corpus.characters} characters of documentation: this Python comes "
            "without its sources; use one from python.org, your distribution, conda or pyenv"
        )
    kept = {"documents": corpus.documents, "pairs": corpus.pairs}
    write_whole(path, json.dumps(kept).encode())
    return corpus


def extract(root: Path) -> Corpus:
    """Reads the documents and pairs of a standard library.

    Args:
      root: the folder of the standard library. Files that cannot be decoded or parsed are skipped.
    """
    # Dictionaries keep the first of equal texts, in order.
    found: dict[str, None] = {}
    for section in _topics(root / "pydoc_data" / "topics.py"):
        if len(section) >= MIN_CHARACTERS:
            found.setdefault(section)
    sources: dict[str, tuple[str, str]] = {}
    for path in library_files(root):
        text, tree = _parse(path)
        lines = text.splitlines(keepends=True)
        for node, docstring in _docstrings(tree):
            if len(docstring) >= MIN_CHARACTERS:
                found.setdefault(docstring)
            if isinstance(node, _FUNCTIONS):
                summary = docstring.splitlines()[0].strip()
                source = _without_docstring(node, lines)
                if source and len(summary) >= _MIN_SUMMARY:
                    sources.setdefault(source, (docstring, summary))
    corpus = Corpus({split: [] for split in SPLITS}, {split: [] for split in SPLITS})
    for document in found:
        corpus.documents[_split(document)].append(document)
    for source, (docstring, summary) in sources.items():
        corpus.pairs[_split(docstring)].append((source, summary))
    return corpus


def _of_split(by_split: dict, split: str) -> list:
    if split not in by_split:
        raise unknown("split of python_docs", split, by_split)
    return by_split[split]


def _split(text: str) -> str:
    """Returns the split of a text from its hash alone, so that it never changes sides."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "validation" if bucket % 20 == 0 else "train"


def library_files(root: Path) -> Iterator[Path]:
    """Yields the library's Python files in a fixed order."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _parse(path: Path) -> tuple[str, ast.Module]:
    """Returns a file's text, decoded by its coding cookie, and its tree; empty if it is broken."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            text = file.read()
            return text, ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return "", ast.Module(body=[], type_ignores=[])


def _topics(path: Path) -> Iterator[str]:
    """Yields the sections of the texts in the dictionary `topics` of `pydoc_data/topics.py`.

    Long topics repeat short ones whole, under headings of another level: so cut at the headings and
    drop their underlines, that equal sections be equal texts and none lands in both splits.
    """
    for statement in _parse(path)[1].body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic in ast.literal_eval(statement.value).values():
                for section in _BEFORE_HEADING.split(_clean(topic)):
                    yield _UNDERLINE.sub(r"\1\n\n", section).strip()


def docstrings(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yields every node of a file that has a docstring, with it."""
    return _docstrings(_parse(path)[1])


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yields every node that has a docstring, with it."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            docstring = _clean(ast.get_docstring(node, clean=False) or "")
            if docstring:
                yield node, docstring


def _clean(text: str) -> str:
    text = text.encode(errors="ignore").decode()  # a lone surrogate is not text
    lines = inspect.cleandoc(text).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def _without_docstring(node: ast.AST, lines: list[str]) -> str:
    """Returns a function's source, decorators and comments included, without its docstring.

    Empty when there is nothing else, or the docstring shares a line with code.
    """
    if not isinstance(node, _FUNCTIONS):
        raise TypeError(f"{node!r} is not a function")
    docstring = node.body[0]
    if len(node.body) == 1:
        return ""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    start, end = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
    before = lines[start].encode()[: docstring.col_offset]
    after = lines[end - 1].encode()[docstring.end_col_offset :]
    if before.strip() or after.strip():
        return ""
    kept = lines[first - 1 : start] + lines[end : node.end_lineno]
    return textwrap.dedent("".join(kept)).strip()
