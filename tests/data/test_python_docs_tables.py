"""The embedded corpus as CSV and JSON lines."""

import csv
import json
from pathlib import Path

import pytest

from t5lite.data.demo import python_docs
from t5lite.data.demo import tables as python_docs_tables
from t5lite.data.demo.tables import (
    Documented,
    documents_jsonl,
    functions_jsonl,
    held_out_documents_jsonl,
    modules_csv,
    names_jsonl,
    novel,
)

DOCUMENTED = (
    Documented('Opens a "file",\nas text.', "io", ("file", "mode")),
    Documented("Raises ValueError if limit is no int.", "io", ("limit",)),
    Documented("Closes it.", "os", ()),
    Documented("Joins paths with os.sep.", "os", ("parts",)),
    Documented("Nothing of interest.", "turtle", ("colour",)),
)


@pytest.fixture(autouse=True)
def small_library(tmp_path, monkeypatch):
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(python_docs_tables, "_documented", lambda: DOCUMENTED)
    corpus = python_docs.Corpus({"train": [], "validation": []}, {"train": [], "validation": []})
    monkeypatch.setattr(python_docs, "load", lambda: corpus)


def test_csv_holds_the_docstrings_of_the_commonest_modules():
    with Path(modules_csv(num_modules=2)).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["module"] for row in rows} == {"io", "os"}
    assert [row["docstring"] for row in rows] == [item.docstring for item in DOCUMENTED[:4]]


def test_names_are_tagged_parameters_first():
    with Path(names_jsonl()).open() as file:
        rows = [json.loads(line) for line in file]
    tags = [dict(zip(row["words"], row["tags"], strict=True)) for row in rows]
    assert tags[0]["file"] == "PARAMETER"
    assert tags[1] == {
        **{"Raises": "O", "ValueError": "EXCEPTION", "if": "O", "limit": "PARAMETER"},
        **{"is": "O", "no": "O", "int": "TYPE", ".": "O"},
    }
    assert tags[2]["os"] == "MODULE"
    assert len(rows) == 3  # "Closes it." has no parameters, the turtle no names


def test_functions_name_the_parameter_mentioned_first_and_where():
    with Path(functions_jsonl()).open() as file:
        rows = [json.loads(line) for line in file]
    assert [(row["num_parameters"], row["answer"]) for row in rows] == [(2, "file"), (1, "limit")]
    for row in rows:
        assert row["docstring"][row["start"] :].startswith(row["answer"])


def test_a_file_is_written_once(monkeypatch):
    path = Path(names_jsonl())
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(python_docs_tables, "_documented", lambda: pytest.fail("read again"))
    assert Path(names_jsonl()) == path
    assert path.stat().st_mtime_ns == before


LONG = "Return a list of the names of all members of an archive, in the order in which they stand"


def test_documents_are_held_out_without_near_copies(monkeypatch):
    texts = {
        "train": [LONG + ".", "Close\nit. Ünnötig"],
        "validation": ["Other: " + LONG, "Open it."],
    }
    monkeypatch.setattr(python_docs, "documents", texts.__getitem__)

    def rows(path):
        return [json.loads(line)["text"] for line in Path(path).read_text("utf-8").splitlines()]

    assert rows(documents_jsonl()) == texts["train"]
    assert rows(held_out_documents_jsonl()) == ["Open it."]


@pytest.mark.parametrize(
    ("text", "is_novel"),
    [
        (LONG.replace("list", "tuple") + " there, sorted by size and then by date.", False),
        (LONG[:50] + " ".join(f"word{n}" for n in range(30)), True),
        (LONG.upper(), True),
        ("Close  it .", False),  # too short for a run, and the same
        ("Close it now.", True),
        ("", True),
    ],
)
def test_a_near_copy_shares_a_fifth_of_its_runs_of_eight_words(text, is_novel):
    assert novel([text], [LONG, "Close it."]) == [text] * is_novel
