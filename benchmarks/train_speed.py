"""How fast a model trains: t5lite's step beside transformers', from the same weights.

Both take float32 AdamW steps on the same batches, decay everything and clip at norm 1, and so have
to lose the same: their losses are compared after every step. Each engine lives in a process of its
own, which works when it is told to and else waits. They take turns (A B, A B, …), so that whatever
else the machine does hits both. A turn is several steps, as training takes them: one after the
other. Its first is not timed, since it also gets back the memory that went to the other engine in
between, which in a virtual machine can take as long as the step. Printed are medians over all timed
steps, the fastest and the slowest, and the median over the turns of how the two compare.

    python benchmarks/train_speed.py --json speed.json

Needs the peer: pip install torch transformers.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from worker import Worker, serve

CORES = len(os.sched_getaffinity(0))
ON_CPU = {"JAX_PLATFORMS": "cpu"}
RATE, DECAY = 1e-3, 0.01
Step = Callable[[dict[str, np.ndarray]], float]  # a batch → its loss


def batch(case: dict[str, Any], number: int) -> dict[str, np.ndarray]:
    """Returns random rows, whole ones."""
    rng = np.random.default_rng(number)
    rows = (case["batch"], case["inputs"]), (case["batch"], case["targets"])
    inputs, targets = (rng.integers(3, case["vocab"], size).astype(np.int32) for size in rows)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones(rows[1], np.float32),
        "encoder_segment_ids": np.ones(rows[0], np.int32),
        "decoder_segment_ids": np.ones(rows[1], np.int32),
        "encoder_lengths": np.full(rows[0][0], rows[0][1], np.int32),
        "decoder_lengths": np.full(rows[1][0], rows[1][1], np.int32),
    }


def made(case: dict[str, Any]) -> Any:
    """Returns the model of a case, as t5lite's."""
    from t5lite.models import ComputeSpec, Model, override

    spec = override(case["preset"], {"*.dropout_rate": 0.0})
    return Model(spec, ComputeSpec(remat=case["remat"]))


def write_weights(case: dict[str, Any]) -> Step:
    """Writes a Hugging Face folder with random weights, and takes no step."""
    import jax

    from t5lite.interop import Description, save

    model = made(case)
    params = jax.jit(model.init)(jax.random.key(0))
    save(case["folder"], Description(model.spec), params, kind="huggingface")
    return lambda _: 0.0


def ours(case: dict[str, Any]) -> Step:
    """Returns t5lite's step, compiled."""
    import jax

    import t5lite
    from t5lite.objectives import Seq2Seq
    from t5lite.optimizers import AdamW, DecayMask
    from t5lite.parallel import Layout, make_mesh
    from t5lite.training import Update, build

    everything = DecayMask(matrices_only=False)
    layout = Layout()
    program = build(
        made(case),
        Seq2Seq(z_loss=0.0),
        AdamW(RATE, weight_decay=DECAY, decay_mask=everything),
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch(case, 0).items()},
        layout=layout,
        mesh=make_mesh(layout),
        update=Update(clip_norm=1.0, num_microbatches=case["microbatches"]),
    )
    params = t5lite.load(case["folder"], dtype="float32").params
    state = program.init(0)
    state = state.replace(
        params=jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding), params, program.state.params
        )
    )

    def step(rows: dict[str, np.ndarray]) -> float:
        nonlocal state
        placed = {name: jax.device_put(x, program.batch[name].sharding) for name, x in rows.items()}
        state, metrics = program.step(state, placed)
        return float(metrics["loss"])

    return step


