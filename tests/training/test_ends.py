"""Whole runs that end by tokens or by a callback: what they say, and what a second one does."""

import functools
import json

import jax
import pytest
from tiny_runs import FAST, OBJECTIVE, OPTIMIZERS, SPEC, array_data, lines

from t5lite import configuration, train
from t5lite.models import override
from t5lite.parallel import Layout, make_mesh
from t5lite.reporting import JsonLines
from t5lite.training import Checkpoints
from t5lite.training.step import segment_arrays


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    first = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr("t5lite.experiment.definition.make_mesh", first)


OPTIONS = {
    "model": override(SPEC, {"*.num_layers": 1}),
    "objective": OBJECTIVE,
    "optimizer": OPTIMIZERS["adamw"],
    "layout": Layout(compiler_options={"cpu": FAST}),
    "writers": [JsonLines],
    "log_every": 1,
}


def test_a_run_ends_with_its_tokens_and_once(tmp_path, capsys):
    options = OPTIONS | {"data": array_data(), "tokens": 600, "epochs": 100}
    trained = train(str(tmp_path), **options)
    tokens = [line["train/tokens"] for line in lines(tmp_path)]
    assert tokens[-2] < 600 <= tokens[-1]
    assert trained.state.step == len(tokens) > 3
    stream = array_data().train_batches(OBJECTIVE, seed=0)
    batches = [next(stream) for _ in tokens]
    stream.close()
    seen = [
        sum(int((rows > 0).sum()) for rows in segment_arrays(OBJECTIVE, batch)) for batch in batches
    ]
    assert tokens == [sum(seen[:end]) for end in range(1, len(seen) + 1)]

    capsys.readouterr()
    assert train(str(tmp_path), **options).state.step == len(tokens)
    assert f"is already trained to step {len(tokens)}, " in capsys.readouterr().out
    assert len(lines(tmp_path)) == len(tokens)


CALLBACK = """
from t5lite.training import Stop

class Loud:
    every = 2

    def __init__(self, factor):
        self.factor = factor

    def check(self, run):
        run.say(f"listening to {run.model.spec.family}")

    def __call__(self, run, state, *, step):
        return {"mine/loudness": self.factor * step}
"""

GIN = """
from __gin__ import dynamic_registration
import loud_callback
import t5lite

t5lite.train.model_dir = "{folder}"
t5lite.train.callbacks = [@loud_callback.Loud(), @t5lite.training.EarlyStopping()]
loud_callback.Loud.factor = 3
t5lite.training.EarlyStopping:
  metric = "mine/loudness"
  patience = 2
  every = 2
t5lite.train.steps = 100
"""


def test_a_callback_of_ones_own_is_one_file_and_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "loud_callback.py").write_text(CALLBACK)
    (tmp_path / "run.gin").write_text(GIN.format(folder=tmp_path / "run"))
    monkeypatch.syspath_prepend(str(tmp_path))
    parsed = configuration.parse([str(tmp_path / "run.gin")])
    options = OPTIONS | {"data": array_data(), "checkpoints": Checkpoints(every=100)}
    trained = parsed.call(train, **options)
    # Louder is not better: the second and third measurement are worse than the first.
    assert trained.state.step == 6
    assert trained.metrics == {"mine/loudness": 18}
    messages = capsys.readouterr().out
    assert "listening to t5" in messages
    reason = "mine/loudness was not better than 6, of step 2, in 2 measurements"
    assert f"stopped at step 6: {reason}" in messages
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 6

    parsed.call(train, **options)
    assert f"not trained any further: {reason}" in capsys.readouterr().out
