"""The embedded corpus: what is read, the splits, and the cache."""

import ast
import textwrap
from pathlib import Path

import pytest

from t5lite.data.demo import python_docs
from t5lite.errors import InputError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T5LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        python_docs.load.cache_clear()
        yield python_docs.load()
        python_docs.load.cache_clear()


def library(root, **sources):
    """Writes a standard library of a few files."""
    for name, source in sources.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            source if isinstance(source, bytes) else textwrap.dedent(source).encode("utf-8")
        )
    return root


def everything(corpus):
    documents = [text for split in python_docs.SPLITS for text in corpus.documents[split]]
    pairs = [pair for split in python_docs.SPLITS for pair in corpus.pairs[split]]
    return documents, pairs


# The real one


def test_it_is_as_large_as_promised(corpus):
    assert 1_900_000 < corpus.characters < 2_500_000
    documents, pairs = everything(corpus)
    assert len(documents) > 7_000
    assert len(pairs) > 5_500
    validation = sum(map(len, corpus.documents["validation"])) / corpus.characters
    assert 0.035 < validation < 0.065
    assert any("The standard type hierarchy" in text[:100] for text in documents)


def test_no_document_and_no_source_occurs_twice(corpus):
    documents, pairs = everything(corpus)
    assert len(set(documents)) == len(documents)
    assert len({source for source, _ in pairs}) == len(pairs)


def test_training_documents_hold_no_validation_pair(corpus):
    # The full docstring decides, so a pair's split is that of the document it came from.
    shown = "\n".join(corpus.documents["train"])
    summaries = {summary for _, summary in corpus.pairs["validation"] if len(summary) > 50}
    seen = [summary for summary in summaries if f"\n{summary}\n" in shown]
    assert len(summaries) > 100
    assert len(seen) < 0.1 * len(summaries)  # other docstrings may open with the same line


def test_texts_are_clean(corpus):
    documents, pairs = everything(corpus)
    for text in documents:
        assert len(text) >= 20
        assert text == text.strip()
        text.encode()
    for source, summary in pairs:
        assert "\n" not in summary
        assert len(summary) >= 10
        tree = ast.parse(source)
        assert len(tree.body) == 1
        assert ast.get_docstring(tree.body[0]) is None or "'''" in source or '"' in source


def test_the_second_time_comes_from_the_cache_and_a_broken_cache_is_made_again(corpus, monkeypatch):
    (cached,) = (python_docs.cache_folder() / "python_docs").iterdir()
    monkeypatch.setattr(python_docs, "extract", None)  # would fail if called
    python_docs.load.cache_clear()
    assert python_docs.load() == corpus

    content = cached.read_bytes()
    cached.write_bytes(content[:1000])
    monkeypatch.setattr(python_docs, "extract", lambda root: corpus)
    python_docs.load.cache_clear()
    assert python_docs.load() == corpus
    assert cached.read_bytes() == content


def test_the_description_names_what_was_measured(corpus):
    line = python_docs.describe()
    for part in (f"{corpus.characters:,} characters", corpus.sha256[:12], "Python 3."):
        assert part in line
    assert "\n" not in line


def test_splits_have_names(corpus):
    assert python_docs.documents("train") == corpus.documents["train"]
    assert python_docs.pairs("validation") == corpus.pairs["validation"]
    with pytest.raises(InputError, match="did you mean validation"):
        python_docs.documents("validaton")


# Small ones


def test_docstrings_of_every_kind_are_read(tmp_path):
    library(
        tmp_path,
        first='''
            """The docstring of a module."""
            class Thing:
                """The docstring of a class.

                    Indented once.

                Not indented.
                """
                async def method(self):
                    """The docstring of a method."""
                    return 1
            def tiny():
                """Tiny."""
                return 2
            ''',
        test__skipped='"""A docstring among the tests."""',
        **{"site-packages__skipped": '"""A docstring of somebody else."""'},
    )
    documents, pairs = everything(python_docs.extract(tmp_path))
    assert sorted(documents) == [
        "The docstring of a class.\n\n    Indented once.\n\nNot indented.",
        "The docstring of a method.",
        "The docstring of a module.",
    ]
    assert pairs == [("async def method(self):\n    return 1", "The docstring of a method.")]


