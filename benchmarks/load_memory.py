"""How much memory a streamed load takes: a synthetic 1 GB checkpoint of a GPT-2.

The folder is written first. A fresh process then opens it with `t5lite.load` and writes it back,
while a thread reads the process's anonymous and shared memory (RssAnon + RssShmem of
/proc/self/status, so without pages of mapped files, which the kernel drops when it needs them)
every 5 ms. Peaks are above what
was there after the imports and the first array on a device. Since a thread can be kept waiting, the
longest time between two readings is printed too; at the end the kernel's exact count (Anonymous of
/proc/self/smaps_rollup) stands beside the last reading.

    python benchmarks/load_memory.py --devices 8 --dtype bfloat16 --json memory.json

Linux only.
"""

import argparse
import dataclasses
import filecmp
import functools
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EMBED, VOCAB = 1024, 30_000
BYTES_A_LAYER = 4 * (12 * EMBED**2 + 13 * EMBED)
LIMIT = 300_000_000  # bytes that a load may take beside the parameters


@dataclasses.dataclass
class Memory:
    """Bytes of a process's memory that no file stands behind.

    Args:
      before: at the beginning.
      peak: the most that a reading found.
      after: the last reading.
      exact: the kernel's exact count after that.
      seconds: from the first to the last.
      longest_gap: seconds between two readings, at most.
    """

    before: int
    peak: int
    after: int
    exact: int
    seconds: float
    longest_gap: float


def measure(work: Callable[[], Any], *, every: float = 0.005) -> tuple[Any, Memory]:
    """Calls a function and watches this process's memory meanwhile.

    Args:
      work: what is to be measured, such as `lambda: t5lite.load(folder)`; what it needs once, such
        as imports and devices, should be there.
      every: seconds between two readings.

    Returns:
      What `work` returns, and the memory.
    """
    before = anonymous()
    readings = [(time.perf_counter(), before)]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every):
            readings.append((time.perf_counter(), anonymous()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = work()
    finally:
        done.set()
        thread.join()
    readings.append((time.perf_counter(), anonymous()))
    times = [when for when, _ in readings]
    return result, Memory(
        before=before,
        peak=max(size for _, size in readings),
        after=readings[-1][1],
        exact=_kilobytes("/proc/self/smaps_rollup", "Anonymous"),
        seconds=times[-1] - times[0],
        longest_gap=max(b - a for a, b in itertools.pairwise(times)),
    )


def anonymous() -> int:
    """Returns the bytes of this process's resident memory that no file stands behind."""
    return _kilobytes("/proc/self/status", "RssAnon", "RssShmem")


def _kilobytes(path: str, *names: str) -> int:
    text = Path(path).read_text()
    found = {name: re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE) for name in names}
    return sum(1024 * int(match[1]) for match in found.values() if match)


def spec_of(num_layers: int) -> Any:
    """Returns a GPT-2 of 1,024 features."""
    from t5lite.models import override

    return override(
        "gpt2_medium", {"decoder.num_layers": num_layers, "start_id": 0, "vocab": VOCAB}
    )


def write_checkpoint(folder: Path, num_layers: int) -> int:
    """Writes a Hugging Face folder of random float32 tensors, and returns their bytes."""
    import jax
    import numpy as np

    from t5lite.interop import huggingface
    from t5lite.interop.huggingface.files import write_tensors

    rng, plan = np.random.default_rng(0), huggingface.describe(spec_of(num_layers))

    def due() -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        for tensor in plan.tensors:
            shape = jax.ShapeDtypeStruct(tensor.shape, np.float32)
            make = functools.partial(rng.standard_normal, tensor.shape, np.float32)
            yield tensor.name, shape, make

    files = write_tensors(folder, due())
    (folder / "config.json").write_text(json.dumps(plan.config))
    return sum(path.stat().st_size for path in files)


def child(folder: Path, dtype: str) -> None:
    """Loads the checkpoint and writes it back; prints what that took as JSON."""
    import jax

    import t5lite
    from t5lite.interop import Description, huggingface
    from t5lite.parallel import Layout

    jax.block_until_ready([jax.device_put(1.0, device) for device in jax.devices()])
    layout = Layout({"fsdp": -1})
    loaded, loading = measure(lambda: t5lite.load(folder / "old", layout=layout, dtype=dtype))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    description = Description(loaded.spec)
    _, writing = measure(lambda: huggingface.save(folder / "new", description, loaded.params))
    print(
        json.dumps(
            {
                "parameters": size,
                "device": jax.devices()[0].device_kind,
                "load": dataclasses.asdict(loading),
                "write": dataclasses.asdict(writing),
            }
        )
    )


def main() -> None:
    """Prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="of the checkpoint (1000)")
    parser.add_argument("--devices", type=int, default=1, help="of the CPU, sharded over (1)")
    parser.add_argument("--dtype", default="float32", help="of the parameters (float32)")
    parser.add_argument(
        "--folder", type=Path, help="for the checkpoint; by default a temporary one"
    )
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.folder, options.dtype)
        return
    rest = options.megabytes * 1_000_000 - 4 * VOCAB * EMBED
    num_layers = max(1, round(rest / BYTES_A_LAYER))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = write_checkpoint(Path(folder) / "old", num_layers)
        found = run(Path(folder), devices=options.devices, dtype=options.dtype)
        old, new = (Path(folder) / name / "model.safetensors" for name in ("old", "new"))
        found["same"] = filecmp.cmp(old, new, shallow=False)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    found |= {"machine": machine, "file": size, "devices": options.devices, "dtype": options.dtype}
    report(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def run(folder: Path, *, devices: int, dtype: str) -> dict[str, Any]:
    """Runs `child` in a fresh process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, __file__, "--child", "--folder", str(folder), "--dtype", dtype]
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ | {"XLA_FLAGS": flags}
    output = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def report(found: dict[str, Any]) -> None:
    """Prints the numbers in MB of 10⁶ bytes."""
    size, load, write = found["parameters"], found["load"], found["write"]
    extra = load["peak"] - load["before"] - size
    more = write["peak"] - write["before"]
    rows = {
        "file": found["file"],
        "parameters": size,
        "baseline, after imports": load["before"],
        "peak of loading, above the baseline": load["peak"] - load["before"],
        f"  beyond the parameters (at most {LIMIT / 1e6:.0f})": extra,
        "  left after it, beyond the parameters": load["after"] - load["before"] - size,
        "  the same, exact": load["exact"] - load["before"] - size,
        "peak of writing, beyond what was there": more,
    }
    print(f"{found['machine']}; {found['devices']} devices ({found['device']}), {found['dtype']}")
    for name, value in rows.items():
        print(f"{name:42} {value / 1e6:9.1f} MB")
    for name, each in (("loading", load), ("writing", write)):
        print(
            f"{name:42} {each['seconds']:9.2f} s, at most {1e3 * each['longest_gap']:.0f} ms "
            "between two readings"
        )
    if found["dtype"] == "float32":
        same = "the same, byte for byte" if found["same"] else "DIFFERENT"
        print(f"{'the file written back is':42} {same}")
    print(f"{'verdict':42} {'within' if extra <= LIMIT else 'BEYOND'} the limit")


if __name__ == "__main__":
    main()
