"""The end of a run names what to do next: commands that exist, as the trained head needs them."""

import argparse
import importlib
import shlex
import types

import pytest

from t5lite.data import Bytes
from t5lite.experiment.run_end import end_text
from t5lite.objectives import (
    CausalLM,
    Classification,
    Contrastive,
    MaskedLM,
    Seq2Seq,
    SpanCorruption,
)

DATA = types.SimpleNamespace(vocabulary=Bytes)


@pytest.mark.parametrize(
    ("objective", "topology", "verb", "hint"),
    [
        (
            SpanCorruption(),
            "encoder_decoder",
            "generate",
            "--fill 'a text with <extra_id_0> in it'",
        ),
        (Seq2Seq(), "encoder_decoder", "generate", "'a text'"),
        (CausalLM(), "decoder", "generate", "'a text'"),
        (MaskedLM(), "encoder", "generate", "<extra_id_0> in it'"),
        (Contrastive(), "encoder", "embed", "'another text'"),
        (Classification(), "encoder", "predict", "'a text'"),
    ],
)
def test_the_head_decides_the_first_command(tmp_path, objective, topology, verb, hint):
    folder = tmp_path / "a run"
    folder.mkdir()
    for name in ("config.gin", "metrics.jsonl"):
        (folder / name).touch()
    model = types.SimpleNamespace(topology=topology)
    metrics = {"held_out/loss": 2.5, "held_out/accuracy": 0.125}
    text = end_text(folder, metrics, model=model, objective=objective, data=DATA)
    lines = text.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["held_out/loss", "2.5"],
        ["held_out/accuracy", "0.125"],
    ]
    commands = [shlex.split(line) for line in lines[-3:]]
    assert [command[:2] for command in commands] == [
        ["t5lite", verb],
        ["t5lite", "evaluate"],
        ["t5lite", "report"],
    ]
    assert shlex.join(commands[0]).endswith(hint)
    for _, name, *arguments in commands:
        parser = argparse.ArgumentParser()
        parser.add_argument("--gin_file")
        importlib.import_module(f"t5lite.commands.{name}").add_arguments(parser)
        parser.parse_args(arguments)


def test_what_is_not_there_is_not_named(tmp_path):
    model = types.SimpleNamespace(topology="decoder")
    text = end_text(tmp_path, {}, model=model, objective=CausalLM(), data=DATA)
    assert "metrics" not in text
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["generate"]
