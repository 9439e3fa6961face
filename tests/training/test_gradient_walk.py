"""The way from `train` to the gradient is short, and is the one that the documentation names."""

import pathlib
import sys

import pytest
import tiny_runs

import t5lite
from t5lite.objectives import Seq2Seq
from t5lite.planning.footprint import Footprint

ROOT = pathlib.Path(t5lite.__file__).parent
WALK = ["experiment/experiment.py", "training/loop.py", "training/step.py"]


class Looking(Seq2Seq):
    """Notes who calls its loss, whenever that is traced."""

    def loss(self, *arguments, **options):
        frame, stack = sys._getframe(1), []
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        stacks.append(stack[::-1])
        return super().loss(*arguments, **options)


stacks = []


def test_from_train_to_the_gradient_are_four_calls_in_three_files(tmp_path, monkeypatch):
    """Counted are functions of experiment and training; those inside others are in sight there."""
    # It compiles the step ahead of the loop, to see its memory.
    monkeypatch.setattr(Footprint, "check_step", lambda self: None)
    tiny_runs.train(tmp_path / "run", steps=1, objective=Looking(**vars(tiny_runs.OBJECTIVE)))
    walk = [
        (str(path.relative_to(ROOT)), name)
        for path, name in ((pathlib.Path(file), name) for file, name in stacks[-1])
        if path.is_relative_to(ROOT) and "<locals>" not in name
        if path.parent.name in ("experiment", "training")
    ]
    assert walk == [
        ("experiment/experiment.py", "Experiment.train"),
        ("training/loop.py", "Loop.train"),
        ("training/step.py", "train_step"),
        ("training/step.py", "loss_gradients"),  # and the fourth call is jax.grad
    ]
    assert [*dict.fromkeys(file for file, _ in walk)] == WALK


@pytest.mark.parametrize("page", ["docs/extend.md"])
def test_the_documentation_names_these_files_in_this_order(page):
    text = (ROOT.parent / page).read_text()
    positions = [text.index(f"`{file}`", text.index("The path to the gradient")) for file in WALK]
    assert positions == sorted(positions)


def test_the_loop_shows_batch_step_and_metrics_and_stays_short():
    text = (ROOT / "training" / "loop.py").read_text()
    assert "state, metrics = self.step(state, batch)" in text
    assert len(text.splitlines()) <= 200
    assert len((ROOT / "training" / "step.py").read_text().splitlines()) <= 200
