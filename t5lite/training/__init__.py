"""Training: the state, the step, the loop around it, and what a run writes."""

from t5lite.training.callbacks import Callback, Run, Stop
from t5lite.training.checkpoints import Checkpointer, CheckpointError, Checkpoints, load_params
from t5lite.training.duration import Duration, Position
from t5lite.training.guards import LossScale
from t5lite.training.ledger import NonFiniteLoss
from t5lite.training.loop import Loop
from t5lite.training.profiling import Profile
from t5lite.training.program import Program, build, process_shards
from t5lite.training.progress import Meter, Progress, peak_flops
from t5lite.training.report import Report
from t5lite.training.state import (
    TrainState,
    initial_state,
    state_axes,
    state_shardings,
    transformation,
)
from t5lite.training.step import train_step
from t5lite.training.stopping import EarlyStopping, ReduceOnPlateau
from t5lite.training.update import Update
from t5lite.training.writers import JsonLines, MLflow, TensorBoard, Writer, Writers

__all__ = [
    "Callback",
    "CheckpointError",
    "Checkpointer",
    "Checkpoints",
    "Duration",
    "EarlyStopping",
    "JsonLines",
    "Loop",
    "LossScale",
    "MLflow",
    "Meter",
    "NonFiniteLoss",
    "Position",
    "Profile",
    "Program",
    "Progress",
    "ReduceOnPlateau",
    "Report",
    "Run",
    "Stop",
    "TensorBoard",
    "TrainState",
    "Update",
    "Writer",
    "Writers",
    "build",
    "initial_state",
    "load_params",
    "peak_flops",
    "process_shards",
    "state_axes",
    "state_shardings",
    "train_step",
    "transformation",
]
