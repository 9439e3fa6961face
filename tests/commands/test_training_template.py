"""The template of training makes texts of rows in every command that reads rows; none of texts."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from small_folders import add_pooling, add_tokenizer, copied

import t5lite
from t5lite.data.input_format import InputFormat
from t5lite.main import main

pytest.importorskip("tokenizers")

INPUTS = InputFormat("the {noun} {verb}")
ROW, TEXT = {"noun": "cat", "verb": "sat"}, "the cat sat"
SAID = 'rows with the columns of training are read by its template: "the {noun} {verb}" (--template'


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = add_tokenizer(copied("t5_1_1", tmp_path_factory.mktemp("models") / "t5"), ends=())
    loaded = t5lite.load(folder, devices=jax.devices()[:1])
    return dataclasses.replace(loaded, description=loaded.description.replace(inputs=INPUTS))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = add_tokenizer(copied("bert_base_model", tmp_path_factory.mktemp("models") / "bert"))
    add_pooling(folder, {"pooling_mode_mean_tokens": True})
    loaded = t5lite.load(folder, devices=jax.devices()[:1])
    return dataclasses.replace(loaded, description=loaded.description.replace(inputs=INPUTS))


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command on a row and on a text, each in a file of its own."""
    monkeypatch.chdir(tmp_path)
    rows = [ROW, {"text": TEXT}, {"verb": "sat"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("texts.txt").write_text(TEXT + "\n")

    def run(loaded, verb, *flags):
        folder = loaded.folder
        opened = t5lite.interop.open_model(folder)
        description = opened.description.replace(inputs=loaded.inputs)
        opened = dataclasses.replace(opened, description=description)
        monkeypatch.setattr("t5lite.interop.open_model", lambda _: opened)
        monkeypatch.setattr("t5lite.inference.load", lambda *_, **__: loaded)
        monkeypatch.setattr("t5lite.inference.place", lambda *_, **__: loaded)
        code = main([verb, f"--model_dir={folder}", *flags])
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return run


def test_generate(command, writer):
    flags = ("--max_new_tokens=5",)
    expected = " ".join(writer.generate([TEXT], max_new_tokens=5)[0].split())
    code, out, said = command(writer, "generate", "--input_file=rows.jsonl", *flags)
    assert (code, out[:2]) == (1, [expected, expected])
    assert "line 3: no 'inputs' or 'text', nor what training read" in said
    assert SAID in said
    for texts in (TEXT, "--input_file=texts.txt"):
        code, out, said = command(writer, "generate", texts, *flags)
        assert (code, out) == (0, [expected])
        assert 't5lite: texts are read as they are; training read "the {noun} {verb}"' in said


def test_infer(command, writer):
    flags = ("--max_new_tokens=5", "--output_file=out.jsonl")
    (expected,) = writer.generate([TEXT], max_new_tokens=5)
    code, _, said = command(writer, "infer", "--input_file=rows.jsonl", *flags)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert (code, [line.get("output") for line in lines]) == (1, [expected, expected, None])
    assert lines[0]["input"] == ROW
    assert SAID in said
    described = json.loads(Path("out.jsonl.json").read_text())
    assert described["template"] == INPUTS.template
    # Another template is another job, also if the earlier one was not a flag.
    code, _, said = command(writer, "infer", "--input_file=rows.jsonl", *flags, "--template={noun}")
    assert code == 2
    assert 'written with --template = "the {noun} {verb}", now "{noun}"' in said
    flags = ("--max_new_tokens=5", "--output_file=texts.jsonl")
    code, _, said = command(writer, "infer", "--input_file=texts.txt", *flags)
    assert json.loads(Path("texts.jsonl").read_text())["output"] == expected
    assert json.loads(Path("texts.jsonl.json").read_text())["template"] is None
    assert SAID not in said


def test_embed(command, embedder):
    (expected,) = embedder.embed([TEXT]).tolist()
    code, out, said = command(embedder, "embed", "--input_file=rows.jsonl")
    lines = [json.loads(line) for line in out]
    assert code == 1
    assert lines[0]["embedding"] == pytest.approx(expected, abs=1e-5)
    assert lines[0]["text"] == TEXT
    assert lines[1]["embedding"] == lines[0]["embedding"]
    assert "nor what training read" in lines[2]["error"]
    assert SAID in said
    code, out, _ = command(embedder, "embed", "--input_file=rows.jsonl", "--template={verb}")
    (other,) = embedder.embed(["sat"]).tolist()
    assert json.loads(out[2])["embedding"] == pytest.approx(other, abs=1e-5)
    code, out, _ = command(embedder, "embed", TEXT)
    assert json.loads(out[0])["embedding"] == pytest.approx(expected, abs=1e-5)
