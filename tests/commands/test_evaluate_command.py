"""`t5lite evaluate` finds what training found, and leaves the run as it is."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest

from t5lite.data import ArrayData, Bytes
from t5lite.evaluation import HeldOut
from t5lite.experiment import Experiment
from t5lite.experiment.evaluation import evaluate
from t5lite.main import main
from t5lite.models import override
from t5lite.objectives import Seq2Seq
from t5lite.training import Checkpoints

CONFIGURATION = """
from __gin__ import dynamic_registration
import t5lite
import test_evaluate_command as here

MODEL_DIR = "run"
t5lite.train.model_dir = %MODEL_DIR
t5lite.train.model = @here.model()
t5lite.train.objective = @t5lite.objectives.Seq2Seq()
t5lite.train.data = @here.data()
t5lite.train.optimizer = @t5lite.optimizers.SGD()
t5lite.optimizers.SGD.learning_rate = 0.1
t5lite.train.steps = 4
t5lite.train.layout = @t5lite.parallel.Layout()
t5lite.parallel.Layout.compiler_options = {"cpu": {"xla_backend_optimization_level": 0}}
t5lite.train.update = @t5lite.training.Update()
t5lite.training.Update.ema_decay = 0.5
t5lite.train.checkpoints = @t5lite.training.Checkpoints()
t5lite.training.Checkpoints.every = 2
t5lite.training.Checkpoints.best = "held_out/loss"
t5lite.training.Checkpoints.best_mode = "max"  # the first is the worst
t5lite.train.callbacks = [@t5lite.evaluation.HeldOut(), @here.Listener()]
t5lite.evaluation.HeldOut.every = 2
"""


def model(width=16):
    return override(
        "t5_1_1_nano",
        {
            "vocab": 384,
            "embed": width,
            "*.num_layers": 1,
            "*.blocks.*.attention.num_heads": 2,
            "*.blocks.*.attention.head_dim": 4,
            "decoder.blocks.*.cross_attention.num_heads": 2,
            "decoder.blocks.*.cross_attention.head_dim": 4,
            "*.blocks.*.mlp.hidden": 16,
        },
    )


def data(num_sentinels=125):
    rng = np.random.default_rng(0)
    examples = [{n: rng.integers(3, 100, 6) for n in ("inputs", "targets")} for _ in range(48)]
    lengths = {"inputs": 16, "targets": 16}
    vocabulary = Bytes(num_sentinels)
    return ArrayData(examples[:32], examples[32:], lengths=lengths, batch_size=8, vocab=vocabulary)


@dataclass
class Listener:
    """Notes what the callbacks before it have measured, and measures nothing."""

    every: int = 1
    heard = ()

    def __call__(self, run, state, *, step):
        Listener.heard = (step, dict(run.metrics), run.steps)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a configuration and its run, and the held-out metrics by step."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "run.gin").write_text(CONFIGURATION)
    assert main(["train", *flags(folder)]) == 0
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    return folder, {
        line.pop("step"): line for line in lines if "held_out/loss" in line and line.pop("time")
    }


def measure(folder, *, checkpoint="latest", sample=False, **options):
    run = Experiment(str(folder), optimizer=None, **options)
    return evaluate(run, checkpoint=checkpoint, sample=sample)


def flags(folder):
    return [f"--gin_file={folder}/run.gin", f"--gin.MODEL_DIR='{folder}/run'"]


def contents(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("evaluation-")
    }


@pytest.mark.parametrize(
    ("which", "step"), [([], 4), (["--checkpoint=2"], 2), (["--checkpoint=best"], 2)]
)
def test_evaluation_finds_what_training_found(trained, capsys, which, step):
    folder, expected = trained
    before = contents(folder)
    for path in (folder / "run").glob("evaluation-*.json"):
        path.unlink()
    assert main(["evaluate", *flags(folder), *which]) == 0
    (path,) = (folder / "run").glob(f"evaluation-{step}-arrays-validation-*.json")
    written = json.loads(path.read_text())
    assert written["step"] == step
    assert written["checkpoint"] == str(folder / f"run/checkpoints/{step}")
    assert written["metrics"] == pytest.approx(expected[step], rel=1e-6)
    assert expected[2] != expected[4]
    printed = capsys.readouterr().out
    assert f"metrics at step {step}" in printed
    assert f"{expected[step]['held_out/loss']:.6g}" in printed
    assert (Listener.heard[0], Listener.heard[1]) == (step, written["metrics"])
    assert contents(folder) == before


def test_any_checkpoint_by_its_folder(trained, tmp_path):
    folder, expected = trained
    metrics = measure(
        tmp_path / "mine",
        model=model(),
        objective=Seq2Seq(),
        data=data(),
        callbacks=[HeldOut(every=1)],
        checkpoint=str(folder / "run/checkpoints/2"),
    )
    assert metrics == pytest.approx(expected[2], rel=1e-6)
    assert len([*(tmp_path / "mine").glob("evaluation-2-*.json")]) == 1


def test_everything_is_read_and_every_data_set_has_a_file_of_its_own(trained, tmp_path, capsys):
    """The sample of training is one for `sample`, and other data do not write over it."""
    folder, _ = trained
    sampled = HeldOut(every=1, max_batches=1)
    arguments = {"model": model(), "objective": Seq2Seq(), "callbacks": [sampled]}
    arguments["checkpoint"] = str(folder / "run/checkpoints/2")
    validation = [*data().validation] * 4
    many = dataclasses.replace(data(), validation=validation)
    other = dataclasses.replace(data(), validation=validation[1:])
    whole = measure(tmp_path, data=many, **arguments)
    said = capsys.readouterr().out
    assert f"measured on all {len(validation)} validation examples" in said
    assert "lose the end" not in said
    part = measure(tmp_path, data=many, sample=True, **arguments)
    assert f"of {len(validation)} validation examples" in capsys.readouterr().out
    assert part != whole
    short = dataclasses.replace(other, lengths={**other.lengths, "targets": 3})
    measure(tmp_path, data=short, **arguments)
    assert "lose the end of targets" in capsys.readouterr().out
    assert len([*tmp_path.glob("evaluation-2-*.json")]) == 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--gin.MODEL_DIR='nowhere'"], "no checkpoint in 'nowhere'; train first"),
        (["--checkpoint=3"], "no checkpoint of step 3 in "),
        (["--checkpoint=lastest"], "--checkpoint=lastest: not latest, best, a step"),
        (["--gin.here.model.width=8"], "embed: 16 -> 8"),
        (["--gin.here.data.num_sentinels=100"], "another vocabulary (384 ids, now 359)"),
        (["--gin.train.callbacks=[]"], "train.callbacks is empty"),
        (["--gin.train.callbacks=[3]"], "train.callbacks: 3 must be callable"),
        (["--gin.t5lite.training.Checkpoints.best=None", "--checkpoint=best"], "the name of a"),
        (
            ["--gin.t5lite.training.Checkpoints.best='los'", "--checkpoint=best"],
            "was saved with the metric 'los'",
        ),
        (
            [
                "--gin.train.layout=@t5lite.parallel.Layout()",
                "--gin.t5lite.parallel.Layout.mesh={}",
            ],
            "does not multiply to the 8 devices",
        ),
    ],
)
def test_mistakes(trained, capsys, more, expected):
    folder, _ = trained
    before = contents(folder)
    assert main(["evaluate", *flags(folder), *more]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) <= 5
    assert contents(folder) == before


def test_a_configuration_without_data(tmp_path, capsys):
    text = CONFIGURATION.replace("t5lite.train.data = @here.data()", "")
    (tmp_path / "run.gin").write_text(text)
    assert main(["evaluate", *flags(tmp_path)]) == 2
    assert "train needs 'data', which no file or flag binds" in capsys.readouterr().err


def test_metrics_that_are_no_numbers_are_null(trained, tmp_path):
    folder, _ = trained

    class Broken:
        every = 1

        def __call__(self, run, state, *, step):
            return {"a": float("nan"), "b": 2}

    arguments = {"model": model(), "objective": Seq2Seq(), "data": data()}
    checkpoint = str(folder / "run")
    measure(tmp_path, callbacks=[Broken()], checkpoint=checkpoint, **arguments)
    (path,) = tmp_path.glob("evaluation-4-*.json")
    written = json.loads(path.read_text())
    assert written["metrics"] == {"a": None, "b": 2.0}


def test_best_step_only_reads(tmp_path):
    assert Checkpoints(best="loss").best_step(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == []
