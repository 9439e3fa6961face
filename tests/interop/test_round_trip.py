"""Hugging Face → t5lite → Hugging Face keeps what the folder says, or `convert` names what is lost.

Every family's reference, with a tokenizer, a chat template, generation defaults and fields of its
config that no spec has. Files come back byte for byte, and config.json field by field.
"""

import json

import jax
import numpy as np
import pytest
from parity_cases import REFERENCED
from saved_models import description, save_model
from small_folders import REFERENCES, add_pooling, add_tokenizer, copied, leaves

import t5lite
from t5lite import interop
from t5lite.data import Bytes
from t5lite.interop import huggingface
from t5lite.layers import ClassificationHeadSpec
from t5lite.main import main
from t5lite.models import Model

ONE = jax.devices()[:1]
EXTRA = {
    "eos_token_id": [2, 5],
    "pad_token_id": 1,
    "use_cache": False,
    "task_specific_params": {"summarization": {"prefix": "summarize: "}},
    "an_option_of_tomorrow": [1, {"a": None}],
    "transformers_version": "4.41.2",
}
GENERATION = {"eos_token_id": [2, 5], "num_beams": 4, "a_field_of_tomorrow": 1.5}
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def folder_of(case, root, **changes):
    """Returns a reference as a released model's folder would be."""
    config = json.loads((REFERENCES / case / "config.json").read_text())
    extra = {name: value for name, value in EXTRA.items() if name != "pad_token_id"}
    if "roberta" not in case:  # whose positions begin after padding's id
        extra["pad_token_id"] = EXTRA["pad_token_id"]
    folder = copied(case, root, **extra | changes)
    if config["vocab_size"] >= 57:
        add_tokenizer(folder)
        described = json.loads((folder / "tokenizer_config.json").read_text())
        described |= {"chat_template": TEMPLATE, "model_max_length": 77}
        (folder / "tokenizer_config.json").write_text(json.dumps(described))
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates/tools.jinja").write_text(TEMPLATE)
        (folder / "special_tokens_map.json").write_text('{ "eos_token":"[SEP]" }')
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def files(folder):
    """Returns the files of a folder but for tensors and the config, as bytes by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".safetensors" and path.name != "config.json"
    }


def config_of(folder, *without):
    content = json.loads((folder / "config.json").read_text())
    return {k: v for k, v in content.items() if k not in ("dtype", "torch_dtype", *without)}


def convert(*arguments):
    assert main(["convert", *map(str, arguments)]) == 0


@pytest.mark.light("bart", "bert_classes", "gemma2", "llama", "roberta", "t5_1_1")
@pytest.mark.parametrize("case", REFERENCED)
def test_there_and_back_is_the_same_folder(case, tmp_path, capsys):
    old = folder_of(case, tmp_path / "old")
    before = t5lite.load(old, devices=ONE)
    convert(old, tmp_path / "t5lite")
    convert(tmp_path / "t5lite", tmp_path / "new")
    assert "lost" not in capsys.readouterr().out
    assert files(tmp_path / "new") == files(old)
    assert config_of(tmp_path / "new") == config_of(old)
    again = t5lite.load(tmp_path / "new", devices=ONE)
    assert again.spec == before.spec
    assert leaves(again.params) == leaves(before.params)
    assert again.description.generation == before.description.generation


def test_straight_to_the_same_layout(tmp_path):
    old = folder_of("llama", tmp_path / "old")
    convert(old, tmp_path / "new", "--to=huggingface", "--dtype=float32")
    assert files(tmp_path / "new") == files(old)
    assert config_of(tmp_path / "new") == config_of(old)
    assert json.loads((tmp_path / "new/config.json").read_text())["dtype"] == "float32"


def test_what_is_not_copied_is_named(tmp_path, capsys):
    old = folder_of("llama", tmp_path / "old", auto_map={"AutoModel": "modelling.Model"})
    for name in ("README.md", "modelling.py", "training_args.bin"):
        (old / name).write_text("")
    (old / "onnx").mkdir()
    for arguments in ([tmp_path / "new", "--dry-run"], [tmp_path / "new"]):
        convert(old, *arguments)
        said = capsys.readouterr().out
        for name in ("README.md", "modelling.py", "training_args.bin", "onnx"):
            assert f"lost: {name}: not copied" in said
    convert(tmp_path / "new", tmp_path / "back", "--dry-run")
    assert "lost: config.json: auto_map" in capsys.readouterr().out
    convert(tmp_path / "new", tmp_path / "back")
    assert "auto_map" not in config_of(tmp_path / "back")


def test_t5x_has_no_place_for_most(tmp_path, capsys):
    old = folder_of("t5_1_1", tmp_path / "old", layer_norm_epsilon=1e-6)
    convert(old, tmp_path / "new", "--to=t5x", "--dry-run")
    said = capsys.readouterr().out
    for name in ("the tokenizer", "generation_config.json", "config.json"):
        assert f"lost: {name}: not stored in T5X checkpoints" in said


def test_another_vocabulary_has_other_ids(tmp_path):
    """Files of the first tokenizer, and ids of its tokens, do not go with another."""
    old = folder_of("t5_1_1", tmp_path / "old")
    found, loaded = interop.open_model(old), t5lite.load(old, devices=ONE)
    spec = loaded.spec.replace(vocab=384)
    table = np.zeros((384, spec.embed), np.float32)
    params = loaded.params | {"token_embedding": {"embedding": table}}
    head = params["lm_head"]["projection"]["kernel"].shape[0]
    params["lm_head"] = {"projection": {"kernel": np.zeros((head, 384), np.float32)}}
    own = {"vocabulary": Bytes(), "origin": found.description.origin}
    save_model(tmp_path / "new", spec, params, kind="huggingface", **own)
    config = config_of(tmp_path / "new")
    assert config["eos_token_id"] == Bytes().eos_id
    assert config["an_option_of_tomorrow"] == EXTRA["an_option_of_tomorrow"]
    assert config["vocab_size"] == 384
    assert {"chat_template.jinja", "generation_config.json"}.isdisjoint(files(tmp_path / "new"))
    lost = huggingface.losses(description(spec, **own))
    assert "chat_template.jinja: the vocabulary is another" in lost
    assert any(line.startswith("config.json: ") and "eos_token_id" in line for line in lost)


def test_a_new_head_has_its_own_labels(tmp_path):
    """The names of the first model's labels are not those of another head of as many."""
    names = {str(index): name for index, name in enumerate(["one", "two", "three", "four", "five"])}
    labels = {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    old = folder_of("bert_classes", tmp_path / "old", **labels)
    found, loaded = interop.open_model(old), t5lite.load(old, devices=ONE)
    assert loaded.labels == {"labels": [*names.values()]}
    rest = {"vocabulary": loaded.vocabulary, "origin": found.description.origin}
    rest["kind"] = "huggingface"
    save_model(tmp_path / "same", loaded.spec, loaded.params, labels=loaded.labels, **rest)
    assert config_of(tmp_path / "same") == config_of(old)
    save_model(tmp_path / "unnamed", loaded.spec, loaded.params, **rest)
    said = config_of(tmp_path / "unnamed")
    assert said["id2label"] == {str(index): f"LABEL_{index}" for index in range(5)}
    more = {"labels": ["a", "b", "c", "d"]}
    head = loaded.spec.heads[0].replace(num_classes=4)
    assert isinstance(head, ClassificationHeadSpec)
    spec = loaded.spec.replace(heads=(head,))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), Model(spec).shapes())
    save_model(tmp_path / "more", spec, zeros, labels=more, **rest)
    said = config_of(tmp_path / "more")
    assert said["label2id"] == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert said["an_option_of_tomorrow"] == EXTRA["an_option_of_tomorrow"]


def test_sentence_files_come_back(tmp_path):
    old = add_pooling(folder_of("bert_base_model", tmp_path / "old"), {"pooling_mode": "cls"})
    (old / "sentence_bert_config.json").write_text('{ "max_seq_length": 9 }')
    (old / "config_sentence_transformers.json").write_text('{ "similarity_fn_name": "dot" }')
    convert(old, tmp_path / "t5lite")
    convert(tmp_path / "t5lite", tmp_path / "new")
    assert files(tmp_path / "new") == files(old)
    pooling = "1_Pooling/config.json"
    assert (tmp_path / "new" / pooling).read_bytes() == (old / pooling).read_bytes()


def test_positions_that_are_not_known_are_told(tmp_path, capsys):
    loaded = t5lite.load(REFERENCES / "llama", devices=ONE)
    save_model(tmp_path / "t5lite", loaded.spec, loaded.params)
    convert(tmp_path / "t5lite", tmp_path / "new")
    assert "lost: max_position_embeddings: not known" in capsys.readouterr().out
