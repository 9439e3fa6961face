"""What `inputs` were made of goes with a model: template, kind and length."""

import json

import pytest

from t5lite.data import Answer, Bytes, FileData, MixtureData, PackedData, Tags, write_packed
from t5lite.data.files.columns import Column
from t5lite.data.input_format import FILE, InputFormat, load_input_format, save_input_format
from t5lite.errors import InputError
from t5lite.objectives import Seq2Seq


class Own(Column):
    """A column of a user's own."""


@pytest.mark.parametrize(
    ("column", "template", "kind"),
    [
        ("{title}. {body}", "{title}. {body}", "text"),
        (Tags("words", "tags"), "{words}", "words"),
        (Answer("passage", "answer"), "{passage}", "context"),
        (Answer("{question} {passage}", "answer"), "{question} {passage}", "context"),
        (Own(), None, "text"),
        (None, None, "text"),
    ],
)
def test_data_say_how_inputs_are_made(tmp_path, column, template, kind):
    features = {"targets": "{b}"} if column is None else {"inputs": column}
    lengths = {"targets": 8} if column is None else {"inputs": 8}
    data = FileData("no.csv", features=features, vocab=Bytes(), lengths=lengths, batch_size=1)
    expected = InputFormat(template, kind, lengths.get("inputs"))
    assert data.input_format() == expected
    save_input_format(tmp_path, expected)
    assert load_input_format(tmp_path) == expected
    assert (tmp_path / FILE).exists() == (column is not None)


def test_parts_of_a_mixture_and_a_cache_keep_it(tmp_path):
    (tmp_path / "in.csv").write_text("a,b\n" + "".join(f"text {i},{i}\n" for i in range(20)))

    def data(template):
        return FileData(
            str(tmp_path / "in.csv"),
            features={"inputs": template, "targets": "{b}"},
            vocab=Bytes(),
            lengths={"inputs": 30, "targets": 8},
            batch_size=2,
        )

    ours, sizes = data("say: {a}"), {"lengths": {"inputs": 16, "targets": 8}, "batch_size": 2}
    same, other = MixtureData([ours, ours], **sizes), MixtureData([ours, data("{a}")], **sizes)
    assert same.input_format() == InputFormat("say: {a}", length=16)
    assert other.input_format() == InputFormat(length=16)
    write_packed(ours, Seq2Seq(), tmp_path / "cache")
    packed = PackedData(tmp_path / "cache", lengths=ours.lengths, batch_size=2)
    assert packed.input_format() == ours.input_format()


def test_rows_with_all_columns_are_told_from_others():
    inputs = InputFormat("{title}: {body}")
    assert inputs.of_rows({"title": "a", "body": "b", "c": 1}).text == "{title}: {body}"
    assert inputs.of_rows({"title": "a", "text": "b"}) is None
    assert inputs.of_rows({"title": "a", "body": None}) is None
    assert InputFormat().of_rows({"text": "a"}) is None
    plain = [InputFormat(text).is_plain for text in ("{a}", "{a}.", "{a}{b}", "a", None)]
    assert plain == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format_version": 1, "template": "{"}', "is damaged"),
        ('{"format_version": 1, "kind": "other"}', "is damaged"),
        ('{"format_version": 1, "length": 0}', "is damaged"),
        ('{"format_version": 2}', "format_version 2; this t5lite reads 1"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=message):
        load_input_format(tmp_path)


def test_the_file_is_written_where_it_differs(tmp_path):
    save_input_format(tmp_path, InputFormat())
    assert not list(tmp_path.iterdir())
    save_input_format(tmp_path, InputFormat("{é}"))
    written = (tmp_path / FILE).stat().st_mtime_ns
    save_input_format(tmp_path, InputFormat("{é}"))
    assert (tmp_path / FILE).stat().st_mtime_ns == written
    assert json.loads((tmp_path / FILE).read_text())["template"] == "{é}"
