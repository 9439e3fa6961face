"""The embedded corpus: English technical text that comes with every CPython.

Documents are the sections of the language reference in `pydoc_data.topics` and the docstrings of
the standard library; pairs are functions without their docstring, and its first line. Everything is
read with `ast`, nothing imported. The text differs by Python version: print `describe()` beside
numbers measured on it.
"""

import ast
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents and (source, summary) pairs, by split."""

    documents: dict[str, list[str]]
    pairs: dict[str, list[tuple[str, str]]]

    @property
    def characters(self) -> int:
        return sum(len(text) for texts in self.documents.values() for text in texts)

    @property
    def sha256(self) -> str:
        """Hex hash of all documents and pairs in order."""
        return hashlib.sha256(json.dumps([self.documents, self.pairs]).encode()).hexdigest()


def documents(split: str) -> list[str]:
    """Returns the documents of "train" or "validation" (about 5 %), each once, in a fixed order."""
    return _of_split(load().documents, split)


def pairs(split: str) -> list[tuple[str, str]]:
    """Returns (function source without docstring, docstring's first line) of a split.

    A pair is in the split of its docstring, so that `documents("train")` leaks no validation pair,
    and no source occurs twice.
    """
    return _of_split(load().pairs, split)


def describe() -> str:
    """Returns one line: Python version, characters, documents, pairs and hash."""
    corpus = load()
    documents, pairs = (
        [len(texts[split]) for split in SPLITS] for texts in (corpus.documents, corpus.pairs)
    )
    return (
        f"python_docs of Python {platform.python_version()}: {corpus.characters:,} characters, "
        f"documents {documents[0]:,} train + {documents[1]:,} validation, "
        f"pairs {pairs[0]:,} + {pairs[1]:,}, sha256 {corpus.sha256[:12]}"
    )


@functools.cache
def load() -> Corpus:
    """Returns the running Python's corpus, extracted and cached at first use; needs its sources."""
    root = Path(sysconfig.get_path("stdlib"))
    listing = [(str(path.relative_to(root)), path.stat().st_size) for path in library_files(root)]
    version = [_FORMAT, platform.python_version(), str(root), int(root.stat().st_mtime), listing]
    key = hashlib.sha256(json.dumps(version).encode()).hexdigest()[:16]
    path = cache_folder() / "python_docs" / f"{platform.python_version()}_{key}.json"
    try:
        content = json.loads(path.read_bytes())
        documents, pairs = content["documents"], content["pairs"]
        return Corpus(
            {split: documents[split] for split in SPLITS},
            {split: [(source, text) for source, text in pairs[split]] for split in SPLITS},
        )
    except (OSError, ValueError, KeyError, TypeError):
        corpus = extract(root)
    if corpus.characters < 100_000:
        raise InputError(
            f"{root} holds only {corpus.characters} characters of documentation: this Python comes "
            "without its sources; use one from python.org, your distribution, conda or pyenv"
        )
    write_whole(path, json.dumps(dataclasses.asdict(corpus)).encode())
    return corpus


def extract(root: Path) -> Corpus:
    """Reads the documents and pairs of a standard library, skipping files that cannot be parsed."""
    # Dictionaries keep the first of equal texts, in order.
    texts = dict.fromkeys(_topics(root / "pydoc_data" / "topics.py"))
    sources: dict[str, tuple[str, str]] = {}
    for path in library_files(root):
        text, tree = _parse(path)
        lines = text.splitlines(keepends=True)
        for node, docstring in _docstrings(tree):
            texts.setdefault(docstring)
            if isinstance(node, _FUNCTIONS):
                summary = docstring.splitlines()[0].strip()
                source = _without_docstring(node, lines)
                if source and len(summary) >= _MIN_SUMMARY:
                    sources.setdefault(source, (docstring, summary))
    corpus = Corpus({split: [] for split in SPLITS}, {split: [] for split in SPLITS})
    for document in texts:
        if len(document) >= MIN_CHARACTERS:
            corpus.documents[_split(document)].append(document)
    for source, (docstring, summary) in sources.items():
        corpus.pairs[_split(docstring)].append((source, summary))
    return corpus


def _of_split(by_split: dict, split: str) -> list:
    if split not in by_split:
        raise unknown("split of python_docs", split, by_split)
    return by_split[split]


def _split(text: str) -> str:
    """Returns the split of a text from its hash alone."""
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

    Long topics repeat short ones under headings of another level: without the headings' underlines
    equal sections are equal texts, none of which is in both splits.
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
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            docstring = _clean(ast.get_docstring(node, clean=False) or "")
            if docstring:
                yield node, docstring


def _clean(text: str) -> str:
    text = text.encode(errors="ignore").decode()  # a lone surrogate is not text
    lines = inspect.cleandoc(text).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def _without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Returns a function's source, decorators and comments included, without its docstring.

    Empty if nothing else is left, or the docstring shares a line with code.
    """
    docstring = node.body[0]
    if len(node.body) == 1:
        return ""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    start, end = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
    before = lines[start].encode()[: docstring.col_offset]
    after = lines[end - 1].encode()[docstring.end_col_offset :]
    if before.strip() or after.strip():
        return ""
    rest = lines[first - 1 : start] + lines[end : node.end_lineno]
    return textwrap.dedent("".join(rest)).strip()
