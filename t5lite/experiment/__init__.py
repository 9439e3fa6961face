"""A run: its settings, its checks, its program, its folder, and its training."""

from t5lite.experiment.experiment import Experiment, Trained, train

__all__ = ["Experiment", "Trained", "train"]
