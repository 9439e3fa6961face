"""`t5lite score`: texts and files in, a JSON line for each out, whatever becomes of the others."""

import json
import math

import jax
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.main import main

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    cases = {"decoder": "gpt2", "encoder_decoder": "t5_1_1"}
    ends = {"decoder": ("[CLS]",), "encoder_decoder": ()}
    return {
        name: add_tokenizer(copied(case, root / case), ends=ends[name])
        for name, case in cases.items()
    }


@pytest.fixture(scope="module")
def loaded(folders):
    """What the command loads, once for all tests, so that they compile once."""
    return {
        name: t5lite.load(folder, devices=jax.devices()[:1]) for name, folder in folders.items()
    }


@pytest.fixture
def score(monkeypatch, capsys, folders, loaded):
    """Runs the command; returns its exit code, its lines and what it says beside them."""
    models = {str(folders[name]): loaded[name] for name in folders}
    monkeypatch.setattr("t5lite.inference.load", lambda folder, **_: models[folder])

    def run(*arguments, model="decoder"):
        code = main(["score", f"--model_dir={folders[model]}", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, [json.loads(line) for line in printed.out.splitlines()], printed.err

    return run


def expected(score, line):
    return {
        "line": line,
        "num_tokens": score.num_tokens,
        "log_probability": pytest.approx(score.log_probability, abs=1e-4),
        "perplexity": pytest.approx(score.perplexity, rel=1e-4),
    }


def test_texts_and_totals(score, loaded):
    texts = ["a cat", "dogs"]
    code, lines, said = score(*texts)
    one, other = loaded["decoder"].score(texts)
    assert (code, lines) == (0, [expected(one, 1), expected(other, 2)])
    nats = one.log_probability + other.log_probability
    bits = -nats / math.log(2) / 9
    assert f"2 examples, 8 tokens: log-probability {nats / 8:.4f} a token, {nats / 2:.2f}" in said
    assert f"perplexity {math.exp(-nats / 8):.4f}, {bits:.4f} bits a byte, {bits:.4f} bits" in said


def test_targets_go_with_texts(score, loaded):
    pairs = [("a", "b"), ("a", "cd")]
    _, lines, _ = score("a", "--targets", "b", "--targets=cd", model="encoder_decoder")
    texts, targets = zip(*pairs, strict=True)
    scores = loaded["encoder_decoder"].score(texts, targets=targets)
    assert lines == [expected(each, line) for line, each in enumerate(scores, 1)]
    assert [line["num_tokens"] for line in lines] == [2, 3]  # with EOS
    _, lines, _ = score("a", "b", "--targets", "cd", "--no-eos", model="encoder_decoder")
    assert [line["num_tokens"] for line in lines] == [2, 2]


def test_pieces(score, loaded):
    _, (line,), _ = score("cats", "--per_token")
    (found,) = loaded["decoder"].score(["cats"])
    assert line["pieces"] == ["c", "##a", "##t", "##s"]
    assert line["token_log_probabilities"] == pytest.approx(
        found.token_log_probabilities.tolist(), abs=1e-5
    )


LINES = """{"text": "a cat"}
{"inputs": "two", "targets": "dogs"}
{"other": "cat"}

{"text": 3}
{"text": "a cat
{"text": ""}
{"text": "abcdefghijklmnopqrstuvwxyzabcdef"}
{"text": "it"}
"""


def test_a_failing_line_stands_in_its_place(score, loaded, tmp_path):
    (tmp_path / "in.jsonl").write_text(LINES)
    target = tmp_path / "new" / "out.jsonl"
    code, printed, said = score(
        f"--input_file={tmp_path}/in.jsonl", f"--output_file={target}", "--batch_size=2"
    )
    assert (code, printed) == (1, [])
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["line"] for line in found] == [1, 2, 3, 5, 6, 7, 8, 9]
    errors = {line["line"]: line["error"] for line in found if "error" in line}
    assert errors == {
        3: "no 'inputs' or 'text'; there is 'other'",
        5: "'text' is 3, not a text",
        6: "broken JSON: Invalid control character at at character 16",
        7: "the text is empty: it has no token",
        8: "a text of 32 tokens: the model takes 29; shorten it, or set --truncate",
    }
    assert found[0] == expected(loaded["decoder"].score(["a cat"])[0], 1)
    assert found[1] == expected(loaded["decoder"].score(["two"], targets=["dogs"])[0], 2)
    assert found[-1] == expected(loaded["decoder"].score(["it"])[0], 9)
    assert "3 examples, 10 tokens" in said
    assert "line 3: no 'inputs' or 'text'; there is 'other' (4 more failed)" in said
    assert [path.name for path in target.parent.iterdir()] == ["out.jsonl"]


def test_tables_and_lines_of_text(score, loaded, tmp_path):
    (tmp_path / "in.tsv").write_text("inputs\ttargets\na\tb\nc\td\te\n")
    code, lines, _ = score(f"--input_file={tmp_path}/in.tsv", model="encoder_decoder")
    (one,) = loaded["encoder_decoder"].score(["a"], targets=["b"])
    assert code == 1
    assert lines == [expected(one, 2), {"line": 3, "error": "3 fields instead of 2"}]
    (tmp_path / "in.txt").write_text("a cat\n\ndogs\n")
    code, lines, _ = score(f"--input_file={tmp_path}/in.txt")
    assert (code, [line["line"] for line in lines]) == (0, [1, 3])
    code, lines, _ = score(f"--input_file={tmp_path}/in.txt", model="encoder_decoder")
    assert code == 1
    assert lines[0]["error"] == "no targets: an encoder-decoder scores targets, given the text"


def test_bits_are_of_what_was_scored_whole(score):
    long = "abcdefghijklmnopqrstuvwxyzabcdef"
    code, (line,), said = score(long, "--truncate")
    assert (code, line["num_tokens"]) == (0, 29)
    assert "bits" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text; give TEXT or --input_file=FILE"),
        (["--targets=b"], "no text; give TEXT or --input_file=FILE"),
        (["a", "--input_file=x.txt"], "give TEXT or --input_file, not both"),
        (["--input_file=x.txt", "--targets=b"], "--targets is for TEXT"),
        (["a", "b", "--targets=c", "--targets=d", "--targets=e"], "2 texts and 3 --targets"),
        (["--input_file=nowhere.txt"], "--input_file = 'nowhere.txt'"),
        (["--input_file={empty}.jsonl"], "is empty"),
        (["--input_file={empty}.odt"], "must end in .jsonl, .tsv, .csv, .parquet or .txt"),
        (["a", "--output_file=x.csv"], "--output_file=x.csv: must end in .jsonl"),
        (["a", "--output_file={empty}.odt/x.jsonl"], "cannot write --output_file="),
        (["a", "--output_file=gs://x/y.jsonl"], "must be on this machine's disk"),
        (["a", "--batch_size=0"], "--batch_size = 0: must be a whole number of at least 1"),
        (["a", "--gin_file=run.gin"], "score reads no gin configuration"),
    ],
)
def test_mistakes(score, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for ending in "jsonl", "odt":
        (tmp_path / f"empty.{ending}").touch()
    (tmp_path / "run.gin").write_text("STEPS = 3\n")
    before = sorted(tmp_path.iterdir())
    arguments = [each.format(empty=tmp_path / "empty") for each in arguments]
    code, lines, said = score(*arguments)
    assert (code, lines) == (2, [])
    assert message in said
    assert sorted(tmp_path.iterdir()) == before
