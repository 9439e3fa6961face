"""Whether models from Hugging Face folders say on this device what transformers says, and how fast.

Four parts, each a process of its own, so that what breaks in one is not felt in the next:
  parity   logits of random models of six families, against transformers' in float32 on this device
  kernels  attention kernels in bfloat16 against `dot` in float32: states, gradients, milliseconds
  load     a folder onto the device, and the most memory that the host gave meanwhile
  speed    tokens a second of whole models, forwards and in training, beside transformers' own

    PYTHONPATH=. python benchmarks/device_parity.py

Needs what the `parity` extra installs, and a GPU for numbers that mean something; `--sizes tiny`
runs anywhere. Random models are those of the tests, `tests/interop/parity.py`.
"""

import argparse
import functools
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # transformers needs room too

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from device_models import (
    DEVICE,
    Batch,
    Named,
    families,
    on_jax,
    on_torch,
    ours,
    rows,
    saved,
    theirs,
    timed,
)
from load_memory import measure

from t5lite.layers.kernels import KERNELS
from t5lite.models import ComputeSpec, Model
from t5lite.objectives import CausalLM, Seq2Seq, bind
from t5lite.optimizers import AdamW
from t5lite.training import build

SECONDS = {"parity": 90, "kernels": 80, "load": 50, "speed": 180}  # a part may take, of 290
CASE_SECONDS = 60  # and one of its cases
CUDA = DEVICE == "cuda"
Case = tuple[str, str, Callable[[], Named]]  # what is tried, how, and what gives the result


def main() -> None:
    """Runs the parts, each for as long as there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", choices=("tiny", "full"), default="full")
    parser.add_argument("--parts", default=",".join(SECONDS), help="of " + ", ".join(SECONDS))
    parser.add_argument("--seconds", type=float, default=290.0, help="for all parts (290)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    end, parts = time.monotonic() + options.seconds, options.parts.split(",")
    if not set(parts) <= set(SECONDS):
        parser.error(f"--parts {options.parts}: must be of {', '.join(SECONDS)}")
    if options.child:
        run(parts[0], options.child, tiny=options.sizes == "tiny")
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            begin = time.monotonic()
            left = max(1.0, min(end - begin, SECONDS[part] * options.seconds / 290))
            command = [sys.executable, __file__, "--child", folder, "--parts", part]
            command += ["--sizes", options.sizes]
            try:
                outcome = f"exit code {subprocess.run(command, timeout=left).returncode}"
            except subprocess.TimeoutExpired:
                outcome = "stopped"
            print(f"-- {part}: {outcome}, {time.monotonic() - begin:.0f} s", flush=True)


def run(part: str, folder: Path, *, tiny: bool) -> None:
    """Runs a part's cases in this process, and prints each result at once."""

    def expired(*_: Any) -> None:
        raise TimeoutError("took too long")

    signal.signal(signal.SIGALRM, expired)
    torch.set_float32_matmul_precision("highest")  # no TF32
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    versions = " ".join(f"{m.__name__} {m.__version__}" for m in (jax, torch, transformers))
    print(f"-- {part}: {jax.devices()[0].device_kind}, torch on {DEVICE}, {versions}", flush=True)
    parts = {"parity": parity, "kernels": kernels, "load": load, "speed": speed}
    for case, how, work in parts[part](folder, tiny):
        try:
            signal.alarm(CASE_SECONDS)
            numbers = work()
        except Exception as error:
            numbers = {"FAILED": f"{type(error).__name__}: {str(error)[:300]}"}
            traceback.print_exc(limit=-2)
        finally:
            signal.alarm(0)
        shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in numbers.items()}
        text = "  ".join(f"{name} {value}" for name, value in shown.items())
        print(f"{part:8} {case:12} {how:24} {text}", flush=True)
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def kernels_of(model: Model, params: Any, batch: dict[str, jax.Array]) -> str:
    """Returns the names of the attention kernels that a model takes for a batch."""
    taken = set()

    def noted(name: str, kernel: Callable[[Any], jax.Array], request: Any) -> jax.Array:
        taken.add(name)
        return kernel(request)

    kernels = {name: functools.partial(noted, name, kernel) for name, kernel in KERNELS.items()}
    with mock.patch.dict(KERNELS, kernels):
        jax.eval_shape(model.hidden, params, batch)
    return "+".join(sorted(taken))


def forward(model: Model) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """Returns what computes logits from parameters and a batch, compiled."""
    return jax.jit(lambda params, batch: model.logits(params, model.hidden(params, batch)[0]))


