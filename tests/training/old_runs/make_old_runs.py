"""Makes the runs of older versions: `make_old_runs.py FOLDER`, with that version on PYTHONPATH.

A small encoder-decoder trains for six steps on a file of its own, with everything that a state of
these versions holds. Kept are the checkpoint of step 3, its description, and what all six steps
said; see `test_old_runs.py`, which goes on from there.
"""

import json
import pathlib
import shutil
import sys

STEPS, KEPT = 6, 3


def settings() -> dict:
    """Returns the arguments of `train`, the same in every version since 0.1.0."""
    from t5lite.data import Bytes, FileData
    from t5lite.models import override
    from t5lite.objectives import Seq2Seq
    from t5lite.optimizers import Adafactor, schedules
    from t5lite.training import Checkpoints, Update

    # A relative path: the position in the data holds it.
    data = FileData(
        "lines.jsonl",
        features={"inputs": "say {word}", "targets": "{answer}"},
        vocab=Bytes(0),
        lengths={"inputs": 32, "targets": 24},
        batch_size=8,
    )
    model = override(
        "t5_1_1_nano",
        {
            "vocab": data.vocabulary().size,
            "embed": 8,
            "encoder.num_layers": 2,
            "decoder.num_layers": 1,
            "*.blocks.*.attention.num_heads": 2,
            "*.blocks.*.attention.head_dim": 4,
            "decoder.blocks.*.cross_attention.num_heads": 2,
            "decoder.blocks.*.cross_attention.head_dim": 4,
            "*.blocks.*.mlp.hidden": 16,
        },
    )
    return {
        "model": model,
        "objective": Seq2Seq(),
        "data": data,
        "optimizer": Adafactor(
            schedules.rsqrt(base=0.05, warmup_steps=5), min_dim_size_to_factor=8
        ),
        "update": Update(clip_norm=1.0, ema_decay=0.9, spike_threshold=6.0),
        "checkpoints": Checkpoints(every=KEPT, keep=10),
        "log_every": 1,
    }


def write_lines(folder: pathlib.Path) -> None:
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    rows = [
        {"word": f"{a} {b}", "answer": f"{b} after {a}"} for a in words for b in words[: len(a)]
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(folder: pathlib.Path) -> None:
    import os

    import t5lite

    folder.mkdir(parents=True)
    write_lines(folder)
    os.chdir(folder)
    t5lite.train("run", steps=STEPS, **settings())
    lines = map(json.loads, pathlib.Path("run/metrics.jsonl").read_text().splitlines())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    pathlib.Path("losses.json").write_text(json.dumps(losses) + "\n")
    for path in pathlib.Path("run").iterdir():
        if path.name not in ("checkpoints", "model.json", "vocabulary", "run.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in pathlib.Path("run/checkpoints").iterdir():
        if path.name != str(KEPT):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