def test_topics_are_cut_at_their_headings_so_that_repeats_vanish(tmp_path):
    library(
        tmp_path,
        pydoc_data__topics='''
            # Autogenerated
            topics = {
              "whole": """The whole of it
            ***************

            An introduction to everything.

            The part of it
            ==============

            Words about the part.
            """,
              "part": """The part of it
            **************

            Words about the part.
            """,
            }
            ''',
    )
    documents, _ = everything(python_docs.extract(tmp_path))
    assert sorted(documents) == [
        "The part of it\n\nWords about the part.",
        "The whole of it\n\nAn introduction to everything.",
    ]


def test_sources_lose_their_docstring_and_nothing_else(tmp_path):
    library(
        tmp_path,
        first='''
            class Thing:
                @property
                @other(
                    1)
                def one(
                    self):  # a comment
                    """
                    Return one of them.

                    More about it.
                    """
                    # naïve
                    return "é"

                def empty(self):
                    """Only a docstring here."""

                def inline(self): "On the line of the def."; return 3
                def twice(self): """On the line of the def."""
            ''',
    )
    _, pairs = everything(python_docs.extract(tmp_path))
    source = (
        '@property\n@other(\n    1)\ndef one(\n    self):  # a comment\n    # naïve\n    return "é"'
    )
    assert pairs == [(source, "Return one of them.")]


def test_equal_sources_keep_the_first_summary(tmp_path):
    body = 'def f():\n    """{}"""\n    return 1\n'
    library(tmp_path, a=body.format("The first summary."), b=body.format("Another summary."))
    _, pairs = everything(python_docs.extract(tmp_path))
    assert pairs == [("def f():\n    return 1", "The first summary.")]


def test_a_text_keeps_its_split_whatever_stands_beside_it(tmp_path):
    texts = [f"Docstring number {index} of the many." for index in range(400)]
    module = "".join(
        f'def f{i}():\n    """{text}"""\n    return {i}\n' for i, text in enumerate(texts)
    )
    both = python_docs.extract(
        library(tmp_path / "a", one=module, two='"""Something else here."""')
    )
    alone = python_docs.extract(library(tmp_path / "b", only=module))
    for split in python_docs.SPLITS:
        assert set(alone.documents[split]) <= set(both.documents[split])
        assert {summary for _, summary in alone.pairs[split]} == set(alone.documents[split])
    assert 5 <= len(alone.documents["validation"]) <= 40


def test_files_in_other_encodings_are_read_and_broken_ones_skipped(tmp_path):
    library(
        tmp_path,
        cookie=b'# -*- coding: latin-1 -*-\n"""A caf\xe9 in Paris, in Latin-1."""\n',
        broken_bytes=b'"""A caf\xe9 without a cookie."""\n',
        broken_cookie=b'# coding: no-such-codec\n"""A docstring nobody can read."""\n',
        broken_syntax='"""A docstring of Python 2."""\nprint "hello"\n',
        nul=b'"""A docstring before a nul."""\n\0',
        surrogate=r'"""A lone \ud800 surrogate in here."""',
        escape=r'"""An invalid \d escape in here."""',
    )
    documents, _ = everything(python_docs.extract(tmp_path))
    assert sorted(documents) == [
        "A café in Paris, in Latin-1.",
        "A lone  surrogate in here.",
        r"An invalid \d escape in here.",
    ]


def test_a_python_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "cache"))
    library(tmp_path / "lib", only='"""One docstring, and that is all."""')
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda _: str(tmp_path / "lib"))
    python_docs.load.cache_clear()
    with pytest.raises(InputError, match="without its sources"):
        python_docs.load()
    assert not Path(tmp_path / "cache").exists()
    python_docs.load.cache_clear()
