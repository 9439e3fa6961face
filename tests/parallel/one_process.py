"""One of several processes: the command line, on a run that needs no TensorFlow."""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from tiny_runs import OBJECTIVE, SPEC, array_data

from t5lite.main import main
from t5lite.models import override

CONFIG = """
from __gin__ import dynamic_registration
import t5lite
import one_process

STEPS = 8
FAILS_AT = -1
SECONDS = 0.0

t5lite.train:
  model_dir = %MODEL_DIR
  model = @one_process.model()
  objective = @one_process.objective()
  data = @one_process.data()
  optimizer = @t5lite.optimizers.AdamW()
  steps = %STEPS
  layout = @t5lite.parallel.Layout()
  checkpoints = @t5lite.training.Checkpoints()
  callbacks = [@one_process.Marks(), @one_process.SavesParameters()]
  writers = [@t5lite.training.JsonLines]
  log_every = 1
t5lite.optimizers.AdamW.learning_rate = 0.005
t5lite.optimizers.AdamW.epsilon = 1e-3
t5lite.parallel.Layout.mesh = {"data": -1, "fsdp": 2}
t5lite.parallel.Layout.compiler_options = {
    "cpu": {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
}
t5lite.training.Checkpoints.every = 4
one_process.Marks.folder = %MODEL_DIR
one_process.Marks.seconds = %SECONDS
one_process.Marks.fails_at = %FAILS_AT
one_process.SavesParameters.folder = %MODEL_DIR
"""


def model():
    return override(SPEC, {"*.dropout_rate": 0.1})


def objective():
    return OBJECTIVE


def data():
    return array_data()


class Marks:
    """Leaves a file at every step, then takes its time, and may fail in process 1."""

    every = 1

    def __init__(self, folder: str, seconds: float = 0.0, fails_at: int = -1):
        self._folder, self._seconds, self._fails_at = Path(folder), seconds, fails_at

    def __call__(self, run, state, *, step):
        (self._folder / f"process_{jax.process_index()}_step_{step}").touch()
        time.sleep(self._seconds)
        if step == self._fails_at and jax.process_index() == 1:
            raise RuntimeError("the disk of process 1 is full")
        return {}


class SavesParameters:
    """Writes the parameters after the last step, put together from all processes."""

    every = 10**6

    def __init__(self, folder: str):
        self._path = Path(folder) / "params.npz"

    def __call__(self, run, state, *, step):
        whole = state.params
        if jax.process_count() > 1:
            whole = multihost_utils.process_allgather(whole, tiled=True)
        if jax.process_index() == 0:
            leaves = jax.tree.leaves(whole)
            np.savez(self._path, **{str(at): np.asarray(leaf) for at, leaf in enumerate(leaves)})
        return {}


def scatter(order):
    """Arranges devices in an order of their own, as a slice's links do."""

    def create_device_mesh(shape, devices, **options):
        return np.array([devices[at] for at in order]).reshape(shape)

    mesh_utils.create_device_mesh = create_device_mesh


if __name__ == "__main__":
    if "DEVICE_ORDER" in os.environ:
        scatter([int(at) for at in os.environ["DEVICE_ORDER"].split()])
    code = main(sys.argv[1:])
    assert "tensorflow" not in sys.modules
    sys.exit(code)
