"""Training: the state, the step, the loop around it, and what a run writes."""

from t5lite.training.callbacks import Callback, Run, Stop
from t5lite.training.checkpoints import Checkpointer, CheckpointError, Checkpoints, load_params
from t5lite.training.loop import Loop, NonFiniteLoss
from t5lite.training.profiling import Profile
from t5lite.training.program import Program, build
from t5lite.training.progress import Meter, Progress, peak_flops
from t5lite.training.state import (
    TrainState,
    initial_state,
    state_axes,
    state_shardings,
    transformation,
)
from t5lite.training.step import Update, train_step
from t5lite.training.writers import JsonLines, TensorBoard, Writer, Writers

__all__ = [
    "Callback",
    "CheckpointError",
    "Checkpointer",
    "Checkpoints",
    "JsonLines",
    "Loop",
    "Meter",
    "NonFiniteLoss",
    "Profile",
    "Program",
    "Progress",
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
    "state_axes",
    "state_shardings",
    "train_step",
    "transformation",
]
