"""What published models would take on TPU slices: `t5lite plan` of each, and their table.

Compilations run one after the other, some minutes each on two cores. What is in `--folder` already
is not compiled again.

    python benchmarks/tpu_plans.py --folder plans --table tpu/PLANS.md
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

T5 = "--gin_file=configs/t5_1_1_base_c4.gin"
TWO_SIDES = "--gin_file=gin/partitioning/fsdp_2d.gin"
REMAT = "--gin.t5lite.models.ComputeSpec.remat"
ROWS = "--gin.BATCH_SIZE=512"
MICROBATCHES = "--gin.t5lite.training.Update.num_microbatches"
XL, XXL = "--gin.MODEL='\"t5_1_1_xl\"'", "--gin.MODEL='\"t5_1_1_xxl\"'"
LLAMA, GPT3, PALM, MT_NLG = (
    f"--gin_file=configs/{name}.gin"
    for name in ("llama2_7b", "gpt3_175b", "palm_540b", "mt_nlg_530b")
)
# Model, slice, and the flags of its plan.
PLANS = [
    ("T5 1.1 base", "v5e:4x4", f"{T5} {REMAT}='\"minimal\"' {ROWS}"),
    ("T5 1.1 base", "v5e:4x4", f"{T5} {ROWS}"),
    ("T5 1.1 base", "v5e:4x4", f"{T5} {TWO_SIDES} {ROWS}"),
    ("T5 1.1 base", "v5e:4x4", f"{T5} {TWO_SIDES} {REMAT}='\"save_gathered_attention\"' {ROWS}"),
    ("T5 1.1 base", "v6e:2x4", f"{T5} {ROWS}"),
    ("T5 1.1 XL", "v5e:4x4", f"{T5} {TWO_SIDES} {XL}"),
    ("T5 1.1 XL", "v5p:2x2x4", f"{T5} {XL}"),
    ("T5 1.1 XXL", "v5e:8x8", f"{T5} {TWO_SIDES} --gin.SIDE=8 {XXL}"),
    ("T5 1.1 XXL", "v5p:2x4x4", f"{T5} {XXL}"),
    ("LLaMA 2 7B", "v5e:2x2", LLAMA),
    ("LLaMA 2 7B", "v6e:8x8", LLAMA),
    ("LLaMA 2 7B", "v5p:4x4x4", LLAMA),
    ("GPT-3 175B", "v5p:8x8x16", GPT3),
    ("GPT-3 175B", "v6e:16x16", f"{GPT3} {MICROBATCHES}=24"),
    ("PaLM 540B", "v5p:8x16x16", PALM),
    ("PaLM 540B", "v6e:16x16", PALM),
    ("MT-NLG 530B", "v5p:8x8x16", MT_NLG),
    ("MT-NLG 530B", "v5p:8x16x16", f"{MT_NLG} --gin.TENSOR_PARALLEL=16"),
]


def plan(topology: str, flags: str, path: Path, minutes: float) -> None:
    """Runs a plan, whose JSON is `path` in the end, also if it did not come to one."""
    command = f"t5lite plan {flags} --topology={topology}"
    arguments = [*shlex.split(command)[1:], f"--output={path}"]
    program = [sys.executable, "-m", "t5lite.main", *arguments]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=60 * minutes)
        failed = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
    except subprocess.TimeoutExpired:
        failed = [f"not compiled after {minutes:g} minutes"]
    if not path.exists():
        path.write_text(json.dumps({"failed": failed[0]}), encoding="utf-8")


def row(name: str, topology: str, number: int, written: dict[str, Any]) -> str:
    """Returns a line of the table."""
    (found,) = written.get("plans", [{"aborted": written.get("failed")}])
    cells = [str(number), name, topology]
    if "estimate" not in found:
        if found.get("aborted"):
            reason = str(found["aborted"]).strip().splitlines()[-1]
        else:
            reason = f"does not fit: {found['needed'] / 2**30:,.1f} GiB a device are needed"
        return "| " + " | ".join([*cells, layout_of(found), reason, *["—"] * 6]) + " |"
    estimate, memory, program = (found[key] for key in ("estimate", "memory", "program"))
    sent = sum(kind["bytes"] for kind in program["collectives"].values())
    hours = found["steps"] * estimate["step"] * found["chips"] / 3600
    cells += [
        layout_of(found),
        f"{memory['total'] / 2**30:.1f} of {found['hbm'] / 2**30:.0f}",
        f"{1e3 * estimate['compute']:,.0f} + {1e3 * estimate['communication']:,.0f}",
        f"{sent / 1e9:,.1f}",
        f"{100 * estimate['utilisation']:.0f}–{100 * estimate['utilisation_overlapped']:.0f}",
        f"{estimate['tokens_per_second_per_chip']:,.0f}",
        f"{hours:,.0f}",
        f"{program['kernels']}",
    ]
    return "| " + " | ".join(cells) + " |"


def layout_of(found: dict[str, Any]) -> str:
    """Returns a plan's mesh and remat policy in a few words."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in found.get("mesh", {}).items())
    return f"{mesh}, {found.get('remat')}" if mesh else "—"


COLUMNS = (
    *("#", "model", "slice", "mesh, remat", "HBM, GiB", "compute + traffic, ms"),
    *("sent a step, GB", "utilisation, %", "tokens/s/chip", "chip-hours", "kernels"),
)
HEAD = """\
# Plans

What the models below would take, told by the TPU's compiler on a machine without one:

    python benchmarks/tpu_plans.py --folder plans --table tpu/PLANS.md

Every number is an **estimate**, not a measurement. *Compute* is what the compiler thinks of all
operations one after the other; *traffic* is bytes sent over one axis of links. The true step lies
somewhere between compute alone, where all traffic hides behind it, and their sum: so the two
utilisations. A Pallas kernel carries no estimate: where *kernels* is not 0, their time is missing
and utilisation too high. Input, checkpoints and evaluation are not in. *Chip-hours* are those of
all of a configuration's steps, nothing overlapped, nothing lost.

"""


def main() -> None:
    """Runs what is missing and writes the table of all there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the plans' JSON files")
    parser.add_argument("--table", type=Path, help="a Markdown file to write")
    parser.add_argument("--minutes", type=float, default=30.0, help="at most, of one plan")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of plans to run")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows, commands = [], []
    for number, (name, topology, flags) in enumerate(tqdm(PLANS, unit="plan"), start=1):
        path = options.folder / f"{number:02d}.json"
        if not path.exists() and (options.only is None or number in options.only):
            plan(topology, flags, path, options.minutes)
        if path.exists():
            rows.append(row(name, topology, number, json.loads(path.read_text(encoding="utf-8"))))
            commands.append(f"{number}. `t5lite plan {flags} --topology={topology}`")
    if options.table is not None:
        rows[:0] = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
        text = HEAD + "\n".join(rows) + "\n\n## Commands\n\n" + "\n".join(commands) + "\n"
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
