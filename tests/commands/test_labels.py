"""Labels keep their meaning: their names go with the model, wherever its outputs are read."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from saved_models import save_model

import t5lite
from t5lite import interop
from t5lite.data import (
    Bytes,
    Class,
    FileData,
    MixtureData,
    Number,
    PackedData,
    Tags,
    write_packed,
)
from t5lite.data.labels import check_labels, load_labels, save_labels
from t5lite.errors import InputError
from t5lite.evaluation import HeldOut
from t5lite.experiment import Experiment
from t5lite.experiment.evaluation import evaluate
from t5lite.experiment.preview import example_texts
from t5lite.experiment.run_folder import check_described
from t5lite.experiment.start import plan_start
from t5lite.layers import ClassificationHeadSpec
from t5lite.main import main
from t5lite.models import Model, override
from t5lite.objectives import Classification, Regression, TokenLabels
from t5lite.parallel import Layout
from t5lite.training import Checkpoints

NAMES = {"labels": ["neg", "neu", "pos"]}
LAYOUT = Layout(compiler_options={"cpu": {"xla_backend_optimization_level": 0}})


@pytest.fixture(scope="module")
def spec():
    changes = {
        "vocab": 384,
        "embed": 16,
        "encoder.num_layers": 1,
        "*.blocks.*.attention.num_heads": 2,
        "*.blocks.*.attention.head_dim": 8,
        "*.blocks.*.mlp.hidden": 16,
        "*.dropout_rate": 0.0,
        "heads": [ClassificationHeadSpec(num_classes=3, pooling="first", pooler=True)],
    }
    return override("bert_nano", changes)


@pytest.fixture(scope="module")
def saved(spec, tmp_path_factory):
    """A model that calls every text "pos", the last of its three classes."""
    folder = tmp_path_factory.mktemp("labels") / "run"
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), Model(spec).shapes())
    params["classification_head"]["projection"]["bias"][2] = 9
    save_model(folder, spec, params, vocabulary=Bytes(125), labels=NAMES)
    return folder


def data(folder, classes, column=None):
    path = folder / f"{'-'.join(classes)}.csv"
    rows = "".join(f"text {i},{classes[i % len(classes)]}\n" for i in range(40))
    path.write_text(f"body,stars\n{rows}")
    return FileData(
        str(path),
        features={"inputs": "{body}", "labels": column or Class("stars")},
        vocab=Bytes(125),
        validation_share=0.5,
        lengths={"inputs": 16},
        batch_size=8,
    )


def test_evaluation_numbers_classes_as_training_did(saved, spec, tmp_path):
    def accuracy(classes):
        run = Experiment(
            str(saved),
            model=spec,
            objective=Classification(),
            data=data(tmp_path, classes),
            optimizer=None,
            callbacks=[HeldOut(every=1)],
            layout=LAYOUT,
        )
        metrics = evaluate(run)
        return metrics["held_out/accuracy"]

    assert accuracy(["pos"]) == 1  # its own number would be 0, as a file of other classes has it
    with pytest.raises(InputError, match=r"good-pos.csv:\d+: unknown class of 'labels' 'good'"):
        accuracy(["good", "pos"])


def test_a_resumed_run_has_the_same_labels(saved, spec, tmp_path):
    folder = epath.Path(saved)
    check_described(folder, spec, Bytes(125), data(tmp_path, NAMES["labels"]).labels())
    for classes, column in (["neg", "pos"], None), ([*NAMES["labels"]], ["pos", "neu", "neg"]):
        ours = data(tmp_path, classes, column and Class("stars", classes=column))
        with pytest.raises(InputError) as raised:
            check_described(folder, spec, Bytes(125), ours.labels())
        for names in (column or classes, NAMES["labels"]):
            assert ", ".join(map(repr, names)) in str(raised.value)
        assert len(str(raised.value).splitlines()) <= 5


def test_a_restored_head_has_the_same_labels(saved, spec, tmp_path):
    fresh = [("classification_head/.*", None)]
    ours, other = data(tmp_path, NAMES["labels"]), data(tmp_path, ["bad", "good"])

    def plan(dataset, **checkpoints):
        settings = {"objective": Classification(), "optimizer": None, "data": dataset}
        run = Experiment("unused", model=spec, **settings, checkpoints=Checkpoints(**checkpoints))
        return plan_start(run)

    assert plan(ours, restore_from=str(saved))
    assert plan(other) is None
    plan(other, restore_from=str(saved), restore_mapping=fresh)
    with pytest.raises(InputError, match="classification head is restored"):
        plan(other, restore_from=str(saved))


def test_names_go_to_hugging_face_and_back(saved, tmp_path, capsys):
    assert t5lite.load(saved).labels == NAMES
    assert main(["convert", str(saved), str(tmp_path / "hf")]) == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "neu", "2": "pos"}
    assert config["label2id"] == {"neg": 0, "neu": 1, "pos": 2}
    assert interop.open_model(tmp_path / "hf").description.labels == NAMES
    for names in config["id2label"]:  # transformers' own names say nothing
        config["id2label"][names] = f"LABEL_{names}"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    assert interop.open_model(tmp_path / "hf").description.labels == {}


def test_every_kind_of_data_says_its_labels_and_takes_a_models(tmp_path):
    ours = data(tmp_path, ["pos", "neu"])
    mixture = MixtureData([ours, ours], lengths=ours.lengths, batch_size=8)
    for each in ours, mixture:
        assert each.labels() == {"labels": ["neu", "pos"]}
        bound = each.with_labels(NAMES)
        assert bound.labels() == NAMES
        assert list(bound.class_counts("train")["labels"]) == NAMES["labels"]
        assert each.with_labels({}).labels() == each.labels()
    assert Tags("words", "tags").with_names(["O", "X"]).names() == ["O", "X"]
    numbers = Number(["x", "y"])
    assert numbers.with_names(["x", "y"]) == numbers
    assert Number("x").with_names(["y"]).names() == ()
    for column, names in (numbers, ["y", "x"]), (Class("a", classes=["b", "a"]), ["a", "b"]):
        with pytest.raises(InputError, match="the model's labels are"):
            column.with_names(names)
    for make in (
        lambda names: Class("a", classes=names),
        lambda names: Tags("a", "b", classes=names),
    ):
        with pytest.raises(InputError, match="'x' is repeated"):
            make(["x", "y", "x"])


def test_labels_that_are_packed_keep_their_numbers(tmp_path):
    ours = data(tmp_path, ["pos", "neu"])
    write_packed(ours, Classification(), tmp_path / "cache")
    packed = PackedData(tmp_path / "cache", lengths=ours.lengths, batch_size=8)
    assert packed.labels() == {"labels": ["neu", "pos"]}
    assert packed.with_labels({"labels": ["neu", "pos", "neg"]}) is packed
    with pytest.raises(InputError, match="not those of the model"):
        packed.with_labels(NAMES)


def test_examples_are_shown_with_names(tmp_path):
    texts = example_texts(
        data(tmp_path, ["pos", "neu"]), Classification(), split="train", count=5, seed=0
    )
    assert {text.split("→ ")[1] for text in texts} <= {"pos", "neu"}
    example = {"inputs": np.array([100, 101, 1]), "labels": np.array([0, 1, -1])}
    assert TokenLabels().show(example, Bytes(), ["O", "X"])[1] == "b=X"
    assert Regression().show_labels(np.array([1.5, 2]), ["x", "y"]) == "x=1.5 y=2"


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1, "labels": {"labels": [1]}}'])
def test_damaged_names_are_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match=r"labels\.json is damaged"):
        load_labels(tmp_path)


def test_names_are_written_where_they_differ(tmp_path):
    save_labels(tmp_path, {})
    assert not list(tmp_path.iterdir())
    save_labels(tmp_path, NAMES)
    written = (tmp_path / "labels.json").stat().st_mtime_ns
    save_labels(tmp_path, NAMES)
    assert (tmp_path / "labels.json").stat().st_mtime_ns == written
    check_labels({"labels": ["a"]}, {"others": ["b"]})  # nothing in common