def theirs(case: dict[str, Any]) -> Step:
    """Returns transformers' step."""
    import torch
    import transformers

    torch.set_num_threads(CORES)
    torch.set_flush_denormal(True)  # as XLA has it
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(case["folder"], dtype=torch.float32)
    model.config.use_cache = False
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)

    def step(rows: dict[str, np.ndarray]) -> float:
        inputs, begun, targets = (
            torch.from_numpy(rows[name].astype(np.int64))
            for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
        )
        optimizer.zero_grad()
        loss = model(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            decoder_input_ids=begun,
            labels=targets,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


ENGINES = {"weights": write_weights, "t5lite": ours, "transformers": theirs}


def build(engine: str, case: dict[str, Any]) -> tuple[Callable[[int], dict[str, Any]], dict]:
    """Builds an engine, and what has it take a step on the batch of a number."""
    step = ENGINES[engine](case)

    def answer(number: int) -> dict[str, Any]:
        rows = batch(case, number)
        begin = time.perf_counter()
        loss = step(rows)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": seconds, "loss": loss, "memory": peak}

    return answer, {}


def main() -> None:
    """Prints a line an engine, and how they compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="t5_1_1_small", help="an encoder-decoder")
    parser.add_argument("--batch", type=int, default=8, help="rows (8)")
    parser.add_argument("--inputs", type=int, default=512, help="tokens a row (512)")
    parser.add_argument("--targets", type=int, default=114, help="tokens a row (114)")
    parser.add_argument("--turns", type=int, default=5, help="of each engine (5)")
    parser.add_argument("--steps", type=int, default=3, help="that are timed in a turn (3)")
    parser.add_argument("--remat", default="none", help="t5lite's policy (none)")
    parser.add_argument("--microbatches", type=int, default=1, help="of t5lite's step (1)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(functools.partial(build, options.worker[0], json.loads(options.worker[1])))
        return
    from t5lite.models import forward_flops, preset

    spec = preset(options.preset)
    sizes = ("preset", "batch", "inputs", "targets", "remat", "microbatches")
    case = {name: getattr(options, name) for name in sizes} | {"vocab": spec.vocab}
    machine = f"{CORES} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} before"
    print(machine, flush=True)
    engines = ("t5lite", "transformers")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        case["folder"] = folder
        with Worker("weights", case, ON_CPU):
            pass
        workers = {name: stack.enter_context(Worker(name, case, ON_CPU)) for name in engines}
        turns: dict[str, list[list[dict[str, float]]]] = {name: [] for name in engines}
        for turn in range(1 + options.turns):  # the first one compiles and warms up
            for name, worker in workers.items():
                time.sleep(0.3)  # threads of the one before may still spin
                numbers = range(turn * (1 + options.steps), (turn + 1) * (1 + options.steps))
                turns[name].append([worker.ask(number) for number in numbers])
    lengths = {"encoder_length": options.inputs, "decoder_length": options.targets}
    flops = 3 * options.batch * forward_flops(spec, **lengths)
    print(f"{'':14}{'s a step':>10}{'fastest':>10}{'slowest':>10}{'GFLOP/s':>10}{'memory':>12}")
    timed: dict[str, list[list[float]]] = {
        name: [[step["seconds"] for step in turn[1:]] for turn in taken[1:]]
        for name, taken in turns.items()
    }
    for name, taken in timed.items():
        seconds = [step for turn in taken for step in turn]
        median, peak = statistics.median(seconds), turns[name][-1][-1]["memory"] / 1e6
        times = "".join(f"{x:10.2f}" for x in (median, min(seconds), max(seconds)))
        print(f"{name:14}{times}{flops / median / 1e9:10.0f}{peak:9.0f} MB")
    ratios = [
        statistics.median(theirs) / statistics.median(ours)
        for ours, theirs in zip(*timed.values(), strict=True)
    ]
    losses = [[step["loss"] for turn in taken for step in turn] for taken in turns.values()]
    apart = max(abs(ours - theirs) for ours, theirs in zip(*losses, strict=True))
    print(f"t5lite is {statistics.median(ratios):.2f} × transformers, turn by turn")
    print(f"losses of {len(losses[0])} steps differ by at most {apart:.1g}")
    if options.json:
        del case["folder"]
        found = {"machine": machine, "case": case, "flops": flops, "turns": turns}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
