"""Folders that are not models: each message names what they are, and its advice leads to a model.

A chain is walked: do what a message says, and no later message refuses that.
"""

import json
import shutil

import jax
import pytest
from small_folders import REFERENCES, copied

import t5lite
from t5lite.errors import InputError
from t5lite.interop.huggingface.files import open_tensors, write_tensors

ONE = jax.devices()[:1]
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "task_type": "CAUSAL_LM"}


def adapter(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def message(folder):
    with pytest.raises(InputError) as info:
        t5lite.load(folder, devices=ONE)
    text = str(info.value)
    assert len(text.splitlines()) <= 5, text
    return text


def test_an_adapter_alone_or_with_its_bases_config(tmp_path):
    folder = adapter(tmp_path / "adapter")
    for _ in range(2):
        said = message(folder)
        assert "adapter holds a PEFT adapter (LORA) of 'some/base', not a model" in said
        assert "AutoPeftModelForCausalLM" in said
        assert f'from_pretrained("{folder}").merge_and_unload()' in said
        assert 'AutoTokenizer.from_pretrained("some/base")' in said  # the folder has none
        shutil.copy(REFERENCES / "llama/config.json", folder)
    adapter(folder, task_type="SEQ_CLS")
    assert "AutoPeftModelForSequenceClassification" in message(folder)


def test_learned_prompts_cannot_be_merged(tmp_path):
    said = message(adapter(tmp_path / "adapter", peft_type="PROMPT_TUNING"))
    assert "cannot be merged" in said
    assert "merge_and_unload" not in said


def test_an_adapter_beside_a_model(tmp_path):
    folder = adapter(copied("llama", tmp_path / "both"))
    said = message(folder)
    assert "holds a whole model, and beside it a PEFT adapter" in said
    assert "merge_and_unload" in said
    assert "move adapter_config.json and adapter_model.* out of the folder" in said
    for path in folder.glob("adapter_*"):
        path.unlink()
    assert t5lite.load(folder, devices=ONE).spec.family == "llama"


def test_an_adapter_inside_a_models_tensors(tmp_path):
    folder = copied("llama", tmp_path / "unmerged")
    source = open_tensors(folder)
    due = [
        (f"base_model.model.{name}", tensor, lambda name=name: source.read(name))
        for name, tensor in source.tensors().items()
    ]
    _, tensor, make = due[-1]
    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write_tensors(tmp_path / "written", [*due, (lora, tensor, make)])
    shutil.copy(tmp_path / "written/model.safetensors", folder)
    said = message(folder)
    assert f"an adapter that is not merged into its weights ({lora})" in said
    assert "model = model.merge_and_unload()" in said


def test_a_folder_of_checkpoints_names_them(tmp_path):
    root = tmp_path / "trained"
    for step in (500, 1000, 50):
        copied("llama", root / f"checkpoint-{step}")
    (root / "runs").mkdir()
    said = message(root)
    assert "in folders inside it: checkpoint-50, checkpoint-500, checkpoint-1000\n" in said
    advised = said.rpartition("give one of them: ")[2]
    assert advised == str(root / "checkpoint-1000")
    assert t5lite.load(advised, devices=ONE).spec.family == "llama"
    for path in root.glob("*/model.safetensors"):
        path.unlink()
        adapter(path.parent)
    assert "PEFT adapter" in message(message(root).rpartition("give one of them: ")[2])


def test_safetensors_of_another_name(tmp_path):
    folder = copied("llama", tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert "if weights.safetensors is the model's, rename it to model.safetensors" in message(
        folder
    )
    assert "is a file; give its folder" in message(folder / "weights.safetensors")
    (folder / "weights.safetensors").rename(folder / "model.safetensors")
    assert t5lite.load(folder, devices=ONE).spec.family == "llama"
