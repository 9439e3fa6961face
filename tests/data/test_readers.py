"""Files of rows: the same rows whatever the format, broken lines by number, changes noticed."""

import bz2
import csv
import gzip
import json
import lzma
import zlib

import numpy as np
import pytest

from t5lite.data.files import readers
from t5lite.data.files.opening import find_files, format_of
from t5lite.data.files.readers import DataFile
from t5lite.errors import InputError

ROWS = [{"text": f'é {i}, "so"' + "\nit went" * (i % 3), "label": "ab"[i % 2]} for i in range(20)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "cache"))


def as_csv(rows, delimiter=","):
    import io

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def open_file(path, content, **options):
    path.write_bytes(content)
    return DataFile(str(path), format_of(str(path), options.pop("format", None)), **options)


def check_rows(file, expected):
    lines = list(file.scan())
    assert [line.row for line in lines] == expected
    order = np.random.default_rng(0).permutation(len(lines))
    result = file.read([(lines[i].start, lines[i].end) for i in order])
    assert result == [expected[i] for i in order]


@pytest.mark.parametrize("compress", [None, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_rows_come_back_in_any_order(tmp_path, kind, compress):
    content = as_jsonl(ROWS) if kind == "jsonl" else as_csv(ROWS, "\t" if kind == "tsv" else ",")
    ending = {None: "", gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[compress]
    content = compress(content) if compress else content
    file = open_file(tmp_path / f"a.{kind}{ending}", content)
    check_rows(file, ROWS)
    assert file.columns == ("text", "label")


def test_parquet_rows_come_back(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    rows = [row | {"words": ["a", "b"], "value": 0.5, "none": None} for row in ROWS]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")
    check_rows(DataFile(str(tmp_path / "a.parquet"), "parquet"), rows)


def test_damaged_parquet_is_refused_and_leaves_nothing(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="not a Parquet file, or is damaged"):
        open_file(tmp_path / "a.parquet", b"PAR1 this is not one PAR1")
    assert not list((tmp_path / "cache" / "files").iterdir())


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_damaged_compression_is_refused_and_leaves_nothing(tmp_path, ending):
    compress = gzip.compress if ending == ".gz" else lzma.compress
    with pytest.raises(InputError, match="cannot be unpacked"):
        open_file(tmp_path / f"a.csv{ending}", compress(as_csv(ROWS))[:-9])
    assert not list((tmp_path / "cache" / "files").iterdir())


def test_compression_damaged_in_the_middle_is_refused(tmp_path):
    content = bytearray(gzip.compress(as_csv(ROWS)))
    content[10:] = b"\xff" * (len(content) - 10)  # after the header
    with pytest.raises(zlib.error):
        gzip.decompress(content)
    with pytest.raises(InputError, match=r"a\.csv\.gz: cannot be unpacked"):
        open_file(tmp_path / "a.csv.gz", content)


def test_bytes_in_parquet_are_text_or_null(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    rows = [{"name": b"caf\xc3\xa9", "image": b"\xff\xd8\x00", "text": "a"}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [{"name": "café", "image": None, "text": "a"}]
    check_rows(DataFile(str(tmp_path / "a.parquet"), "parquet"), expected)


def test_zstandard_is_refused(tmp_path):
    with pytest.raises(InputError, match="decompress it"):
        open_file(tmp_path / "a.csv.zst", b"")


def test_text_is_a_row_a_line_or_a_file(tmp_path):
    content = "\ufeffone é\r\n\n two \nthree".encode()
    texts = [{"text": "one é"}, {"text": " two "}, {"text": "three"}]
    check_rows(open_file(tmp_path / "a.txt", content), texts)
    whole = [{"text": "one é\r\n\n two \nthree"}]
    check_rows(open_file(tmp_path / "a.txt", content, format="document"), whole)


def test_byte_order_marks_and_windows_line_ends_vanish(tmp_path):
    content = b'\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,"4\r\n5"\r\n'
    rows = [{"a": "1", "b": "2"}, {"a": "3", "b": "4\r\n5"}]
    check_rows(open_file(tmp_path / "a.csv", content), rows)


def test_column_names_replace_the_first_line(tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        file = open_file(tmp_path / "a.csv", mark + b"1,2\n3,4\n", column_names=["x", "y"])
        check_rows(file, [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}])


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b'a,b\n1,2\n3,"4\n5,6\n7,8\n', {3: "a quote that is opened here is not closed"}),
        (b'a,b\n1,"2"x\n3,4\n5,6\n7,8\n', {2: "text after a closing quote"}),
        (b'a,b\n1,"2\n3,4\n5,"6\n7,8\n9,0\n1,2\n', {2: "text after", 4: "not closed"}),
        (b"a,b\n1\n1,2,3\n3,4\n5,6\n7,8\n", {2: "1 fields instead of 2", 3: "3 fields"}),
        (b"a,b\n1,\xff\n3,4\n5,6\n7,8\n", {2: "not UTF-8: byte 0xff at its byte 3"}),
    ],
)
def test_broken_csv_is_numbered_and_the_rest_is_read(tmp_path, content, problems):
    lines = list(open_file(tmp_path / "a.csv", content).scan())
    broken = {line.number: line.problem for line in lines if line.row is None}
    assert broken.keys() == problems.keys()
    assert all(problems[number] in broken[number] for number in problems)
    file = open_file(tmp_path / "a.csv", content)
    good = [line for line in file.scan() if line.row is not None]
    assert len(good) >= 3
    assert file.read([(line.start, line.end) for line in good]) == [line.row for line in good]


def test_broken_json_is_numbered(tmp_path):
    content = b'{"a": 1}\n{"a": \n[1]\n\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": 2}\n'
    lines = list(open_file(tmp_path / "a.jsonl", content).scan())
    broken = [(line.number, line.problem) for line in lines if line.row is None]
    assert [number for number, _ in broken] == [2, 3, 5, 6]
    for (_, problem), words in zip(
        broken, ["broken JSON", "not an object", "0xff", "surrogate"], strict=True
    ):
        assert words in problem


ARRAY = [{"a": i, "b": ["x"] * i} for i in range(4)]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_read_whole(tmp_path, name, indent):
    content = b"\xef\xbb\xbf \n" + json.dumps(ARRAY, indent=indent).encode()
    file = open_file(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    check_rows(file, ARRAY)
    assert file.columns == ("a", "b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[\n{"a":1},\n{"a":2}\n', "begins with '\\[' but is not a JSON array"),
        (b'[1]\n{"a":2}\n', "begins with '\\[' but is not a JSON array"),
        (b'{"data": [\n{"a":1},\n{"a":2}\n]}', "is one JSON .* array under 'data'"),
        (b'{"name":\n"x"}', "is one JSON object over several lines: [^;]*$"),
    ],
)
def test_other_json_is_refused_by_name_and_not_read_by_half(tmp_path, content, words):
    with pytest.raises(InputError, match=rf"a\.json {words}"):
        list(open_file(tmp_path / "a.json", content).scan())


def test_what_a_format_has_for_missing_is_null(tmp_path):
    content = b'{"a": NaN, "b": null, "c": [NaN, 1]}\n{"a": Infinity, "b": "NaN", "c": [2]}\n'
    rows = [
        {"a": None, "b": None, "c": [None, 1]},
        {"a": float("inf"), "b": "NaN", "c": [2]},
    ]
    check_rows(open_file(tmp_path / "a.jsonl", content), rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"a": [float("nan"), None, 1.5], "b": ["NaN", None, "x"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    expected = [{"a": None, "b": "NaN"}, {"a": None, "b": None}, {"a": 1.5, "b": "x"}]
    check_rows(DataFile(str(tmp_path / "a.parquet"), "parquet"), expected)


def test_spaces_before_quotes_are_skipped_where_that_is_said(tmp_path):
    content = b'a, b\n1, "2, 3"\n'
    (line,) = open_file(tmp_path / "a.csv", content).scan()
    assert line.problem == (
        "3 fields instead of 2; a space before a quote makes it text: set skip_spaces = True"
    )
    check_rows(open_file(tmp_path / "a.csv", content, skip_spaces=True), [{"a": "1", "b": "2, 3"}])


def test_a_field_past_the_limit_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST_FIELD", 200_000)
    before = csv.field_size_limit(200_000)
    try:
        content = f"a,b\n1,{'x' * 200_000}\n2,{'x' * 200_001}\n3,4\n".encode()
        lines = list(open_file(tmp_path / "a.csv", content).scan())
    finally:
        csv.field_size_limit(before)
    assert [line.row is None for line in lines] == [False, True, False]
    assert "a field of more than " in lines[1].problem


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "txt"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_end_as_they_like(tmp_path, ending, last, mark):
    lines = {"csv": "text,n\né,1", "tsv": "text\tn\né\t1", "jsonl": '{"text": "é", "n": "1"}'}
    file = open_file(tmp_path / f"a.{ending}", (mark + lines.get(ending, "é") + last).encode())
    check_rows(file, [{"text": "é"} if ending == "txt" else {"text": "é", "n": "1"}])


def test_quotes_can_be_text(tmp_path):
    file = open_file(tmp_path / "a.tsv", b'a\tb\n5" pipe\t"x\n', quotes=False)
    check_rows(file, [{"a": '5" pipe', "b": '"x'}])


@pytest.mark.parametrize("header", [b"a,,b\n", b"a,a\n", b""])
def test_nameless_columns_are_refused(tmp_path, header):
    with pytest.raises(InputError, match="name"):
        list(open_file(tmp_path / "a.csv", header).scan())


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_file_that_changes_is_noticed(tmp_path, ending):
    path = tmp_path / f"a.csv{ending}"
    file = open_file(path, gzip.compress(as_csv(ROWS)) if ending else as_csv(ROWS))
    lines = list(file.scan())
    path.write_bytes(path.read_bytes() + b"x,y\n")
    with pytest.raises(InputError, match=f"a.csv{ending} has changed since this job began"):
        file.read([(lines[0].start, lines[0].end)])
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        file.read([])


def test_the_digest_is_that_of_the_content(tmp_path):
    digests = []
    for content in (b'a,b\n1,2\n3,"4\n5,6\n', b'a,b\n1,2\n3,"4\n5,6\n', b'a,b\n1,2\n3,"4\n5,7\n'):
        file = open_file(tmp_path / f"{len(digests)}.csv", content)
        list(file.scan())
        digests.append(file.digest)
    assert digests[0] == digests[1] != digests[2]


def test_patterns_find_files_once_and_in_order(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.csv", "a.csv", "deep/c.csv", "deep/er/d.csv", "x.tsv"):
        (tmp_path / name).write_bytes(b"")

    def find(*patterns):
        result = find_files([str(tmp_path / name) for name in patterns], field="files")
        return [name.removeprefix(f"{tmp_path}/") for name in result]

    assert find("*.csv") == ["a.csv", "b.csv"]
    assert find("b.csv", "*.csv") == ["b.csv", "a.csv"]
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    repeated = {}
    names = [f"{tmp_path}/a.csv", f"{tmp_path}/./a.csv", f"{tmp_path}/*.csv"]
    assert len(find_files(names, field="files", repeated=repeated)) == 2
    assert repeated == {
        f"{tmp_path}/./a.csv": f"{tmp_path}/a.csv",
        f"{tmp_path}/link.csv": f"{tmp_path}/a.csv",
    }
    (tmp_path / "link.csv").unlink()
    assert sorted(find("**/*.csv")) == ["a.csv", "b.csv", "deep/c.csv", "deep/er/d.csv"]


def test_missing_files_name_the_nearest(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"")
    for pattern, words in {
        "trian.csv": "unknown file 'trian.csv'; did you mean train.csv",
        "*.tsv": "no file matches",
        "nowhere/a.csv": "does not exist",
        "": "is a folder",
    }.items():
        with pytest.raises(InputError, match=words):
            find_files(f"{tmp_path}/{pattern}", field="FileData.files")
    with pytest.raises(InputError, match=r"FileData.files is empty"):
        find_files([], field="FileData.files")
    with pytest.raises(InputError, match="copy it there"):
        find_files("gs://bucket/a.csv", field="FileData.files")


def test_formats_are_known_by_ending_or_name():
    assert format_of("a.jsonl.gz", None) == "jsonl"
    assert format_of("a.dat", "tsv") == "tsv"
    with pytest.raises(InputError, match=r"unknown ending .*; set FileData.format"):
        format_of("a.dat", None)
    with pytest.raises(InputError, match="did you mean csv"):
        format_of("a.dat", "cvs")
