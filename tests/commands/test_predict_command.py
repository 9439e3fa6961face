"""`t5lite predict`: a line for each row, as training read it, whatever interrupts."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_models import save_model

import t5lite
from t5lite.data import Bytes, Class, FileData
from t5lite.data.input_format import InputFormat
from t5lite.evaluation import HeldOut
from t5lite.experiment import Experiment
from t5lite.experiment.evaluation import evaluate
from t5lite.layers import ClassificationHeadSpec, SpansHeadSpec
from t5lite.main import main
from t5lite.models import Model, override
from t5lite.objectives import Classification
from t5lite.optimizers import AdamW
from t5lite.parallel import Layout
from t5lite.training import Checkpoints

ROOT = Path(t5lite.__file__).parents[1]
LAYOUT = Layout(compiler_options={"cpu": {"xla_backend_optimization_level": 0}})
TEMPLATE = "{title}: {body}"
SPEC = override(
    "bert_nano",
    {
        "vocab": 384,
        "embed": 16,
        "encoder.num_layers": 1,
        "*.blocks.*.attention.num_heads": 2,
        "*.blocks.*.attention.head_dim": 8,
        "*.blocks.*.mlp.hidden": 16,
        "*.dropout_rate": 0.0,
        "heads": [ClassificationHeadSpec(num_classes=2)],
    },
)


def rows(count, seed=0):
    """Reviews that their letters give away, but for every ninth; some are longer than is read."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        stars = ["bad", "good"][rng.integers(2)]
        letters = rng.choice([*"aaac"] if stars == "bad" else [*"bbbc"], rng.integers(3, 30))
        if number % 9 == 0:
            stars = "bad" if stars == "good" else "good"
        made.append({"title": f"t{number % 7}", "body": "".join(letters), "stars": stars})
    return made


