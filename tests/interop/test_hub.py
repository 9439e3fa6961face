"""Models by their names, from a hub that is made up: one format, a revision, failures."""

import fnmatch
import json
import shutil
import sys
import types

import jax
import pytest
from small_folders import REFERENCES, copied

import t5lite
from t5lite.errors import InputError
from t5lite.interop import kind_of

ONE = jax.devices()[:1]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A huggingface_hub that knows one model, and writes down what it is asked."""

    def snapshot_download(name, *, revision=None, allow_patterns, ignore_patterns):
        hub.asked.append((name, revision))
        if isinstance(hub.answer, Exception):
            raise hub.answer
        folder = tmp_path / "snapshot"
        for path in hub.answer.rglob("*"):
            own = str(path.relative_to(hub.answer))
            wanted = any(fnmatch.fnmatch(own, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(own, pattern) for pattern in ignore_patterns):
                (folder / own).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / own)
        folder.mkdir(exist_ok=True)
        return str(folder)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download, hub.asked = snapshot_download, []
    hub.answer, hub.folder = REFERENCES / "llama", tmp_path / "snapshot"
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def test_a_name_of_the_hub(hub):
    assert t5lite.load("someone/llama", devices=ONE).spec.family == "llama"
    assert hub.asked == [("someone/llama", None)]


@pytest.mark.parametrize(
    ("name", "revision"),
    [("someone/llama@v1.0", None), ("someone/llama", "v1.0"), ("someone/llama@v1.0", "v1.0")],
)
def test_a_revision(hub, name, revision):
    assert t5lite.load(name, revision=revision, devices=ONE).spec.family == "llama"
    assert hub.asked == [("someone/llama", "v1.0")]


def test_two_revisions_or_one_of_a_folder(hub):
    with pytest.raises(InputError, match=r"revision = 'v2': 'a/b@v1' names another; give one"):
        t5lite.load("a/b@v1", revision="v2")
    with pytest.raises(InputError, match=r"revision = 'v2': is for models of the Hugging Face hub"):
        t5lite.load(REFERENCES / "llama", revision="v2")
    assert hub.asked == []


def test_a_folder_comes_before_a_name(hub, tmp_path, monkeypatch):
    copied("llama", tmp_path / "someone" / "llama")
    monkeypatch.chdir(tmp_path)
    assert t5lite.load("someone/llama", devices=ONE).spec.family == "llama"
    assert hub.asked == []


OTHERS = [
    "consolidated.safetensors",  # Mistral's own layout of the same numbers
    "model.fp16.safetensors",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/params.json",
    "pytorch_model.bin",
    "tf_model.h5",
]


@pytest.mark.parametrize("parts", [False, True])
def test_weights_come_once(hub, tmp_path, parts):
    """Whatever other formats a model has, those that are opened are downloaded, and no others."""
    folder = copied("llama", tmp_path / "theirs")
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "tokenizer_config.json").write_text("{}")
    wanted = {"config.json", "tokenizer_config.json", "model.safetensors"}
    if parts:
        part = "model-00001-of-00001.safetensors"
        (folder / "model.safetensors").rename(folder / part)
        names = t5lite.interop.huggingface.files.read_header(folder / part)
        index = {"weight_map": dict.fromkeys(names, part)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        wanted = wanted - {"model.safetensors"} | {part, "model.safetensors.index.json"}
    else:  # both layouts: one is enough
        (folder / "model-00001-of-00001.safetensors").write_bytes(b"")
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
        wanted |= {"model.safetensors.index.json"}
    hub.answer = folder
    assert t5lite.load("someone/llama", devices=ONE).spec.family == "llama"
    got = {str(path.relative_to(hub.folder)) for path in hub.folder.rglob("*") if path.is_file()}
    assert got == wanted


def made(name, *bases):
    """An exception of the hub's library, which we tell apart by the names of their classes."""
    return type(name, bases or (OSError,), {})


Missing = made("RepositoryNotFoundError")
Gated = made("GatedRepoError", Missing)
NoRevision = made("RevisionNotFoundError")
Offline = made("LocalEntryNotFoundError", FileNotFoundError)
Httpx = made("ConnectTimeout", Exception)  # of no kind of Python's


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Missing("404"), "no folder 'a/b', and no model of that name on .*; check the spelling"),
        (Gated("403"), "requires accepting the terms of 'a/b': .*hf auth login"),
        (NoRevision("404"), "'a/b' has no revision 'v3'; give a branch, a tag or a commit"),
        (Offline("no route\nand more"), "cannot be reached .*: no route\ncheck the network"),
        (Httpx("timed out"), "cannot be reached .*: timed out\ncheck the network and try again"),
        (ConnectionError(""), "cannot be reached .*: ConnectionError\n.*hf download a/b"),
        (OSError("x" * 1000), "cannot be reached .*: x{150}\n"),
    ],
)
def test_a_hub_that_fails(hub, error, expected):
    hub.answer = error
    with pytest.raises(InputError, match=expected) as info:
        t5lite.load("a/b@v3")
    assert len(str(info.value).splitlines()) <= 2


def test_what_is_no_model_of_transformers(hub, tmp_path):
    hub.answer = tmp_path / "theirs"
    hub.answer.mkdir()
    (hub.answer / "params.json").write_text("{}")
    with pytest.raises(InputError, match=r"a/b of the .* hub is not a model .* but params.json"):
        kind_of("a/b")
    (hub.answer / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match=r"holds a PEFT adapter \(LORA\) of 'an unnamed base"):
        kind_of("a/b")


def test_without_the_hubs_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        InputError, match=r"there is no folder 'a/b'; .* pip install huggingface_hub"
    ):
        t5lite.load("a/b")
