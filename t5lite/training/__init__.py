"""Training: the state, the step, and the loop around it."""

# Writers keep the names that configurations of 0.1 bind.
from t5lite.reporting import JsonLines, MLflow, Report, TensorBoard
from t5lite.training.callbacks import Callback, Edit, Run, Stop
from t5lite.training.checkpoints import Checkpointer, CheckpointError, Checkpoints, load_params
from t5lite.training.duration import Duration
from t5lite.training.guards import LossScale
from t5lite.training.ledger import Ledger, NonFiniteLoss
from t5lite.training.loop import Loop
from t5lite.training.profiling import Profile
from t5lite.training.program import Program, build, process_shards
from t5lite.training.saving import Saver
from t5lite.training.state import (
    TrainState,
    frozen_of,
    initial_state,
    state_axes,
    state_shardings,
    transformation,
    whole_params,
)
from t5lite.training.step import random_streams, train_step
from t5lite.training.stopping import EarlyStopping, ReduceOnPlateau
from t5lite.training.tuning import ByPath, Everything, Tuning
from t5lite.training.update import Update

__all__ = [
    "ByPath",
    "Callback",
    "CheckpointError",
    "Checkpointer",
    "Checkpoints",
    "Duration",
    "EarlyStopping",
    "Edit",
    "Everything",
    "JsonLines",
    "Ledger",
    "Loop",
    "LossScale",
    "MLflow",
    "NonFiniteLoss",
    "Profile",
    "Program",
    "ReduceOnPlateau",
    "Report",
    "Run",
    "Saver",
    "Stop",
    "TensorBoard",
    "TrainState",
    "Tuning",
    "Update",
    "build",
    "frozen_of",
    "initial_state",
    "load_params",
    "process_shards",
    "random_streams",
    "state_axes",
    "state_shardings",
    "train_step",
    "transformation",
    "whole_params",
]