def put(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier that a run trained on a template of two columns, and what it trained with."""
    folder = tmp_path_factory.mktemp("classifier")
    data = FileData(
        str(put(folder / "train.csv", rows(128))),
        features={"inputs": TEMPLATE, "labels": Class("stars")},
        vocab=Bytes(125),
        validation_files=str(put(folder / "held-out.csv", rows(45, seed=1))),
        lengths={"inputs": 24},
        batch_size=32,
    )
    what = {"model": SPEC, "objective": Classification(), "data": data, "layout": LAYOUT}
    t5lite.train(
        str(folder / "run"),
        **what,
        optimizer=AdamW(0.01),
        steps=80,
        checkpoints=Checkpoints(every=80),
        writers=[],
    )
    return folder, what


@pytest.fixture(scope="module")
def loaded(trained):
    return t5lite.load(trained[0] / "run", devices=jax.devices()[:1])


@pytest.fixture
def predict(trained, loaded, monkeypatch, capsysbinary, tmp_path):
    """Runs the command in an empty folder; returns its exit code, its lines and what it says."""
    monkeypatch.setattr("t5lite.inference.place", lambda *_, **__: loaded)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsysbinary.readouterr()
        code = main(["predict", f"--model_dir={trained[0] / 'run'}", *map(str, arguments)])
        printed = capsysbinary.readouterr()
        lines = [json.loads(line) for line in printed.out.splitlines()]
        return code, lines, printed.err.decode()

    return run


def test_a_trained_classifier_predicts_what_evaluation_measures(trained, predict):
    folder, what = trained
    metrics = evaluate(
        Experiment(str(folder / "run"), **what, callbacks=[HeldOut(every=1)], optimizer=None)
    )
    code, printed, said = predict(
        f"--input_file={folder / 'held-out.csv'}", "--output_file=out.jsonl", "--batch_size=3"
    )
    assert (code, printed) == (0, [])
    found = read("out.jsonl")
    right = [line["label"] == line["input"]["stars"] for line in found]
    assert np.mean(right) == pytest.approx(metrics["held_out/accuracy"])
    assert 0.75 < np.mean(right) < 1
    cut = [len(f"{line['input']['title']}: {line['input']['body']}") - 23 for line in found]
    assert [line.get("num_cut", 0) for line in found] == [max(each, 0) for each in cut]
    number = sum(each > 0 for each in cut)
    assert f"out.jsonl: 45 lines, {number} cut at their end, 0 failed" in said
    assert (
        f'rows with the columns of training are read by its template: "{TEMPLATE}" (--template'
        in said
    )
    assert list(found[0]) == ["line", "input", "label", "probability", "classes"]


def test_texts_are_read_as_they_are(predict, loaded):
    code, found, said = predict("t1: aaaa", "bbbb", "--top_k=1")
    assert code == 0
    for line, text, other in zip(
        found, ["t1: aaaa", "bbbb"], loaded.predict(["t1: aaaa", "bbbb"], top_k=1), strict=True
    ):
        assert line["input"] == {"text": text}
        share = pytest.approx(other.probability)
        assert line["classes"] == [{"label": other.label, "probability": share}]
    assert f'texts are read as they are; training read "{TEMPLATE}" (--template' in said
    _, templated, said = predict("aaaa", "--template=t1: {text}")
    assert templated[0]["probability"] == pytest.approx(found[0]["probability"])
    assert said == ""


def test_lines_of_files(predict, tmp_path):
    (tmp_path / "in.txt").write_text("aaaa\n\nbbbb\n")
    _, found, _ = predict("--input_file=in.txt")
    assert [(line["line"], line["input"]) for line in found] == [
        (1, {"text": "aaaa"}),
        (3, {"text": "bbbb"}),
    ]
    given = [{"title": "a", "body": "b"}, {"text": "a: b"}, {"title": "a"}, {"text": float("nan")}]
    lines = [*map(json.dumps, given), "{broken"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    code, found, said = predict("--input_file=in.jsonl")
    assert code == 1
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5]
    assert found[0]["probability"] == pytest.approx(found[1]["probability"])
    assert "nor what training read" in found[2]["error"]
    assert "error" in found[3]
    assert "broken JSON" in found[4]["error"]
    assert "t5lite: line 3: " in said


# --- interruptions and shards -------------------------------------------------------------------


@pytest.fixture
def whole(predict, tmp_path):
    """What an uninterrupted run writes of 27 lines, some of them broken."""
    lines = [json.dumps(row) for row in rows(27)]
    lines[4] = lines[20] = "{"
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    assert predict(*FLAGS, "--output_file=whole.jsonl")[0] == 1
    return (tmp_path / "whole.jsonl").read_bytes()


FLAGS = ("--input_file=in.jsonl", "--batch_size=2")  # eight lines at a time


def test_an_interrupted_run_goes_on(predict, whole, tmp_path, monkeypatch):
    predict_, calls = t5lite.inference.engine.predict, []

    def stopped(placed, params, predictor, requests, **options):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict_(placed, params, predictor, requests, **options)

    with monkeypatch.context() as patch:
        patch.setattr("t5lite.inference.engine.predict", stopped)
        assert predict(*FLAGS, "--output_file=out.jsonl")[0] == 130
    lines = whole.splitlines(keepends=True)
    assert (tmp_path / "out.jsonl.part").read_bytes() == b"".join(lines[:16])
    code, _, said = predict(*FLAGS, "--output_file=out.jsonl")
    assert code == 1
    assert "out.jsonl.part has 16 of 27 lines; going on" in said
    assert "2 failed" in said
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert predict(*FLAGS, "--output_file=out.jsonl")[2] == "out.jsonl is complete\n"


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--top_k=1", "--top_k = 5, now 1"),
        ("--template={body}", f'--template = "{TEMPLATE}", now "{{body}}"'),
        ("--max_length=9", "--max_length = nothing, now 9"),
        ("--batch_size=4", "--batch_size = 2, now 4"),
    ],
)
def test_other_settings_do_not_go_on(predict, whole, flag, name):
    code, _, said = predict(*FLAGS, "--output_file=whole.jsonl", flag)
    assert code == 2
    assert f"whole.jsonl was written with {name}" in said
    assert predict(*FLAGS, "--output_file=whole.jsonl", flag, "--overwrite")[0] == 1


def test_shards_together_are_the_whole(predict, whole, tmp_path):
    for index in (2, 0, 1):
        predict(*FLAGS, "--output_file=out.jsonl", f"--shard={index}/3")
    parts = sorted(tmp_path.glob("out-*-of-00003.jsonl"))
    together = [line for part in parts for line in read(part)]
    expected = [json.loads(line) for line in whole.splitlines()]
    assert len(together) == len(expected) == 27
    for one, other in zip(together, expected, strict=True):
        assert one.keys() == other.keys()
        assert (one["line"], one.get("label")) == (other["line"], other.get("label"))
        assert one.get("probability", 0) == pytest.approx(other.get("probability", 0), rel=1e-5)


@pytest.mark.slow
def test_killed_at_any_moment_no_line_is_lost_or_doubled(trained, tmp_path):
    path = tmp_path / "in.csv"
    put(path, rows(400))

    def start(output):
        command = [sys.executable, "-m", "t5lite.main", "predict", "--batch_size=1"]
        flags = [
            f"--model_dir={trained[0] / 'run'}",
            f"--input_file={path}",
            f"--output_file={output}",
        ]
        environment = {"PYTHONPATH": str(ROOT), "T5LITE_CACHE": str(tmp_path / "cache")}
        return subprocess.Popen(
            [*command, *flags], env={**os.environ, **environment}, stderr=subprocess.DEVNULL
        )

    assert start(tmp_path / "whole.jsonl").wait(timeout=300) == 0
    whole, part = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "out.jsonl.part"
    for share in (0.0, 0.3, 0.6):
        process = start(tmp_path / "out.jsonl")
        while process.poll() is None and not (
            part.exists() and part.stat().st_size >= share * len(whole)
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert part.exists(), "it was too quick to be killed: give it more lines"
        assert whole.startswith(part.read_bytes())
    assert start(tmp_path / "out.jsonl").wait(timeout=300) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == whole


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text; give TEXT or --input_file=FILE"),
        (["a", "--input_file=in.txt"], "give TEXT or --input_file, not both"),
        (["a", "--shard=0/2"], "--shard is for --output_file"),
        (["a", "--overwrite"], "--overwrite is for --output_file"),
        (["a", "--output_file=x.csv"], "must end in .jsonl"),
        (["a", "--output_file=x.jsonl", "--shard=2"], "--shard=2: must be I/N"),
        (["a", "--batch_size=0"], "--batch_size = 0: must be"),
        (["a", "--top_k=0"], "top_k = 0: must be"),
        (["a", "--max_length=1"], "max_length = 1: must be at least 2"),
        (["a", "--head=spans"], "unknown head of"),
        (["a", "--template={"], "template '{'"),
        (["a", "--gin_file=run.gin"], "predict reads no gin configuration"),
        (["--input_file=empty.jsonl"], "empty.jsonl is empty"),
    ],
)
def test_mistakes(predict, tmp_path, arguments, message):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "run.gin").write_text("STEPS = 3\n")
    before = sorted(tmp_path.iterdir())
    code, lines, said = predict(*arguments)
    assert (code, lines) == (2, [])
    assert message in said
    assert len(said.splitlines()) <= 5
    assert sorted(tmp_path.iterdir()) == before


def test_other_heads_and_labels_without_names(tmp_path, capsysbinary, monkeypatch):
    """Records of a model of which nothing is known, and the note that says so."""
    spec = dataclasses.replace(SPEC, heads=(ClassificationHeadSpec(num_classes=3), SpansHeadSpec()))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), Model(spec).shapes())
    params["classification_head"]["projection"]["bias"][2] = 9
    inputs = InputFormat("{q} {c}", "context", 30)
    save_model(tmp_path / "run", spec, params, vocabulary=Bytes(125), inputs=inputs)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--model_dir=run", "a"]) == 2
    assert b"head: the model has classification, spans; name one" in capsysbinary.readouterr().err
    assert main(["predict", "--model_dir=run", "a", "--head=classification"]) == 0
    printed = capsysbinary.readouterr()
    assert json.loads(printed.out)["label"] == 2
    assert b"the model has no label names: labels are numbers" in printed.err
    (tmp_path / "in.jsonl").write_text('{"q": "a?", "c": "b c", "id": 7}\n')
    assert main(["predict", "--model_dir=run", "--input_file=in.jsonl", "--head=spans"]) == 0
    line = json.loads(capsysbinary.readouterr().out)
    assert line["input"]["id"] == 7
    # Where all is equally likely: b, its space or c, or that there is no answer.
    assert line["no_answer"] == pytest.approx(1 / 16)
    assert line["answer"] == "b c"[line["start"] : line["end"]] == "b"
