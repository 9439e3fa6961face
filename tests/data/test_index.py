"""The index of files is kept: a second start scans nothing, and a stale entry is never taken."""

import csv
import gzip
import json
import os
import threading

import numpy as np
import pytest

from t5lite.data import Bytes, Class, FileData
from t5lite.data.files.columns import Text
from t5lite.data.files.readers import DataFile
from t5lite.data.files.templates import Template
from t5lite.errors import InputError

OLD = 10**9  # seconds: a time of change long ago


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """The paths that were scanned, with a cache of their own."""
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "cache"))
    scanned, scan = [], DataFile.scan

    def counted(self):
        scanned.append(os.path.basename(self.path))
        return scan(self)

    monkeypatch.setattr(DataFile, "scan", counted)
    return scanned


def write(path, count=60, *, changed_at=OLD, text="text"):
    rows = "".join(f"{text} {i},{'abc'[i % 3]},{i // 2}\n" for i in range(count))
    content = f"body,stars,page\n{rows}".encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    os.utime(path, (changed_at, changed_at))
    return str(path)


def make(files, **changes):
    defaults = {
        "features": {"inputs": "{body}", "labels": Class("stars")},
        "vocab": Bytes(),
        "lengths": {"inputs": 16},
        "batch_size": 8,
        "validation_share": 0.2,
    }
    return FileData(files, **(defaults | changes))


def contents(data):
    """All that a start finds out, and all rows in order."""
    return (
        data.describe(),
        data.class_counts("train"),
        data.labels(),
        data._digest,
        *(
            data._index.tables[split].read(range(data.num_examples(split)))
            for split in ("train", "validation")
        ),
    )


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_second_start_scans_nothing_and_finds_the_same(tmp_path, scans, name, monkeypatch):
    file = write(tmp_path / name)
    first = contents(make(file))
    assert scans == [name]

    def refuse(path, write):
        raise AssertionError("unpacked again")

    with monkeypatch.context() as patch:
        patch.setattr("t5lite.data.files.opening._cached", refuse)
        again = make(file)
        assert contents(again) == first
    assert scans == [name]
    assert isinstance(again._index.rows, np.memmap)
    # As do shots, the model's labels, and data with another vocabulary.
    shot = {"features": {"inputs": "{shots} {body}"}, "shots": 2, "shot": "{body}"}
    assert contents(make(file, **shot)) == contents(make(file, **shot))
    assert contents(make(file, vocab=Bytes(3)))[4:] == first[4:]
    assert scans == [name] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"features": {"inputs": "{body}"}},
        {"validation_share": 0.4},
        {"split_by": "page"},
        {"column_names": ["body", "n", "page"], "features": {"inputs": "{body}"}},
        {"quotes": False},
        {"skip_spaces": True},
    ],
)
def test_another_way_to_read_is_another_index(tmp_path, scans, change):
    file = write(tmp_path / "a.csv")
    expected = contents(make(file))
    changed = contents(make(file, **change))
    assert scans == ["a.csv"] * 2
    assert contents(make(file)) == expected
    assert contents(make(file, **change)) == changed
    assert scans == ["a.csv"] * 2


def test_a_second_start_reads_fields_as_long_as_the_first_found(tmp_path, scans):
    file = write(tmp_path / "a.csv", text="x" * 140_000, count=3)
    options = {"features": {"inputs": "{body}"}, "validation_share": 0}
    expected = make(file, **options)._index.tables["train"].read([0, 1, 2])
    before = csv.field_size_limit(131_072)  # as csv has it in a process that scans nothing
    try:
        assert make(file, **options)._index.tables["train"].read([0, 1, 2]) == expected
    finally:
        csv.field_size_limit(before)
    assert scans == ["a.csv"]


def test_a_file_that_changed_is_scanned_again(tmp_path, scans):
    files = [write(tmp_path / "a.csv"), write(tmp_path / "b.csv", text="more")]
    contents(make(files))
    write(tmp_path / "a.csv", text="next", changed_at=OLD + 1)  # as many bytes
    contents(make(files))
    write(tmp_path / "b.csv", 61)
    expected = contents(make(files))
    assert scans == ["a.csv", "b.csv"] * 3
    assert any(row["body"] == "next 7" for row in expected[4] + expected[5])
    assert contents(make(files)) == expected
    assert scans == ["a.csv", "b.csv"] * 3
    assert len([*(tmp_path / "cache" / "index").glob("*.npy")]) == 1  # the others are gone


def test_another_file_of_the_same_size_and_time_is_scanned(tmp_path, scans):
    file = write(tmp_path / "a.csv", text="text")
    make(file).num_examples("train")
    os.replace(write(tmp_path / "b.csv", text="node"), file)
    (row,) = make(file)._index.tables["train"].read([0])
    assert row["body"].startswith("node")
    assert scans == ["a.csv"] * 2


def test_a_file_that_may_still_change_is_not_kept(tmp_path, scans):
    file = write(tmp_path / "a.csv")
    os.utime(file)
    contents(make(file))
    contents(make(file))
    assert scans == ["a.csv"] * 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["array", "json", "empty", "gone", "lines"])
def test_a_damaged_entry_is_scanned_again(tmp_path, scans, damage):
    file = write(tmp_path / "a.csv.gz")
    expected = contents(make(file))
    (entry,) = (tmp_path / "cache" / "index").glob("*.json")
    (array,) = (tmp_path / "cache" / "index").glob("*.npy")
    (lines,) = (tmp_path / "cache" / "files").iterdir()
    if damage == "array":
        array.write_bytes(array.read_bytes()[:-8])
    elif damage == "json":
        entry.write_bytes(entry.read_bytes()[:-8])
    elif damage == "empty":
        entry.write_text(json.dumps({"status": []}))
    elif damage == "gone":
        array.unlink()
    else:
        lines.unlink()
    for _ in range(2):
        assert contents(make(file)) == expected
    assert scans == ["a.csv.gz"] * 2


def test_of_those_that_start_together_one_scans(tmp_path, scans):
    file, results = write(tmp_path / "a.csv"), []
    threads = [threading.Thread(target=lambda: results.append(contents(make(file)))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2]
    assert scans == ["a.csv"]


def test_without_a_cache_every_start_scans(tmp_path, scans, monkeypatch):
    file = write(tmp_path / "a.csv")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert contents(make(file)) == contents(make(file))
    assert scans == ["a.csv"] * 2


def test_columns_of_a_users_own_are_not_kept(tmp_path, scans):
    class Own(Text):
        pass

    file = write(tmp_path / "a.csv")
    for _ in range(2):
        contents(make(file, features={"inputs": Own(Template("{body}"))}))
    assert scans == ["a.csv"] * 2


def test_broken_lines_are_told_again(tmp_path, scans):
    path = tmp_path / "a.csv"
    path.write_text("body,stars\n" + "a,b\n" * 30 + "c\n")
    os.utime(path, (OLD, OLD))
    for _ in range(2):
        with pytest.raises(InputError, match=r"a\.csv:32: 1 fields instead of 2"):
            make(str(path)).describe()
    assert "skipped: 1 of 31 rows" in make(str(path), bad_lines="skip").describe()
    assert scans == ["a.csv"]