def median_seconds(step: Callable[[], Any]) -> float:
    """Returns the median of 5 to 20 runs after 2 that do not count."""
    times: list[float] = []
    for _ in range(2):
        wait(step())
    while len(times) < 5 or (sum(times) < 1.5 and len(times) < 20):
        begin = time.perf_counter()
        wait(step())
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def wait(result: Any) -> None:
    """Returns when the device has done all that it was told to."""
    jax.block_until_ready(result)
    if CUDA:
        torch.cuda.synchronize()


def parity(folder: Path, tiny: bool) -> Iterator[Case]:
    """Compares logits; all families in float32 first, since bfloat16 takes other kernels."""
    lengths = (3, 32, 24) if tiny else (4, 256, 128)
    for dtype in ("float32", "bfloat16"):
        for name, config in families(tiny).items():
            both = name in ("t5_1_1", "bart", "switch")
            batch = rows(config, lengths if both else lengths[:2], masks=True)
            work = functools.partial(difference, folder / name, config, batch, dtype)
            yield name, dtype, work


def difference(folder: Path, config: Named, batch: Batch, dtype: str) -> Named:
    """Returns how far logits are from transformers' in float32; in bfloat16 its own are too."""
    saved(folder, config)
    valid = list(batch.values())[-1] > 0

    def said(dtype: torch.dtype) -> np.ndarray:
        model = theirs(folder, dtype, attention="eager")
        with torch.inference_mode():
            return model(**on_torch(batch)).logits.float().cpu().numpy()[valid]

    def apart(logits: np.ndarray, whose: str) -> Named:
        gaps = np.abs(logits - exact)
        return {f"{whose} max": float(gaps.max()), f"{whose} mean": float(gaps.mean())}

    exact = said(torch.float32)
    loaded = ours(folder, dtype, activations=dtype)
    model, params, inputs = loaded.model, loaded.params, on_jax(batch, loaded.model.topology)
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        logits = forward(model)(params, inputs)
    numbers = apart(np.asarray(logits)[valid], "t5lite")
    if dtype == "bfloat16":
        numbers |= apart(said(torch.bfloat16), "transformers")
    taken = kernels_of(model, params, inputs)
    return numbers | {"deviation of logits": float(exact.std()), "kernels": taken}


def kernels(folder: Path, tiny: bool) -> Iterator[Case]:
    """Compares attention kernels over padded rows."""
    for name, architecture in {"llama": "LlamaModel", "modernbert": "ModernBertModel"}.items():
        config = families(tiny)[name] | {"architectures": [architecture]}
        if not tiny:
            config |= {"hidden_size": 1024, "num_attention_heads": 16}  # heads of 64
        batch = rows(config, (2, 64) if tiny else (4, 2048), masks=True)
        exact: list[Any] = []
        arguments = folder / f"{name}_headless", config, batch, exact
        for kernel in ("dot", "cudnn", "chunked"):
            yield name, kernel, functools.partial(kernel_difference, *arguments, kernel)


def kernel_difference(
    folder: Path, config: Named, batch: Batch, exact: list[Any], kernel: str
) -> Named:
    """Returns relative differences from `exact`, which the first call fills, and times.

    Gradients are those of a random projection of the hidden states of tokens.
    """
    loaded = ours(saved(folder, config), "float32")
    inputs = on_jax(batch, loaded.model.topology)
    valid = jnp.asarray(batch["attention_mask"] > 0)[..., None]

    def steps(compute: ComputeSpec) -> list[Callable[[], Any]]:
        def states(params: Any) -> jax.Array:
            hidden, _ = Model(loaded.spec, compute).hidden(params, inputs)
            return jnp.where(valid, hidden.astype(jnp.float32), 0.0)

        def projected(params: Any) -> jax.Array:
            hidden = states(params)
            return jnp.vdot(hidden, jax.random.normal(jax.random.key(0), hidden.shape))

        compiled = jax.jit(states), jax.jit(jax.grad(projected))
        return [functools.partial(each, loaded.params) for each in compiled]

    if not exact:
        with jax.default_matmul_precision("highest"):
            exact += [step() for step in steps(ComputeSpec(attention="dot", remat="full"))]

    def relative(found: Any, expected: Any) -> float:
        difference = jax.tree.map(jnp.subtract, found, expected)
        return float(optax.tree.norm(difference) / optax.tree.norm(expected))

    found = steps(ComputeSpec(dtype="bfloat16", attention=kernel))
    apart = [relative(step(), expected) for step, expected in zip(found, exact, strict=True)]
    times = [1e3 * median_seconds(step) for step in found]
    numbers: Named = {"states differ": apart[0], "gradients differ": apart[1]}
    numbers |= {"forward ms": times[0], "gradient ms": times[1]}
    return numbers | {"auto takes": kernels_of(loaded.model, loaded.params, inputs)}


