"""`t5lite infer`: every line once, in order, with its answer or its error, whatever interrupts."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_models import save_model
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.data import ArrayData, open_vocabulary
from t5lite.errors import InputError
from t5lite.inference.engine import Engine
from t5lite.inference.request import Request
from t5lite.inference.resumable import Resumable
from t5lite.main import main
from t5lite.models import override, preset

pytest.importorskip("tokenizers")

ROOT = Path(t5lite.__file__).parents[1]
FEW = ("--max_new_tokens=6", "--batch_size=2")  # eight lines at a time
WORDS = ("cat", "dogs", "it", "a", "two cats", "quick brown fox", "sat", "over there")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = copied("t5_1_1", tmp_path_factory.mktemp("models") / "t5")
    return add_tokenizer(made, ends=())


@pytest.fixture(scope="module")
def loaded(folder):
    """What the command loads, once for all tests, so that they compile once."""
    return t5lite.load(folder, devices=jax.devices()[:1])


@pytest.fixture
def infer(monkeypatch, capsys, folder, loaded, tmp_path):
    """Runs the command in an empty folder; returns its exit code and what it says."""
    monkeypatch.setattr("t5lite.inference.place", lambda *_, **__: loaded)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["infer", f"--model_dir={folder}", *map(str, arguments)])
        printed = capsys.readouterr()
        assert printed.out == ""
        return code, printed.err

    return run


def rows(count):
    """Lines of every length, some drawn and some broken."""
    made = []
    for number in range(1, count + 1):
        row = {"inputs": " ".join(WORDS[number * each % len(WORDS)] for each in range(number % 5))}
        if number % 3 == 0:
            row["options"] = {"temperature": 0.8}
        made.append(row)  # every fifth is empty
    return made


def put(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def flags(path="in.jsonl", output="out.jsonl"):
    return (f"--input_file={path}", f"--output_file={output}", *FEW)


# --- lines out ----------------------------------------------------------------------------------


def test_each_line_has_its_answer_or_its_error(infer, loaded, tmp_path):
    given = [
        {"inputs": "cats", "id": 7},
        {"text": "dogs", "options": {"temperature": 0.9, "num_samples": 2, "stop": ["a"]}},
        {"inputs": ""},
        {"inputs": "cats", "options": {"temprature": 1}},
        {"inputs": "cats", "options": {"temperature": "hot"}},
        {"inputs": "cats", "options": {"logits_fn": "f"}},
        {"inputs": "cats", "options": {"seed": 2**40, "temperature": 1}},
        {"inputs": 3},
        {"inputs": "cats", "score": float("nan")},
        {"inputs": "cats", "options": {"num_beams": 2, "max_new_tokens": 4}},
        {"inputs": "cats", "options": ["data", "of", "one's", "own"]},
    ]
    path = put(tmp_path / "in.jsonl", given)
    path.write_text(path.read_text() + "{broken\n")
    code, said = infer(*flags())
    lines = read("out.jsonl")
    assert [line["line"] for line in lines] == [*range(1, 13)]
    errors = {line["line"]: line["error"] for line in lines if "error" in line}
    assert list(errors) == [3, 4, 5, 6, 7, 8, 12]
    assert errors[4] == "unknown option 'temprature'; did you mean temperature?"
    assert errors[5].startswith("temperature = 'hot': must be")
    assert errors[6].startswith("unknown option 'logits_fn'")
    assert "seed" in errors[7]
    assert lines[8]["input"]["score"] is None  # a missing number
    assert "broken JSON" in errors[12]
    ((plain,),) = loaded.answers(["cats"], max_new_tokens=6)
    assert lines[0] == {
        "line": 1,
        "input": given[0],
        "output": plain.text,
        "num_tokens": len(plain.tokens),
        "log_probability": pytest.approx(plain.log_probability, abs=1e-4),
    }
    assert lines[10]["output"] == plain.text
    options = {"max_new_tokens": 6, "temperature": 0.9, "num_samples": 2, "stop": ["a"]}
    drawn = loaded.answers(["before", "dogs"], **options)[1]  # draws as the second
    assert lines[1]["output"] == [answer.text for answer in drawn]
    assert lines[1]["num_tokens"] == [len(answer.tokens) for answer in drawn]
    ((best,),) = loaded.answers(["cats"], max_new_tokens=4, num_beams=2)
    assert (lines[9]["output"], lines[9]["score"]) == (best.text, pytest.approx(best.score))
    tokens = sum(np.sum(line.get("num_tokens", 0)) for line in lines)
    assert code == 1
    assert f"out.jsonl: 12 lines, {tokens} tokens, 7 failed\n" in said
    assert "line 3: the text is empty: give at least one token (6 more failed)" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        *("in.jsonl", "out.jsonl", "out.jsonl.json")
    }


def test_tables_templates_and_columns_of_ones_own(infer, loaded, tmp_path):
    (tmp_path / "in.tsv").write_text("name\toptions\ncats\tsat\ndogs\tran\n")
    code, _ = infer(*flags("in.tsv"), "--template=the {name} {options}")
    expected = loaded.generate(["the cats sat", "the dogs ran"], max_new_tokens=6)
    assert code == 0
    assert [line["output"] for line in read("out.jsonl")] == expected
    assert read("out.jsonl")[1]["input"] == {"name": "dogs", "options": "ran"}
    put(tmp_path / "in.jsonl", [{"name": "cats", "options": {"a": "sat"}}])
    infer(*flags(output="own.jsonl"), "--template=the {name} {options}")
    assert "error" not in read("own.jsonl")[0]


# --- interruptions ------------------------------------------------------------------------------


@pytest.fixture
def whole(infer, tmp_path):
    """What an uninterrupted run writes of 27 lines."""
    put(tmp_path / "in.jsonl", rows(27))
    infer(*flags(output="whole.jsonl"))
    found = (tmp_path / "whole.jsonl").read_bytes()
    assert found.count(b"\n") == 27
    assert b"error" in found
    return found


def test_an_interrupted_run_goes_on(infer, whole, tmp_path, monkeypatch):
    part, out = tmp_path / "out.jsonl.part", tmp_path / "out.jsonl"
    calls, outcomes = [], Engine.outcomes

    def stopped(self, params, requests, **options):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return outcomes(self, params, requests, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "outcomes", stopped)
        code, said = infer(*flags())
    assert (code, said) == (130, "t5lite: interrupted\n")
    assert not out.exists()
    assert part.read_bytes() == b"".join(whole.splitlines(keepends=True)[:16])

    code, said = infer(*flags())
    assert code == 1
    assert "out.jsonl.part has 16 of 27 lines; going on" in said
    assert "27 lines" in said
    assert "5 failed" in said  # the earlier ones too
    assert out.read_bytes() == whole
    assert not part.exists()
    assert infer(*flags()) == (0, "out.jsonl is complete\n")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 15.5, 16, 26, 26.5, 27])
def test_whatever_is_torn_off_is_written_again(infer, whole, tmp_path, kept):
    lines = whole.splitlines(keepends=True)
    torn = b"".join(lines[: int(kept)])
    if kept % 1:
        torn += lines[int(kept)][:20]
    (tmp_path / "out.jsonl.part").write_bytes(torn)
    description = json.loads((tmp_path / "whole.jsonl.json").read_text())
    put(tmp_path / "out.jsonl.json", [description])
    infer(*flags())
    assert (tmp_path / "out.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (["--max_new_tokens=5"], "--max_new_tokens = 6, now 5"),
        (["--batch_size=4"], "--batch_size = 2, now 4"),
        (["--template={inputs}!"], '--template = nothing, now "{inputs}!"'),
        (["--stop=a"], '--stop = [], now ["a"]'),
        ("input", "input = "),
    ],
)
@pytest.mark.parametrize("end", ["", ".part"])
def test_other_settings_do_not_go_on(infer, tmp_path, change, name, end):
    put(tmp_path / "in.jsonl", [{"inputs": "cats"}])
    infer(*flags())
    (tmp_path / "out.jsonl").rename(tmp_path / f"out.jsonl{end}")
    before = (tmp_path / f"out.jsonl{end}").read_bytes()
    if change == "input":
        put(tmp_path / "in.jsonl", [{"inputs": "dogs"}])
        change = []
    code, said = infer(*flags(), *change)
    assert code == 2
    assert f"out.jsonl{end} was written with {name}" in said
    assert "--overwrite replaces it" in said
    assert len(said.splitlines()) == 1
    assert (tmp_path / f"out.jsonl{end}").read_bytes() == before
    assert infer(*flags(), *change, "--overwrite")[0] == 0
    assert len(read("out.jsonl")) == 1
    assert not (tmp_path / "out.jsonl.part").exists()


def test_a_file_of_others_is_left_alone(infer, tmp_path):
    put(tmp_path / "in.jsonl", [{"inputs": "cats"}])
    (tmp_path / "out.jsonl").write_text("mine")
    code, said = infer(*flags())
    assert (code, (tmp_path / "out.jsonl").read_text()) == (2, "mine")
    assert "out.jsonl exists without out.jsonl.json" in said


def test_two_writers_do_not_mix(tmp_path):
    output = Resumable(str(tmp_path / "out.jsonl"), {"a": 1})
    with output.open(block=1) as file:
        file.write(b"one\n")
        writer = f"out.jsonl.part is being written by process {os.getpid()} on "
        with pytest.raises(InputError, match=writer), output.open(block=1):
            pass
    assert (tmp_path / "out.jsonl").read_bytes() == b"one\n"
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.json"}


@pytest.mark.parametrize("content", ["mine", '{"mine": 1}', "[1]"])
def test_a_description_of_others_is_left_alone(content, tmp_path):
    (tmp_path / "out.jsonl.json").write_text(content)
    output = Resumable(str(tmp_path / "out.jsonl"), {"a": 1})
    for overwrite in (False, True):
        with (
            pytest.raises(InputError, match=r"out\.jsonl\.json exists"),
            output.open(block=1, overwrite=overwrite),
        ):
            pass
    assert (tmp_path / "out.jsonl.json").read_text() == content


def test_the_checkpoint_that_answers_is_the_one_that_is_recorded(loaded, tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    silent = jax.tree.map(lambda leaf: 0 * leaf, loaded.params)
    parts = {"vocabulary": loaded.vocabulary, "generation": loaded.generation, "step": 1}
    save_model(run, loaded.model, loaded.params, **parts)
    save_model(tmp_path / "later", loaded.model, silent, **parts | {"step": 2})
    place = t5lite.inference.place

    def late(*arguments, **options):  # a step is saved after the folder was opened
        (tmp_path / "later/checkpoints/2").rename(run / "checkpoints/2")
        return place(*arguments, **options)

    monkeypatch.setattr("t5lite.inference.place", late)
    put(tmp_path / "in.jsonl", [{"inputs": "cats"}])
    flags = (f"--input_file={tmp_path}/in.jsonl", f"--output_file={out}", *FEW)
    assert main(["infer", f"--model_dir={run}", *flags]) == 0
    described = json.loads((tmp_path / "out.jsonl.json").read_text())
    assert (described["step"], Path(described["model"]).name) == (1, "1")
    assert read(out)[0]["output"] == loaded.generate(["cats"], max_new_tokens=6)[0]
    assert t5lite.load(run).generate(["cats"], max_new_tokens=6)[0] != read(out)[0]["output"]


# --- shards -------------------------------------------------------------------------------------


def test_shards_together_are_the_whole(infer, whole, tmp_path):
    for index in (1, 0, 2):
        assert "9 lines" in infer(*flags(), f"--shard={index}/3")[1]
    parts = sorted(tmp_path.glob("out-*-of-00003.jsonl"))
    assert [part.name for part in parts] == [
        f"out-{index:05d}-of-00003.jsonl" for index in range(3)
    ]
    together = [line for part in parts for line in read(part)]
    expected = [json.loads(line) for line in whole.splitlines()]
    for one, other in zip(together, expected, strict=True):
        near = pytest.approx(other.pop("log_probability", 0), abs=1e-4)
        assert one.pop("log_probability", 0) == near
        assert one == other


def test_more_shards_than_lines(infer, tmp_path):
    put(tmp_path / "in.jsonl", [{"inputs": "cats"}])
    assert [infer(*flags(), f"--shard={index}/2")[0] for index in range(2)] == [0, 0]
    sizes = [len(read(f"out-{index:05d}-of-00002.jsonl")) for index in range(2)]
    assert sorted(sizes) == [0, 1]


# --- a configuration's task ---------------------------------------------------------------------


CONFIGURATION = """
from __gin__ import dynamic_registration
import t5lite
import test_infer_command as infer_test

