"""`t5lite convert`: between the three layouts, and what people get wrong."""

import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_models import save_model
from small_folders import REFERENCES, add_tokenizer, copied, leaves
from tiny_runs import train

import t5lite
from t5lite import interop
from t5lite.errors import InputError
from t5lite.interop import huggingface
from t5lite.main import main
from t5lite.models import load_spec
from t5lite.optimizers import SGD
from t5lite.parallel import make_mesh
from t5lite.training import Checkpoints, Update, load_params

KINDS = ("t5lite", "huggingface", "t5x")
NAMES = {"t5lite": "t5lite", "huggingface": "Hugging Face", "t5x": "T5X"}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """What is tested here has nothing to do with devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "t5lite.interop.conversion.make_mesh",
            lambda layout, devices=None: make_mesh(layout, devices or jax.devices()[:1]),
        )
        yield


T5X_HAS = {"layer_norm_epsilon": 1e-6, "relative_attention_max_distance": 128, "dropout_rate": 0.0}


@pytest.fixture(scope="module")
def sources(one_device, tmp_path_factory):
    """One T5 in each layout, that all of them can say."""
    root = tmp_path_factory.mktemp("sources")
    add_tokenizer(copied("t5_1_1", root / "huggingface", **T5X_HAS))
    loaded = t5lite.load(root / "huggingface")
    for kind in "t5lite", "t5x":
        options = {"kind": kind, "vocabulary": loaded.vocabulary, "step": 4}
        save_model(root / kind, loaded.model, loaded.params, **options)
    return root


@pytest.fixture(scope="module")
def whole(sources):
    """What is in them."""
    return t5lite.load(sources / "huggingface")


def run(capsys, *arguments):
    code = main(["convert", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def refused(capsys, *arguments):
    """Runs what must fail, and returns what is said in at most five lines."""
    code, out, err = run(capsys, *arguments)
    assert code == 2, (out, err)
    assert len(err.splitlines()) <= 5
    assert err.startswith("t5lite: ")
    return err


# --- every direction ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [*itertools.permutations(KINDS, 2), ("huggingface", "huggingface")],
)
def test_every_direction(sources, whole, tmp_path, capsys, source, target):
    code, out, err = run(capsys, sources / source, tmp_path / "new", f"--to={target}")
    assert (code, err) == (0, "")
    first, *_, last = out.splitlines()
    assert first.startswith(str(sources / source))  # and the step, where there are several
    assert first.endswith(f" is {NAMES[source]}'s: t5, encoder_decoder, 54,928 parameters")
    # Where there is no vocabulary, or no place for it, that is said.
    without = ", without a vocabulary" if "t5x" in (source, target) else ""
    assert last == f"{tmp_path}/new: {NAMES[target]}'s layout, 107 KiB{without}"
    assert interop.kind_of(tmp_path / "new")[0] == target
    new = t5lite.load(tmp_path / "new")
    assert leaves(new.params) == leaves(whole.params)
    assert new.spec == whole.spec
    assert (new.vocabulary is None) == bool(without)
    if "huggingface" not in (source, target):
        assert new.step == 4


@pytest.mark.parametrize(
    ("source", "target"), [("huggingface", "t5lite"), ("t5x", "t5lite"), ("t5lite", "huggingface")]
)
def test_the_layout_is_chosen_by_the_source(sources, tmp_path, capsys, source, target):
    code, out, _ = run(capsys, sources / source, tmp_path / "new", "--dry-run")
    assert code == 0
    assert ("Hugging Face tensor" in out) == ("huggingface" in (source, target))


def test_dtype(sources, tmp_path, capsys):
    code, out, _ = run(capsys, sources / "huggingface", tmp_path / "new", "--dtype=float32")
    assert code == 0
    assert "t5lite's layout, 215 KiB" in out
    kinds = {kind for kind, *_ in leaves(t5lite.load(tmp_path / "new").params).values()}
    assert kinds == {"float32"}
    assert run(capsys, tmp_path / "new", tmp_path / "half", "--dtype=bfloat16")[0] == 0
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"


def test_scanned(sources, whole, tmp_path, capsys):
    arguments = (sources / "t5lite", tmp_path / "new", "--to=t5x", "--scanned")
    assert run(capsys, *arguments)[0] == 0
    names = [path.name for path in (tmp_path / "new/checkpoint_4").iterdir()]
    assert not any("layers_0" in name for name in names)
    assert leaves(t5lite.load(tmp_path / "new").params) == leaves(whole.params)
    assert "--scanned is for --to=t5x" in refused(capsys, *arguments[:2], "--scanned")


def test_what_t5x_does_not_say_is_said(tmp_path, capsys):
    folder = copied("t5_1_1", tmp_path / "old", layer_norm_epsilon=1e-6)
    _, out, _ = run(capsys, folder, tmp_path / "new", "--to=t5x", "--dry-run")
    (line,) = [line for line in out.splitlines() if "pass `spec=`" in line]
    assert "to `load`: decoder.dropout_rate = 0.1, decoder.position_bias.max_d" in line
    folder = copied("t5_1_1", tmp_path / "sayable", **T5X_HAS)
    assert "pass `spec=`" not in run(capsys, folder, "new", "--to=t5x", "--dry-run")[1]


# --- a dry run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", KINDS)
def test_a_dry_run_lists_the_mapping_and_writes_nothing(sources, tmp_path, capsys, source):
    code, out, err = run(
        capsys, sources / source, tmp_path / "new", "--dry-run", "--to=huggingface"
    )
    assert (code, err, list(tmp_path.iterdir())) == (0, "", [])
    tables = {part.split("  ")[0]: part.splitlines() for part in out.split("\n\n")[1:]}
    expected = {"Hugging Face tensor"} | ({"T5X tensor"} if source == "t5x" else set())
    assert set(tables) == expected
    names = huggingface.open_model(sources / "huggingface").source.tensors()
    assert {line.split()[0] for line in tables["Hugging Face tensor"][1:]} >= set(names)
    rows = [line.split("  ") for line in tables["Hugging Face tensor"]]
    (row,) = [row for row in rows if row[0] == "decoder.block.3.layer.1.EncDecAttention.q.weight"]
    assert [cell.strip() for cell in row if cell] == [
        "decoder.block.3.layer.1.EncDecAttention.q.weight",
        "[28, 24]",
        "decoder/layers/block_0/cross_attention/query/kernel[3]",
    ]


def test_a_dry_run_needs_no_new_target(sources, capsys):
    assert run(capsys, sources / "t5x", sources / "t5lite", "--dry-run")[0] == 0


def test_a_dry_run_may_be_cut_short(sources, tmp_path):
    command = [sys.executable, "-m", "t5lite.main", "convert", "--dry-run"]
    command += [str(REFERENCES / "albert"), str(tmp_path / "new")]
    root = str(Path(t5lite.__file__).parent.parent)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": root, "XLA_FLAGS": ""},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# --- progress -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_alone(sources, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["convert", str(sources / "t5x"), str(tmp_path / "new"), "--to=huggingface"]) == 0
    drawn = sys.stderr.getvalue()
    assert "reading: 100%" in drawn
    assert "writing: 100%" in drawn
    monkeypatch.undo()
    assert run(capsys, sources / "t5x", tmp_path / "other", "--to=huggingface")[2] == ""


# --- what a converted folder is for -------------------------------------------------------------


@pytest.mark.slow
def test_a_run_starts_from_it(sources, whole, tmp_path, capsys, monkeypatch):
    assert run(capsys, sources / "huggingface", tmp_path / "ours")[0] == 0
    monkeypatch.setattr(
        "t5lite.experiment.definition.make_mesh", lambda each: make_mesh(each, jax.devices()[:1])
    )
    trained = train(
        tmp_path / "run",
        model=load_spec(tmp_path / "ours/model.json"),
        optimizer=SGD(1e-3),
        update=Update(),
        steps=2,
        checkpoints=Checkpoints(restore_from=str(tmp_path / "ours")),
    )
    assert f"parameters from {tmp_path}/ours/checkpoints/0" in capsys.readouterr().out
    assert trained.state.step == 2

    def furthest(ours, theirs):
        assert ours.dtype == np.float32
        return np.abs(ours - np.asarray(theirs, np.float32)).max()

    moved = jax.tree.leaves(jax.tree.map(furthest, trained.state.params, whole.params))
    assert 0 < max(moved) < 0.1  # of numbers around 1
    again = t5lite.load(tmp_path / "run")
    assert (again.step, again.spec) == (2, whole.spec)
    assert run(capsys, tmp_path / "run", tmp_path / "back")[0] == 0
    back = t5lite.load(tmp_path / "back")
    assert leaves(back.params) == leaves(trained.state.params)


def test_a_run_does_not_start_from_another_layout(sources, tmp_path):
    for kind in "huggingface", "t5x":
        with pytest.raises(InputError, match=r"no checkpoint in .*\n.*`t5lite convert` makes"):
            load_params(sources / kind)


# --- what people get wrong ----------------------------------------------------------------------


def test_flags(sources, tmp_path, capsys):
    new = tmp_path / "new"
    assert "argument --to: invalid choice: 'hf'" in refused(capsys, sources / "t5x", new, "--to=hf")
    assert "--dtype: invalid choice" in refused(capsys, sources / "t5x", new, "--dtype=int8")
    assert "required: SOURCE, TARGET" in refused(capsys)
    assert "did you mean --dry-run" in refused(capsys, sources / "t5x", new, "--dryrun")
    assert "reads no gin" in refused(capsys, sources / "t5x", new, "--gin.train.seed=1")
    assert not new.exists()


def test_folders(sources, tmp_path, capsys):
    new, empty = tmp_path / "new", tmp_path / "empty"
    empty.mkdir()
    said = refused(capsys, tmp_path / "nowhere", new)
    assert "there is no folder" in said
    assert "a Hugging Face folder" in said
    said = refused(capsys, empty, new)
    assert all(word in said for word in ("which holds nothing", "t5lite:", "Face:", "T5X:"))
    assert not new.exists()


def test_an_existing_target_is_refused_before_anything_is_read(
    sources, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "t5lite.interop.conversion.read_params", lambda *_, **__: pytest.fail("was read")
    )
    (tmp_path / "mine.txt").touch()
    said = refused(capsys, sources / "huggingface", tmp_path)
    assert f"{tmp_path} holds something already; give a folder that is new or empty" in said


def test_pickles_are_refused_with_advice(tmp_path, capsys):
    folder = copied("llama", tmp_path / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refused(capsys, folder, tmp_path / "new")
    assert "pytorch_model.bin is a pickle" in said
    assert "AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW)" in said


def test_a_truncated_file(tmp_path, capsys):
    folder = copied("llama", tmp_path / "old")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    said = refused(capsys, folder, tmp_path / "new")
    assert f"model.safetensors is truncated: it has {len(content) - 100:,} bytes" in said
    assert not (tmp_path / "new").exists()


def test_an_unknown_family_lists_the_known_ones(tmp_path, capsys):
    folder = copied("llama", tmp_path / "old", model_type="llama9")
    said = refused(capsys, folder, tmp_path / "new")
    assert "unknown model_type 'llama9'; known: " in said
    assert all(name in said for name in huggingface.MODULES)


def all_of(said):
    """The whole of a message, which may be in a file."""
    path = re.search(r"  all \d+ lines: (.+)", said)
    return Path(path[1]).read_text() if path else said


def test_missing_and_unexpected_tensors_are_named(tmp_path, capsys):
    folder = copied("llama", tmp_path / "missing", num_hidden_layers=4)
    said = all_of(refused(capsys, folder, tmp_path / "new"))
    for name in "self_attn.q_proj", "mlp.down_proj", "post_attention_layernorm":
        assert f"model.layers.3.{name}.weight" in said
    assert "likely cause: model.layers has 3 layers in the file and 4 in the model" in said
    # Before a dry run says that all is well, too.
    assert "likely cause" in refused(capsys, folder, tmp_path / "new", "--dry-run")
    folder = copied("llama", tmp_path / "unexpected", num_hidden_layers=2)
    code, out, err = run(capsys, folder, tmp_path / "new")
    assert code == 2
    assert "left out" not in out  # what is refused is not left out
    for name in "self_attn.q_proj", "mlp.down_proj", "post_attention_layernorm":
        assert f"model.layers.2.{name}.weight" in all_of(err)
    assert not (tmp_path / "new").exists()


def test_what_the_target_cannot_express(tmp_path, capsys):
    said = refused(capsys, REFERENCES / "llama", tmp_path / "new", "--to=t5x")
    assert "T5X" in said
    spec = huggingface.open_model(REFERENCES / "t5_1_1").spec
    changes = {
        side: getattr(spec, side).replace(
            blocks=tuple(
                block.replace(norm=block.norm.replace(epsilon=0.1 / (layer + 2)))
                for layer, block in enumerate(getattr(spec, side).every_block)
            )
        )
        for side in ("encoder", "decoder")
    }
    changed = t5lite.models.Model(spec.replace(**changes))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), changed.shapes())
    save_model(tmp_path / "old", changed, zeros)
    said = refused(capsys, tmp_path / "old", tmp_path / "new")
    assert "decoder.blocks.1.norm.epsilon: 0.03333333333333333 would become 0.05" in said
    assert len(said.splitlines()) == 5
    for layer in 1, 2:
        assert f"encoder.blocks.{layer}.norm.epsilon" in all_of(said)
    assert not (tmp_path / "new").exists()