def load(folder: Path, tiny: bool) -> Iterator[Case]:
    """Reads one bfloat16 folder three times, in turns."""
    config, _ = timed(tiny)["llama3_2_1b"]

    def work(read: Callable[[Path], Any]) -> Named:
        path = saved(folder / "llama3_2_1b", config)
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        _, memory = measure(lambda: wait(read(path)))
        peak = (memory.peak - memory.before) / 1e6
        return {"GB": size / 1e9, "seconds": memory.seconds, "host MB at most": peak}

    for count in ("first", "second", "third"):
        yield "t5lite", count, lambda: work(lambda path: ours(path).params)
        yield "transformers", count, lambda: work(lambda path: theirs(path, torch.bfloat16).dtype)


def speed(folder: Path, tiny: bool) -> Iterator[Case]:
    """Times forwards, then training, then torch.compile, which may take long."""
    kinds: dict[str, Callable[..., Named]] = {
        "forward, t5lite": our_forward,
        "forward, transformers": their_forward,
        "training, t5lite": our_training,
        "training, transformers": their_training,
        "forward, torch.compile": functools.partial(their_forward, compiled=True),
    }
    for how, measured in kinds.items():
        for name, arguments in timed(tiny).items():
            if "training" not in how or name in ("gpt2", "t5_1_1_base"):
                yield name, how, functools.partial(measured, folder / name, *arguments)


def rates(batch: Batch, step: Callable[[], Any]) -> Named:
    """Times a step, and returns tokens a second, those of inputs and targets."""
    seconds = median_seconds(step)
    tokens = sum(ids.size for ids in batch.values())
    return {"tokens/s": f"{tokens / seconds:,.0f}", "ms": 1e3 * seconds}


def our_forward(folder: Path, config: Named, batch: Batch) -> Named:
    """Times our logits in bfloat16."""
    loaded = ours(saved(folder, config))
    inputs = on_jax(batch, loaded.model.topology)
    step = forward(loaded.model)
    begin = time.perf_counter()
    wait(step(loaded.params, inputs))
    numbers: Named = {"first s": time.perf_counter() - begin}
    numbers["kernels"] = kernels_of(loaded.model, loaded.params, inputs)
    return rates(batch, lambda: step(loaded.params, inputs)) | numbers


def their_forward(folder: Path, config: Named, batch: Batch, *, compiled: bool = False) -> Named:
    """Times transformers' logits in bfloat16."""
    model, inputs = theirs(saved(folder, config), torch.bfloat16), on_torch(batch)
    step = torch.compile(model) if compiled else model
    with torch.inference_mode():
        return rates(batch, lambda: step(**inputs).logits)


def our_training(folder: Path, config: Named, batch: Batch) -> Named:
    """Times a step with float32 parameters, bfloat16 activations and AdamW; the next token counts.

    Memory is what XLA says that the step takes, with all that it is given.
    """
    loaded = ours(saved(folder, config), "float32")
    model, inputs = loaded.model, on_jax(batch, loaded.model.topology)
    ids = inputs["decoder_input_tokens"]
    inputs["decoder_target_tokens"] = jnp.roll(ids, -1, axis=1)
    inputs["decoder_loss_weights"] = jnp.ones(ids.shape, jnp.float32).at[:, -1].set(0.0)
    objective = (CausalLM if model.topology == "decoder" else Seq2Seq)(z_loss=0.0)
    placed: Any = {"layout": loaded.layout, "mesh": loaded.mesh}
    program: Any = build(model, bind(objective, model), AdamW(1e-4), inputs, **placed)
    inputs = jax.device_put(inputs, {name: each.sharding for name, each in program.batch.items()})
    state = program.start_from(loaded.params, 0)
    step = program.step.lower(state, inputs).compile()
    losses = []

    def update() -> Any:
        nonlocal state
        state, metrics = step(state, inputs)
        losses.append(metrics["loss"])
        return losses[-1]

    numbers, memory = rates(batch, update), step.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return numbers | {"GB": peak / 1e9, "losses": f"{losses[0]:.4f} to {losses[6]:.4f}"}


def their_training(folder: Path, config: Named, batch: Batch) -> Named:
    """Times the same with autocast and a fused AdamW."""
    model, inputs = theirs(saved(folder, config), torch.float32).train(), on_torch(batch)
    if "decoder_input_ids" in inputs:
        inputs["labels"] = inputs["decoder_input_ids"].roll(-1, 1)
        inputs["labels"][:, -1] = -100
    else:
        inputs["labels"] = inputs["input_ids"]  # which it shifts
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    losses = []

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    numbers = rates(batch, update)
    peak = torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0
    return numbers | {"GB": peak, "losses": f"{losses[0]:.4f} to {losses[6]:.4f}"}


if __name__ == "__main__":
    main()
