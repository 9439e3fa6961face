"""What README.md and docs/ show runs: Python and gin as they stand, commands for a few steps."""

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from t5lite import configuration
from t5lite.main import COMMANDS, main, split_bindings

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
HEADER = "from __gin__ import dynamic_registration\nimport t5lite\n"
# The config that a page's gin stands in.
CONFIGS = {
    "README.md": "configs/classify_csv.gin",
    "docs/data.md": "configs/classify_csv.gin",
    "docs/train.md": "configs/quickstart.gin",
}
# Flags that make a command of the pages light.
STEPS = ["--gin.TRAIN_STEPS=2", "--gin.t5lite.optimizers.schedules.cosine.warmup_steps=1"]
FEW = {
    "train": STEPS,
    "evaluate": STEPS,
    "cache": ["--gin.BATCH_SIZE=8"],
}
FILES = {
    "in.jsonl": '{"inputs": "Return the <extra_id_0>."}\n',
    "docs.txt": "Return a list.\nOpen a file.\nA number.\n",
}


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page, *languages):
    """The command lines that begin with `t5lite`, as words."""
    lines = [
        line
        for language in languages
        for block in blocks(page, language)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("t5lite ")]


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_every_command_has_flags_and_files_that_exist(page, monkeypatch):
    """Also those that take a TPU's compiler, or a model of billions."""
    monkeypatch.chdir(ROOT)
    for _, verb, *words in commands(page, "bash", "text"):
        assert verb in COMMANDS, verb
        others, bindings = split_bindings(words)
        if others == ["--help"]:
            continue
        parser = argparse.ArgumentParser()
        parser.add_argument("--gin_file", action="append", default=[])
        importlib.import_module(f"t5lite.commands.{verb}").add_arguments(parser)
        options = parser.parse_args(others)
        files = [file for file in options.gin_file if file.startswith(("configs/", "gin/"))]
        if files:
            configuration.parse(files, bindings)


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_gin_of_a_page_parses(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for number, block in enumerate(blocks(page, "gin")):
        path = tmp_path / f"{number}.gin"
        path.write_text(HEADER + block, encoding="utf-8")
        configuration.parse([CONFIGS[page], str(path)])


@pytest.mark.parametrize("page", [page for page in PAGES if "/reference/" in page])
def test_reference_pages_list_every_public_name(page):
    """MkDocs reads `__all__` from the source, so it must be a list of strings there."""
    for room in re.findall(r"^::: (\S+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
        source = (ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
        (names,) = (
            ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        module = importlib.import_module(room)
        assert names == module.__all__
        assert all(hasattr(module, name) for name in names)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the runs and files that the pages speak of."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for config in ("quickstart", "bert_nano", "classify_csv", "ner_jsonl"):
            assert main(["train", f"--gin_file=configs/{config}.gin", *FEW["train"]]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_a_page_runs(page, workshop, monkeypatch):
    """Commands first, then Python, each page's in one namespace."""
    monkeypatch.chdir(workshop)
    for _, verb, *words in commands(page, "bash"):
        assert main([verb, *words, *FEW.get(verb, [])]) == 0, [verb, *words]
    names = {}
    for block in blocks(page, "python"):
        exec(block, names)
