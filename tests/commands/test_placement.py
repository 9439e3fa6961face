"""`--dtype`, `--compute_dtype` and `--layout`: sharded, in bfloat16, from a command line."""

import json

import jax
import numpy as np
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.configuration import layout_of
from t5lite.errors import InputError
from t5lite.main import main

pytest.importorskip("tokenizers")

TEXTS = ("a cat", "dogs and it")
CASES = {
    "generate": ("t5_1_1", (), "--max_new_tokens=6"),
    "infer": ("t5_1_1", (), "--max_new_tokens=6"),
    "score": ("gpt2", ("[CLS]",), "--per_token"),
    "embed": ("bert", ("[CLS]", "[SEP]"), "--batch_size=2"),
    "predict": ("bert_classes", ("[CLS]", "[SEP]"), "--top_k=2"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        case: add_tokenizer(copied(case, root / case), ends=ends)
        for case, ends, _ in {case: (case, *rest) for case, *rest in CASES.values()}.values()
    }


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, folders):
    """Runs a verb; returns its output lines and the model that it loaded."""
    models = []
    for name in ("load", "place"):
        read = getattr(t5lite.inference, name)
        monkeypatch.setattr(
            f"t5lite.inference.{name}",
            lambda *args, _read=read, **kw: models.append(_read(*args, **kw)) or models[-1],
        )

    def run(verb, *flags):
        case, _, option = CASES[verb]
        (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
        texts = TEXTS
        if verb == "infer":
            out = tmp_path / "out.jsonl"
            texts = (f"--input_file={tmp_path}/in.txt", f"--output_file={out}", "--overwrite")
        assert main([verb, f"--model_dir={folders[case]}", *texts, option, *flags]) == 0
        printed = capsys.readouterr().out
        lines = (out.read_text() if verb == "infer" else printed).splitlines()
        return [line if verb == "generate" else json.loads(line) for line in lines], models[-1]

    return run


def flat(value):
    """Returns the leaves of JSON-like values: numbers as floats, others as they are."""
    return [float(leaf) if isinstance(leaf, float) else leaf for leaf in jax.tree.leaves(value)]


@pytest.mark.parametrize("verb", CASES)
def test_sharded_on_eight_devices_equals_one(run, verb, monkeypatch):
    sharded, model = run(verb, "--layout=fsdp", "--dtype=float32")
    leaves = jax.tree.leaves(model.params)
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    spread = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    assert sum(leaf.nbytes for leaf in spread) > 0.9 * sum(leaf.nbytes for leaf in leaves)
    for leaf in spread:
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size
    devices = jax.devices()
    monkeypatch.setattr("jax.devices", lambda *_: devices[:1])
    monkeypatch.setattr("jax.local_devices", lambda *_: devices[:1])
    whole, model = run(verb, "--dtype=float32")
    assert model.mesh.size == 1
    for ours, theirs in zip(flat(sharded), flat(whole), strict=True):
        assert ours == (pytest.approx(theirs, abs=1e-4) if isinstance(ours, float) else theirs)


@pytest.mark.parametrize("verb", CASES)
def test_dtypes_of_parameters_and_activations(run, verb):
    _, model = run(verb, "--dtype=bfloat16", "--compute_dtype=bfloat16", "--layout=fsdp")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}
    assert model.model.compute.dtype == "bfloat16"
    assert dict(model.mesh.shape)["fsdp"] == 8


def test_a_resumed_job_keeps_its_dtypes(run, folders, tmp_path, capsys):
    run("infer", "--dtype=bfloat16")
    (tmp_path / "out.jsonl").rename(tmp_path / "out.jsonl.part")
    flags = (f"--input_file={tmp_path}/in.txt", f"--output_file={tmp_path}/out.jsonl")
    assert main(["infer", f"--model_dir={folders['t5_1_1']}", *flags, "--max_new_tokens=6"]) == 2
    assert 'dtype = "bfloat16", now nothing' in capsys.readouterr().err


def test_a_layout_is_a_fragment_or_a_file(tmp_path):
    assert dict(layout_of("fsdp").mesh) == {"fsdp": -1}
    mine = tmp_path / "mine.gin"
    mine.write_text("include 'gin/partitioning/fsdp_tensor.gin'\nTENSOR_PARALLEL = 4\n")
    assert dict(layout_of(str(mine)).mesh) == {"fsdp": -1, "tensor": 4}
    np.testing.assert_equal(dict(layout_of("mine.gin", [str(tmp_path)]).mesh)["tensor"], 4)


def test_layouts_that_are_refused(tmp_path, folders, capsys):
    with pytest.raises(InputError, match="unknown layout 'fdsp'; did you mean fsdp"):
        layout_of("fdsp")
    with pytest.raises(InputError, match=r"known: expert, fsdp, fsdp_2d, .*replicated"):
        layout_of("none-of-these")
    (tmp_path / "other.gin").write_text(
        "from __gin__ import dynamic_registration\nimport t5lite\nt5lite.train.seed = 1\n"
    )
    with pytest.raises(InputError, match=r"other.gin binds no t5lite.train.layout"):
        layout_of(str(tmp_path / "other.gin"))
    assert main(["score", f"--model_dir={folders['gpt2']}", "--layout=fdsp", "a"]) == 2
    assert "unknown layout 'fdsp'; did you mean fsdp" in capsys.readouterr().err
