"""How fast answers are written: t5lite beside transformers and CTranslate2, and what allows more.

Random weights, greedy, the same for all; no row ends early. Each engine lives in a process of its
own, which works when it is told to and else waits, so engines share no memory and no threads, and
one computes at a time. Rounds are interleaved (A B C, A B C, …): whatever else the machine does
hits all of them. Printed are medians over the rounds, the lowest and the highest.

  tok/s        tokens written, of all rows, a second, the reading of prompts included
  first token  what one token a row takes, prompts included
  a step       what each further one takes
  memory       the most that the process held, loading included (VmHWM, so Linux only); on a GPU the
               most that it held there, if the engine says so

"matrices" is a loop of the matrix products of a step by its weights, and nothing else: what the
machine allows. On a GPU the limit is a step's bytes (the decoder's weights, keys and values) over
the bandwidth of a large copy.

    python benchmarks/decode_speed.py --models t5 --batches 1,8 --json speed.json

A peer that is not installed is left out: pip install torch transformers ctranslate2.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from decode_engines import CORES, Case, Numbers, build
from worker import Worker, serve

MODELS = {"t5": "t5_small", "gpt2": "gpt2"}  # beside all names of presets
PEERS = {"transformers": ("torch", "transformers"), "ctranslate2": ("ctranslate2", "transformers")}
# JAX's own names, from jax/_src/dispatch.py and jax/_src/compilation_cache.py.
COMPILED = "/jax/core/compile/backend_compile_duration"
HIT, MISSED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


def main() -> None:
    """Prints a table a case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="t5,gpt2", help="t5, gpt2 or presets (t5,gpt2)")
    parser.add_argument("--batches", default="1,8", help="rows (1,8)")
    parser.add_argument("--prompt_length", type=int, default=128, help="tokens in (128)")
    parser.add_argument("--new_tokens", type=int, default=64, help="tokens out (64)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (5)")
    parser.add_argument(
        "--dtype", default="", choices=("float32", "bfloat16"), help="float32; on a GPU bfloat16"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; or none")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        case = Case(**json.loads(options.worker[1]))
        serve(functools.partial(build, options.worker[0], case))
        return
    if options.new_tokens < 2 or options.prompt_length < 3 or options.rounds < 1:
        parser.error("--prompt_length must be at least 3, --new_tokens 2 and --rounds 1")
    peers = [name for name in options.peers.split(",") if name not in ("", "none")]
    if not set(peers) <= set(PEERS):
        parser.error(f"--peers {options.peers}: must be of {', '.join(PEERS)}")
    for peer in list(peers):
        absent = [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]
        if absent:
            print(f"{peer} is left out: pip install {' '.join(absent)}")
            peers.remove(peer)
    machine = f"{CORES} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} before"
    print(machine, flush=True)
    found: list[Numbers] = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            sizes = {"prompt_length": options.prompt_length, "new_tokens": options.new_tokens}
            case = Case(MODELS.get(name, name), folder, dtype=options.dtype, **sizes)
            about = once("weights", case)
            dtype = case.dtype or ("bfloat16" if about["backend"] == "gpu" else "float32")
            case = dataclasses.replace(case, dtype=dtype, **about.pop("case"))
            if "ctranslate2" in peers:
                with contextlib.suppress(ChildProcessError):  # which it says when it is to start
                    once("conversion", case)
            for batch in map(int, options.batches.split(",")):
                case = dataclasses.replace(case, batch=batch)
                found.append(about | measure(case, peers, options.rounds))
                report(found[-1])
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "cases": found}, indent=2) + "\n")


def started(engine: str, case: Case) -> Worker:
    """Starts an engine."""
    return Worker(engine, dataclasses.asdict(case))


def once(engine: str, case: Case) -> Numbers:
    """Has a worker prepare something, and returns what it says."""
    with started(engine, case) as worker:
        return worker.about


def order(
    case: Case, new_tokens: int | None = None, prompt_length: int | None = None
) -> dict[str, int]:
    """Returns what a worker is told: to write, of these lengths or the case's."""
    return {
        "new_tokens": new_tokens or case.new_tokens,
        "prompt_length": prompt_length or case.prompt_length,
    }


