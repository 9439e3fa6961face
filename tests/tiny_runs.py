"""A run so small that a step takes milliseconds; as a program, one that can be killed."""

import functools
import json
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import jax
import numpy as np

import t5lite
from t5lite.data import ArrayData
from t5lite.models import Model, ModelSpec, override
from t5lite.objectives import Seq2Seq
from t5lite.optimizers import Adafactor, AdamW, schedules
from t5lite.parallel import Layout, make_mesh
from t5lite.reporting import JsonLines
from t5lite.training import (
    Checkpoints,
    LossScale,
    Program,
    ReduceOnPlateau,
    TrainState,
    Update,
    build,
)

VOCAB = 32
# Every axis divides over eight devices.
SPEC = override(
    "t5_1_1_nano",
    {
        "vocab": VOCAB,
        "embed": 16,
        "*.num_layers": 2,
        "*.blocks.*.attention.num_heads": 8,
        "*.blocks.*.attention.head_dim": 4,
        "decoder.blocks.*.cross_attention.num_heads": 8,
        "decoder.blocks.*.cross_attention.head_dim": 4,
        "*.blocks.*.mlp.hidden": 24,
        "*.position_bias.num_buckets": 8,
        "*.position_bias.max_distance": 16,
    },
)
OBJECTIVE = Seq2Seq(z_loss=1e-2)
# Compiling is what these tests cost: three times less when the compiler does not try hard.
FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
OPTIMIZERS = {
    "adafactor": Adafactor(0.05, min_dim_size_to_factor=8),
    "adamw": AdamW(0.005, epsilon=1e-5),
}


def examples(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Sequences of very different lengths, so that rows weigh differently."""
    rng = np.random.default_rng(seed)
    return [
        {
            "inputs": rng.integers(2, VOCAB, rng.integers(2, 11)),
            "targets": rng.integers(2, VOCAB, rng.integers(1, 9)),
        }
        for _ in range(count)
    ]


def array_data(**changes) -> ArrayData:
    options: dict[str, Any] = {
        "lengths": {"inputs": 12, "targets": 10},
        "batch_size": 8,
        "block_rows": 4,
    }
    return ArrayData(examples(60), examples(12, seed=1), **(options | changes))


@functools.cache
def batches(count: int) -> list[dict[str, np.ndarray]]:
    """The first batches of unpacked rows, of 2 to 10 target tokens each."""
    stream = array_data(pack=False).train_batches(OBJECTIVE, seed=3)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


@functools.cache
def first_params(spec: ModelSpec = SPEC):
    """Parameters of the published sizes, as numpy; norms are random too: ones hide mistakes."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1 + np.float32(0.1) * noise
        return noise if path[-1].key == "embedding" else np.float32(0.2) * noise

    return jax.tree_util.tree_map_with_path(draw, Model(spec).shapes())


@functools.cache
def make_program(
    *mesh: tuple[str, int],
    optimizer="adamw",
    spec: ModelSpec = SPEC,
    objective=OBJECTIVE,
    num_devices: int = 8,
    update: Update = Update(),
    batch_size: int = 8,
) -> Program:
    """Builds a run's functions for some of the devices; `mesh` is the layout's, as pairs."""
    layout = Layout(dict(mesh) or {"data": -1}, compiler_options={"cpu": FAST})
    return build(
        Model(spec),
        objective,
        OPTIMIZERS.get(optimizer, optimizer) if isinstance(optimizer, str) else optimizer,
        array_data(pack=False, batch_size=batch_size).batch_shapes(objective),
        layout=layout,
        mesh=make_mesh(layout, jax.devices()[:num_devices]),
        update=update,
    )


def start(program: Program, params=None) -> TrainState:
    """The first state of a program, with `first_params` and moments of 0, compiling nothing."""
    params = first_params() if params is None else params
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), program.state)
    extra = {"update_scale": np.float32(1)} | ({"ema": params} if "ema" in zeros.extra else {})
    state = zeros.replace(params=params, extra=zeros.extra | extra)
    return jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding), state, program.state
    )


