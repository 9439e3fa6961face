"""`t5lite embed`: texts and files to vectors, and the nearest of them."""

import json

import jax
import numpy as np
import pytest
from small_folders import add_pooling, add_tokenizer, copied

import t5lite
from t5lite.inference.vectors import read_vectors, write_vectors
from t5lite.main import main

pytest.importorskip("tokenizers")

TEXTS = ["a cat sat", "dogs", "the end of it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = add_tokenizer(copied("bert_base_model", tmp_path_factory.mktemp("bert") / "model"))
    return add_pooling(made, {"pooling_mode_mean_tokens": True})


@pytest.fixture(scope="module")
def loaded(folder):
    return t5lite.load(folder, devices=jax.devices()[:1])


@pytest.fixture
def embed(monkeypatch, capsys, folder, loaded):
    """Runs the command; returns its exit code, what it prints and what it says beside it."""
    monkeypatch.setattr("t5lite.inference.load", lambda *_, **__: loaded)

    def run(*arguments):
        code = main(["embed", f"--model_dir={folder}", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join([*TEXTS[:2], "abcdefghijklmnopqrstuvwxyz", TEXTS[2]]))
    return path


def test_texts_to_lines(embed, loaded):
    code, printed, _ = embed(*TEXTS)
    found = [json.loads(line) for line in printed.splitlines()]
    assert code == 0
    assert [(each["line"], each["text"]) for each in found] == list(enumerate(TEXTS, 1))
    vectors = [each["embedding"] for each in found]
    np.testing.assert_allclose(vectors, loaded.embed(TEXTS), atol=2e-5)


def test_a_file_to_each_kind_of_file(embed, loaded, file, tmp_path):
    expected = loaded.embed(TEXTS)
    for ending in "npz", "npy", "jsonl":
        target = tmp_path / f"out.{ending}"
        code, printed, said = embed(
            f"--input_file={file}", f"--output_file={target}", "--batch_size=2"
        )
        assert (code, printed) == (1, "")
        assert "line 3: a text of 28 tokens: the model takes 20" in said
        if ending == "jsonl":
            found = [json.loads(line) for line in target.read_text().splitlines()]
            assert found.pop(2).keys() == {"line", "error"}
            vectors = np.array([each["embedding"] for each in found])
        else:
            content = np.load(target)
            vectors = content["embeddings"] if ending == "npz" else content
            assert vectors.dtype == np.float32
            assert np.isnan(vectors[2]).all()
            vectors = np.delete(vectors, 2, axis=0)
        np.testing.assert_allclose(vectors, expected, atol=2e-5)
    assert read_vectors(tmp_path / "out.npz")[1] == [*TEXTS[:2], "", TEXTS[2]]
    code, _, _ = embed(f"--input_file={file}", f"--output_file={tmp_path}/out.npy", "--truncate")
    assert code == 0
    assert np.isfinite(np.load(tmp_path / "out.npy")).all()


def test_texts_take_the_room_that_they_need(tmp_path):
    texts = ["été\0", "", "長い" * 5000, *map(str, range(500))]
    vectors = list(np.eye(len(texts), 4, dtype=np.float32))
    with open(tmp_path / "out.npz", "wb") as file:
        write_vectors(file, ".npz", vectors, texts)
    needed = len("".join(texts).encode()) + 8 * len(texts) + 16 * len(texts)
    assert (tmp_path / "out.npz").stat().st_size < needed + 2000
    assert read_vectors(tmp_path / "out.npz")[1] == texts


def test_files_of_older_versions_are_read(tmp_path):
    np.savez(tmp_path / "old.npz", embeddings=np.eye(3, dtype=np.float32), texts=np.array(TEXTS))
    vectors, texts = read_vectors(tmp_path / "old.npz")
    assert texts == TEXTS
    np.testing.assert_array_equal(vectors, np.eye(3))


@pytest.mark.parametrize("ending", ["npz", "npy", "jsonl"])
def test_the_nearest(embed, loaded, file, tmp_path, ending):
    target = tmp_path / f"out.{ending}"
    embed(f"--input_file={file}", f"--output_file={target}")
    code, printed, _ = embed("--query=dogs", f"--among={target}", "--neighbours=2")
    rows = [line.split("\t") for line in printed.splitlines()]
    vectors = loaded.embed(TEXTS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = vectors @ vectors[1]
    first, second = np.argsort(-similarities)[:2]
    names = ["row 0", "row 1", "row 3"] if ending == "npy" else TEXTS
    assert code == 0
    assert first == 1
    assert rows == [
        ["1", "1.0000", names[1]],
        ["2", f"{similarities[second]:.4f}", names[second]],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text; give TEXT or --input_file=FILE"),
        (["a", "--output_file=x.csv"], "must end in .npz or .npy or .jsonl"),
        (["--query=a"], "--query and --among go together"),
        (["--among=wide.npy"], "--query and --among go together"),
        (["--query=a", "--among=wide.npy", "b"], "and embeds no other text"),
        (["--query=a", "--among=wide.npy"], "vectors of size 7, and the model"),
        (["--query=a", "--among=wide.npy", "--neighbours=0"], "--neighbours = 0: must be"),
        (["--query=a", "--among=wide.csv"], "--among=wide.csv: must end in .npz"),
        (["--query=a", "--among=damaged.npz"], "--among=damaged.npz: not a file of t5lite embed"),
        (["--query=a", "--among=damaged.npy"], "--among=damaged.npy: not a file of t5lite embed"),
        (["--query=a", "--among=nowhere.npz"], "--among=nowhere.npz: not a file"),
        (
            ["--query=a", "--among=empty.jsonl"],
            "not a file of t5lite embed: vectors of shape [0]",
        ),
        (["--query=a", "--among=other.npz"], "not a file of t5lite embed: 'embeddings is not"),
        (
            ["abcdefghijklmnopqrstuvwxyz", "--output_file=x.npz"],
            "no line could be embedded; line 1",
        ),
        (["a", "--max_length=2"], "--max_length = 2: must be at least 3"),
        (["a", "--gin_file=run.gin"], "embed reads no gin configuration"),
    ],
)
def test_mistakes(embed, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.zeros((2, 7), np.float32))
    np.savez("other.npz", vectors=np.zeros((2, 7), np.float32))
    for name in "damaged.npz", "damaged.npy":
        (tmp_path / name).write_bytes(b"PK\x03\x04 and nothing else")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "run.gin").write_text("STEPS = 3\n")
    before = sorted(tmp_path.iterdir())
    code, printed, said = embed(*arguments)
    assert (code, printed) == (2, "")
    assert message in said
    assert sorted(tmp_path.iterdir()) == before
