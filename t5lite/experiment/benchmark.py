"""Benchmark of a run's training steps on the local devices."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t5lite.experiment.description import versions
from t5lite.experiment.experiment import Experiment
from t5lite.experiment.settings import check_model
from t5lite.experiment.start import first_state
from t5lite.experiment.step_facts import facts
from t5lite.parallel import batch_shardings, to_devices
from t5lite.planning import compile_step, measure
from t5lite.planning.plan_text import collective_lines, memory_lines, run_lines
from t5lite.reporting import Bar, peak_flops
from t5lite.text import in_bytes, in_flops, titled, wrapped


def benchmark(experiment: Experiment, *, steps: int, warmup: int) -> dict[str, Any]:
    """Trains a few steps on the local devices; returns times, memory and facts as JSON values.

    Args:
      experiment: its `model_dir` is not touched.
      steps: number timed one by one, and again without pauses.
      warmup: untimed steps before them.
    """
    # Compile time is measured too.
    jax.config.update("jax_enable_compilation_cache", False)
    check_model(experiment)
    mesh = experiment.mesh()
    program = experiment.program(mesh)
    with contextlib.ExitStack() as stack:
        batches = experiment.batches(mesh)
        stack.callback(batches.close)
        if hasattr(batches, "keep_lengths"):
            batches.keep_lengths()  # one step is compiled, for full rows
        total = warmup + 2 * steps
        bar = Bar("compiling", unit="step", total=total, active=jax.process_index() == 0)
        stack.callback(bar.close)
        compiled, step = compile_step(program, stage=bar.rename)
        bar.rename("training")

        def global_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
            layout, axes = experiment.layout, experiment.bound.axes()
            shardings = batch_shardings(layout, mesh, axes, batch)
            return to_devices(batch, shardings, num_rows=experiment.data.batch_size)

        measured = measure(
            step,
            first_state(None, program, experiment.references, seed=experiment.seed, say=print),
            batches,
            global_batch,
            steps=steps,
            warmup=warmup,
            on_step=bar.add,
        )
    return {
        **facts(experiment, program, mesh),
        "device_kind": mesh.devices.flat[0].device_kind,
        "peak_flops": peak_flops(mesh.devices.flat),
        "hbm": (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"),
        "fits": True,
        **dataclasses.asdict(compiled),
        "measured": dataclasses.asdict(measured) | measured.quartiles(),
        "versions": versions(),
    }


def benchmark_text(numbers: Mapping[str, Any]) -> str:
    """Returns the numbers as text of at most 100 characters a line."""
    return titled(
        {
            "the run": run_lines(numbers, f"{numbers['devices']} × {numbers['device_kind']}"),
            "memory of a device, by the compiler": memory_lines(numbers),
            "collectives of a step, each device": collective_lines(numbers, several=False),
            "measured": _measured_lines(numbers),
        }
    )


def _measured_lines(numbers: Mapping[str, Any]) -> list[str]:
    measured = numbers["measured"]
    count = len(measured["step_seconds"])
    flops, peak = numbers["flops_per_step"], numbers["peak_flops"]
    rate = measured["steps_per_second"]
    waits = sorted(measured["input_seconds"])
    used = f"{100 * flops * rate / peak:.1f} % of the devices' bfloat16 FLOP/s, " if peak else ""
    low, median, high = (measured[name] for name in ("first_quartile", "median", "third_quartile"))
    devices = f"{in_bytes(measured['device_bytes'])} a device, " if measured["device_bytes"] else ""
    lines = {
        "a step": f"{1000 * median:.3g} ms, half of {count} between {1000 * low:.3g} and "
        f"{1000 * high:.3g} ms; its batch took {1000 * waits[count // 2]:.3g} ms",
        "a stretch": f"{count} steps of {1000 / rate:.3g} ms, {100 * measured['input_wait']:.1f} % "
        "of it waiting for batches",
        "tokens": f"{numbers['tokens_per_step'] * rate:,.0f} /s with padding, "
        f"{measured['tokens_per_step'] * rate:,.0f} /s without",
        "arithmetic": f"{used}{in_flops(flops * rate)}/s of matrix products",
        "memory": f"{devices}{in_bytes(measured['process_bytes'])} in this process at most",
    }
    return [line for label, text in lines.items() for line in wrapped(f"{label:12}", text)]