def place(program: Program, batch) -> dict[str, jax.Array]:
    return {
        name: jax.device_put(rows, program.batch[name].sharding) for name, rows in batch.items()
    }


def run(program: Program, steps: int, *, state=None):
    """Takes steps on the first batches; returns the last state and all metrics, as numpy."""
    state, all_metrics = state or start(program), []
    for batch in batches(steps):
        state, metrics = program.step(state, place(program, batch))
        all_metrics.append(jax.device_get(metrics))
    return state, all_metrics


def assert_close(actual, expected, **tolerance) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance),
        actual,
        expected,
    )


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), actual, expected
    )


# A whole run, in this process or in one of its own.

STEPS, EVERY = 17, 4


def train(model_dir, **changes):
    """Trains with dropout, an average of the parameters, and one line of metrics a step."""
    options: dict[str, Any] = {
        "model": override(SPEC, {"*.dropout_rate": 0.1}),
        "objective": OBJECTIVE,
        "data": array_data(),
        "optimizer": Adafactor(
            schedules.rsqrt(base=0.05, warmup_steps=5), beta1=0.9, min_dim_size_to_factor=8
        ),
        "update": Update(num_microbatches=1, clip_norm=1.0, ema_decay=0.9),
        "steps": STEPS,
        "checkpoints": Checkpoints(every=EVERY, keep=2),
        "layout": Layout(compiler_options={"cpu": FAST}),
        "writers": [JsonLines],
        "log_every": 1,
    }
    return t5lite.train(str(model_dir), **(options | changes))


class Flat:
    """Measures the same again and again."""

    every = 2

    def metric_names(self, run):
        return {"held_out/loss"}

    def __call__(self, run, state, *, step):
        return {"held_out/loss": 1.0}


def train_guarded(model_dir, *callbacks, **changes):
    """Trains with all that a state can hold, each part of it at work."""
    plateau = ReduceOnPlateau(every=2, patience=2, factor=0.7, cooldown=1)
    update = Update(
        clip_norm=1.0,
        ema_decay=0.9,
        spike_threshold=0.6,
        spike_warmup_steps=3,
        loss_scale=LossScale(growth_steps=5),
    )
    return train(model_dir, update=update, callbacks=[Flat(), plateau, *callbacks], **changes)


def lines(model_dir) -> list[dict[str, float]]:
    """What `metrics.jsonl` says of training, without clocks."""
    text = (pathlib.Path(model_dir) / "metrics.jsonl").read_text()
    return [
        {k: v for k, v in json.loads(line).items() if k != "time" and not k.endswith(CLOCKS)}
        for line in text.splitlines()
        if "train/tokens" in line
    ]


CLOCKS = ("_per_second", "input_wait", "utilisation")


class Kill:
    """Sends this process a signal at a step: no code of the run sees SIGKILL coming."""

    every = 1

    def __init__(self, signal_number: int, step: int):
        self.signal, self.step = signal_number, step

    def __call__(self, run, state, *, step):
        time.sleep(0.01)  # or a watching thread would never get its turn
        if step == self.step:
            os.kill(os.getpid(), self.signal)


def kill_while_saving(model_dir: str) -> None:
    """Kills this process as soon as a checkpoint is half-written."""
    folder = pathlib.Path(model_dir) / "checkpoints"

    def watch() -> None:
        while not any(path.is_file() for path in folder.glob("*tmp*/**/*")):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    folder, when = sys.argv[1:3]
    kills = []
    if when == "saving":
        kill_while_saving(folder)
        kills = [Kill(0, STEPS)]
    elif when != "never":
        name, at = when.split("@")
        kills = [Kill(signal.Signals[name], int(at))]
    train_guarded(folder, *kills)
    assert "tensorflow" not in sys.modules