t5lite.train.model = @infer_test.model()
t5lite.train.objective = @t5lite.objectives.Seq2Seq()
t5lite.train.data = @infer_test.data()
infer_test.data.folder = %FOLDER
FOLDER = None
"""


def model():
    return override(preset("t5_1_1_nano"), {"vocab": 97})


def data(folder):
    rng = np.random.default_rng(0)
    vocabulary = open_vocabulary(f"{folder}/tokenizer.json")
    made = [
        {
            "inputs": np.append(rng.integers(5, 31, 4), vocabulary.eos_id),
            "targets": np.append(rng.integers(5, 31, 2), vocabulary.eos_id),
        }
        for _ in range(9)
    ]
    lengths = {"inputs": 8, "targets": 8}
    return ArrayData(made[:4], made[4:], lengths=lengths, batch_size=1, vocab=vocabulary)


def test_a_task(infer, loaded, folder, tmp_path):
    (tmp_path / "run.gin").write_text(CONFIGURATION)
    asked = ("--gin_file=run.gin", f"--gin.FOLDER='{folder}'", "--output_file=out.jsonl", *FEW)
    assert infer(*asked)[0] == 0
    found = read("out.jsonl")
    texts = {
        loaded.vocabulary.decode(each["inputs"]): loaded.vocabulary.decode(each["targets"])
        for each in data(folder).validation
    }
    assert {line["input"]["inputs"]: line["input"]["targets"] for line in found} == texts
    assert len(found) == 5
    by_text = {loaded.vocabulary.decode(each["inputs"]): each for each in data(folder).validation}
    reader = loaded.reader()
    options = reader.options({"max_new_tokens": 6})
    requests = [
        Request.from_ids(by_text[line["input"]["inputs"]]["inputs"], reader, options, number=number)
        for number, line in enumerate(found)
    ]
    answers = loaded.engine.generate(loaded.decoding_params, requests)
    expected = [samples[0].text for samples in answers]
    assert [line["output"] for line in found] == expected
    assert infer(*asked) == (0, "out.jsonl is complete\n")
    infer(*asked, "--split=train", "--output_file=train.jsonl")
    assert len(read("train.jsonl")) == 4
    code, said = infer(*asked, "--input_file=in.jsonl", "--overwrite")
    assert code == 2
    assert "a configuration says what the texts are" in said
    assert len(read("out.jsonl")) == 5


def test_ids_of_a_task_are_read_as_they_are(loaded):
    """No text can stand for them: one that says nothing, and one that is read as other ids."""
    reader = loaded.reader()
    options = reader.options({"max_new_tokens": 3})
    eos, pad = loaded.vocabulary.eos_id, 0
    for ids in ([pad, eos], [5, 6, 5], [eos, 5, eos], [5, 6, eos]):
        request = Request.from_ids(np.array(ids), reader, options, number=2)
        assert (request.ids, request.number) == (ids, 2)
        assert len(loaded.engine.generate(loaded.decoding_params, [request])) == 1
    with pytest.raises(InputError, match="the example is empty"):
        Request.from_ids([], reader, options)


def test_ids_of_a_task_must_fit(tmp_path):
    """The model has 20 positions."""
    folder = add_tokenizer(copied("gpt2", tmp_path / "gpt2"), ends=("[CLS]",))
    loaded = t5lite.load(folder, devices=jax.devices()[:1])
    room = loaded.spec.decoder.max_length
    short, long = [7] * (room - 4), [7] * (room - 3)
    reader = loaded.reader()
    options = reader.options({"max_new_tokens": 4})
    assert Request.from_ids(short, reader, options).ids == short
    with pytest.raises(InputError, match=f"a text of {room - 3} tokens, and 4 new ones"):
        Request.from_ids(long, reader, options)
    cut = Request.from_ids([*range(3), *long], loaded.reader(truncate=True), options).ids
    assert len(cut) == len(short)
    assert cut == [*range(3), *long][-len(cut) :]  # what is continued loses its beginning


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_file=out.jsonl"], "--input_file is missing; or give a configuration"),
        (["--input_file=in.jsonl"], "required: --output_file"),
        (["--input_file=in.jsonl", "--output_file=out.csv"], "must end in .jsonl"),
        (["--input_file=in.jsonl", "--output_file=gs://x/y.jsonl"], "on this machine's disk"),
        (["--input_file=in.jsonl", "--output_file=in.jsonl/x.jsonl"], "cannot write"),
        (["--input_file=nowhere.txt", "--output_file=out.jsonl"], "'nowhere.txt'"),
        (["--input_file=empty.jsonl", "--output_file=out.jsonl"], "is empty"),
        ([*flags(), "--shard=2/2"], "--shard=2/2: must be I/N"),
        ([*flags(), "--shard=1"], "--shard=1: must be I/N"),
        ([*flags(), "--split=train"], "--split is of a configuration's data"),
        ([*flags(), "--temperature=1", "--num_beams=2"], "beam search draws no samples"),
        ([*flags(), "--stop=."], "stop '.': the vocabulary cannot express it"),
        ([*flags(), "--batch_size=0"], "--batch_size = 0: must be"),
        ([*flags(), "--draft_length=2"], "--draft_length is for --draft"),
        (["--gin_file=run.gin", "--output_file=out.jsonl"], "nothing is configured for train"),
    ],
)
def test_mistakes(infer, tmp_path, arguments, message):
    put(tmp_path / "in.jsonl", [{"inputs": "cats"}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "run.gin").write_text("STEPS = 3\n")
    before = sorted(tmp_path.iterdir())
    code, said = infer(*arguments)
    assert code == 2
    assert message in said
    assert sorted(tmp_path.iterdir()) == before


# --- killed -------------------------------------------------------------------------------------


def start(folder, path, output):
    command = [sys.executable, "-m", "t5lite.main", "infer", f"--model_dir={folder}"]
    flags = [f"--input_file={path}", f"--output_file={output}", "--max_new_tokens=12"]
    return subprocess.Popen(
        [*command, *flags, "--batch_size=1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "T5LITE_CACHE": str(path.parent / "cache")},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_killed_at_any_moment_no_line_is_lost_or_doubled(folder, tmp_path):
    path = put(tmp_path / "in.jsonl", rows(300))
    assert start(folder, path, tmp_path / "whole.jsonl").wait(timeout=300) == 1
    whole, part = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "out.jsonl.part"
    rng, sizes = random.Random(0), set()
    for share in (0.0, 0.2, 0.4, 0.4, 0.7, 0.9):
        process = start(folder, path, tmp_path / "out.jsonl")
        while process.poll() is None and not (
            part.exists() and part.stat().st_size >= share * len(whole)
        ):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert part.exists(), "it was too quick to be killed: give it more lines"
        assert whole.startswith(part.read_bytes())
        sizes.add(part.stat().st_size)
    assert start(folder, path, tmp_path / "out.jsonl").wait(timeout=300) == 1
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert [line["line"] for line in read(tmp_path / "out.jsonl")] == [*range(1, 301)]
    assert len(sizes) > 2


def test_log_probabilities_of_tokens(infer, loaded, tmp_path):
    put(tmp_path / "in.jsonl", [{"inputs": "cats"}])
    flags = (f"--input_file={tmp_path}/in.jsonl", "--output_file=out.jsonl", *FEW)
    assert infer(*flags, "--num_log_probabilities=2")[0] == 0
    (line,) = read(tmp_path / "out.jsonl")
    (answer,) = loaded.answers(["cats"], max_new_tokens=6, num_log_probabilities=2)[0]
    assert line["token_log_probabilities"] == pytest.approx(answer.token_log_probabilities.tolist())
    assert len(line["top_log_probabilities"]) == len(line["pieces"]) == line["num_tokens"]
    assert line["finish_reason"] == answer.finish_reason
    for piece, value, best in zip(
        line["pieces"], line["token_log_probabilities"], line["top_log_probabilities"], strict=True
    ):
        assert len(best) == 2
        assert best[0][1] >= best[1][1]
        if piece == best[0][0]:
            assert value == pytest.approx(best[0][1], abs=1e-5)