def measure(case: Case, peers: list[str], rounds: int) -> Numbers:
    """Runs the engines of a case, in rounds."""
    engines = ["matrices", "t5lite", *peers]
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in engines:
            try:
                workers[name] = stack.enter_context(started(name, case))
            except ChildProcessError as error:
                if name not in peers:
                    raise
                print(f"{name} is left out: {error}")
        cold = {name: worker.ask(order(case, 1)) for name, worker in workers.items()}["t5lite"]
        last = {name: worker.ask(order(case)) for name, worker in workers.items()}
        whole: dict[str, list[float]] = {name: [] for name in workers}
        first: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                time.sleep(0.3)  # threads of the one before may still spin
                last[name] = worker.ask(order(case))
                whole[name].append(last[name]["seconds"])
                first[name].append(worker.ask(order(case, 1))["seconds"])
        other_length = neighbour(case.prompt_length)
        other = workers["t5lite"].ask(order(case, prompt_length=other_length))
    with started("t5lite", case) as again:
        warm = again.ask(order(case, 1))
    count, found = case.batch * case.new_tokens, {}
    for name, worker in workers.items():
        total, begun = statistics.median(whole[name]), statistics.median(first[name])
        found[name] = worker.about | {
            "tokens_per_second": count / total,
            "lowest": count / max(whole[name]),
            "highest": count / min(whole[name]),
            "first_token_seconds": begun,
            "step_seconds": (total - begun) / (case.new_tokens - 1),
            "memory": last[name]["memory"],
            "round_seconds": whole[name],
        }
        if name in peers:
            same = np.array(last[name]["tokens"]) == np.array(last["t5lite"]["tokens"])
            found[name]["agreeing"] = int(np.cumprod(same, axis=1).sum())
    starts = {
        "load_seconds": again.about["load_seconds"],
        "first_start_seconds": cold["seconds"],
        "compiled": cold["events"].get(MISSED, 0),
        "second_start_seconds": warm["seconds"],
        "compiled_again": warm["events"].get(MISSED, 0),
        "from_cache": warm["events"].get(HIT, 0),
        "other_prompt_length": other_length,
        "compiled_for_it": compilations(other) - compilations(last["t5lite"]),
    }
    return {"case": dataclasses.asdict(case) | {"folder": ""}, "engines": found, "starts": starts}


def neighbour(length: int) -> int:
    """Returns another length of the same bucket: above one power of two, up to the next."""
    half = (1 << (length - 1).bit_length()) // 2
    return half + 1 if length > half + 1 else 2 * half


def compilations(answer: Numbers) -> int:
    """Returns how many functions a worker has compiled, or had from the persistent cache."""
    return answer["events"].get(COMPILED, 0)


def report(found: Numbers) -> None:
    """Prints a case."""
    case, engines, starts = found["case"], found["engines"], found["starts"]
    sizes = "batch {batch}, {prompt_length} tokens in, {new_tokens} new, {dtype}".format(**case)
    print(f"\n{case['preset']}, {found['parameters'] / 1e6:.0f}M, {sizes}, {found['device']}")
    columns = "tok/s", "lowest", "highest", "first token", "a step", "memory"
    print(f"{'':14}" + "".join(f"{column:>12}" for column in columns))
    for name, each in engines.items():
        rates = "".join(f"{each[key]:12.1f}" for key in ("tokens_per_second", "lowest", "highest"))
        times = "".join(
            f"{1e3 * each[f'{key}_seconds']:9.1f} ms" for key in ("first_token", "step")
        )
        print(f"{name:14}{rates}{times}{each['memory'] / 1e6:9.0f} MB")
    speeds = {name: each["tokens_per_second"] for name, each in engines.items()}
    if "bandwidth" in engines["matrices"]:
        machine = engines["matrices"]
        speeds["bandwidth limit"] = case["batch"] * machine["bandwidth"] / machine["bytes"]
    ours, count = speeds.pop("t5lite"), case["batch"] * case["new_tokens"]
    print("t5lite is " + ", ".join(f"{ours / each:.2f} × {name}" for name, each in speeds.items()))
    same = {name: each["agreeing"] for name, each in engines.items() if "agreeing" in each}
    for name, agreeing in same.items():
        whose = f"{name} ({engines[name]['version']})"
        print(f"{agreeing} of {count} tokens are those of {whose} before the first that differs")
    print(
        "imports and loading {load_seconds:.1f} s, first token {first_start_seconds:.2f} s later "
        "({compiled} compiled); when started again {second_start_seconds:.2f} s later "
        "({compiled_again} compiled, {from_cache} cached)\n"
        "prompts of {other_prompt_length} tokens, of the same bucket: {compiled_for_it} compiled"
        "".format(**starts),
        flush=True,
    )


if __name__ == "__main__":
    main()
