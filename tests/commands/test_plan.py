"""`t5lite plan`: what it prints and writes, and what it says when something is wrong."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from t5lite.main import main
from t5lite.planning import Slice, Variation, trials
from t5lite.planning.sandbox import Sandbox

libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
NANO = [
    "--gin_file=configs/quickstart.gin",
    '--gin.TASK_FEATURE_LENGTHS={"inputs": 16, "targets": 8}',
    "--gin.BATCH_SIZE=8",
    '--gin.t5lite.models.override.changes={"*.num_layers": 1, "embed": 32, "vocab": 4096, '
    '"*.dropout_rate": 0.0}',
]


@libtpu
def test_a_run_is_planned_from_its_command_line(tmp_path: Path, capfd: Any) -> None:
    output = tmp_path / "plan.json"
    code = main(
        ["plan", *NANO, "--topology=v5e:2x2", "--price=2", "--power=300", f"--output={output}"]
    )
    text, progress = capfd.readouterr()
    assert code == 0
    for line in ("it fits", "optimizer state", "all-reduce", "not measured", "at 2 a chip-hour"):
        assert line in text
    assert "compiling" in progress
    assert max(map(len, text.splitlines())) <= 100 + len(str(output))
    written = json.loads(output.read_text())
    assert written["command"].startswith("t5lite plan --gin_file=configs/quickstart.gin")
    assert {"jax", "libtpu"} <= set(written["versions"])
    (found,) = written["plans"]
    assert found["mesh"] == {"data": 4}
    assert found["processes"] == [{"rows": [[0, 8]], "shards": [[0, 8]]}]
    assert found["tokens_per_step"] == 8 * (16 + 8)
    memory = found["memory"]
    # Adam's two moments; every device has them all.
    assert 1.9 * memory["parameters"] < memory["optimizer"] < 2.1 * memory["parameters"]
    assert memory["parameters"] == 4 * found["parameters"]
    # Each device sends the gradient once around, and once more to spread the sum.
    gradient = 2 * 3 / 4 * 4 * found["parameters"]
    assert gradient <= found["program"]["collectives"]["all-reduce"]["bytes"] < 1.1 * gradient
    step = found["estimate"]["step"]
    assert step > found["estimate"]["step_overlapped"] > 0
    run = found["run"]
    assert run["steps"] == 6000
    assert run["chip_hours"] == pytest.approx(4 * 6000 * step / 3600)
    assert run["cost"] == pytest.approx(2 * run["chip_hours"])
    assert run["kilowatt_hours"] == pytest.approx(0.3 * run["chip_hours"])
    for part in (f"{run['cost']:.3g} at 2 a chip-hour", f"{run['kilowatt_hours']:.3g} kWh"):
        assert part in text


@libtpu
@pytest.mark.slow
def test_a_plan_says_what_each_process_reads_and_refuses_parts_of_shards(
    tmp_path: Path, capfd: Any
) -> None:
    output = tmp_path / "plan.json"
    flags = ["plan", *NANO, "--gin.BATCH_SIZE=32", f"--output={output}"]
    of_two_rows = "--gin.t5lite.data.FileData.num_shards=16"
    assert main([*flags, of_two_rows, "--topology=v5e:4x4"]) == 0
    assert "0–3, 12–13, 30–31" in capfd.readouterr()[0]
    (found,) = json.loads(output.read_text())["plans"]
    assert [each["rows"] for each in found["processes"]] == [
        [[0, 4], [12, 14], [30, 32]],
        [[4, 12]],
        [[14, 16], [24, 30]],
        [[16, 24]],
    ]
    assert main([*flags, "--topology=v4:2x2x4"]) == 2
    assert "not whole shards of 4 rows; set num_shards to 16" in capfd.readouterr()[1]
    assert main([*flags, of_two_rows, "--topology=v4:2x2x4"]) == 0


@libtpu
@pytest.mark.slow
def test_what_is_too_large_says_by_how_much_and_what_would_fit(tmp_path: Path, capfd: Any) -> None:
    output = tmp_path / "plan.json"
    code = main(
        [
            "plan",
            "--gin_file=configs/llama2_7b.gin",
            "--topology=v5e:2x2",
            f"--output={output}",
        ]
    )
    text, _ = capfd.readouterr()
    assert code == 1
    assert "too much" in text
    assert "a larger slice: --topology=v5e:" in text
    assert 'mu_dtype = "bfloat16"' in text
    (found,) = json.loads(output.read_text())["plans"]
    assert found["needed"] > found["available"] > 15 * 2**30
    assert found["run"] is None


@libtpu
@pytest.mark.slow
def test_a_search_ranks_what_fits(tmp_path: Path, capfd: Any) -> None:
    output = tmp_path / "plan.json"
    code = main(
        ["plan", *NANO, "--topology=v5e:2x2", "--search", "--budget=1", f"--output={output}"]
    )
    text, _ = capfd.readouterr()
    assert code == 0
    assert "the most promising first" in text
    assert "the first one, as flags" in text
    written = json.loads(output.read_text())
    steps = [found["estimate"]["step"] for found in written["plans"]]
    assert len(steps) >= 2
    assert steps == sorted(steps)
    assert written["plans"][0]["flags"][0].startswith("--gin.t5lite.parallel.Layout.mesh=")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e:32x32"], "no such slice; of v5e there are 1x1, 2x2"),
        (["--topology=h100:8"], "unknown TPU 'h100'; known: tpu7x, v4, v5e"),
        (["--topology=v9:2x2"], "unknown TPU 'v9'; known: tpu7x, v4, v5e"),
        (["--topology=v5e:4x4", "--price=-1"], "--price=-1.0: must be above 0"),
        (["--topology=v5e:4x4", "--output=tests"], "cannot write tests: it is a folder"),
        ([], "the following arguments are required: --topology"),
    ],
)
@libtpu
def test_bad_input_is_refused_before_anything_is_compiled(
    flags: list[str], message: str, capsys: Any
) -> None:
    assert main(["plan", *NANO, *flags]) == 2
    assert message in capsys.readouterr().err


@libtpu
def test_what_the_compiling_process_refuses_is_this_ones_error(capsys: Any) -> None:
    flags = ["--topology=v5e:2x2", '--gin.t5lite.parallel.Layout.mesh={"fsdp": 3}']
    layout = ["--gin_file=gin/partitioning/fsdp.gin"]
    assert main(["plan", *NANO, *layout, *flags]) == 2
    error = capsys.readouterr().err
    assert "Layout.mesh = {'fsdp': 3} does not multiply to the 4 devices" in error
    assert error.count("t5lite: ") == 1


def test_without_libtpu_a_line_says_how_to_install_it(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", *NANO, "--topology=v5e:2x2"]) == 2
    assert "pip install 't5lite[tpu]'" in capsys.readouterr().err


def compilation(program: str) -> Sandbox:
    return Sandbox([sys.executable, "-c", program])


def test_a_compiler_that_aborts_is_reported() -> None:
    program = "import os; os.write(2, b'Check failed: bad shape'); os.abort()"
    found = compilation(program)({}, title="abort")
    assert found["aborted"] == "the compiler ended by signal 6"
    assert found["said"] == ["Check failed: bad shape"]


def test_a_compiler_that_aborts_in_time_did_not_run_out_of_it() -> None:
    # Reading what it said takes longer than the cancelled timer's thread takes to end.
    program = "import os; os.write(2, b'x' * 10**7); os.abort()"
    found = compilation(program)({}, title="abort", seconds=60)
    assert found["aborted"] == "the compiler ended by signal 6"


def test_a_compiler_that_hangs_is_ended() -> None:
    found = compilation("import time; time.sleep(60)")({}, title="hang", seconds=0.5)
    assert found["aborted"] == "not finished within 0 s"


def test_a_search_carries_on_after_what_aborts_or_does_not_fit(capsys: Any) -> None:
    mesh = (("fsdp", 4),)
    order = [
        Variation(mesh, "minimal", 1),  # too large
        Variation(mesh, "none", 1),  # needs more: not tried
        Variation((("data", 4),), "none", 1),  # aborts
        Variation(mesh, "full", 1),
        Variation(mesh, "full", 2),
        Variation(mesh, "full", 4),  # is what is configured: not tried again
    ]
    fits = {"fits": True, "memory": {"total": 2**30}}
    speeds = {
        "step": 0.5,
        "utilisation": 0.3,
        "tokens_per_second_per_chip": 100.0,
    }
    known = {"mesh": {"fsdp": 4}, "remat": "full", "microbatches": 4}
    answers = iter(
        [
            fits | known | {"estimate": speeds | {"step": 0.6}},  # as configured
            {"fits": False, "needed": 2.0**34, "available": 2.0**33},
            {"aborted": "the compiler ended by signal 6"},
            fits | {"estimate": speeds},
            fits | {"estimate": speeds | {"step": 0.4}},
        ]
    )
    tried: list[dict] = []

    def compile_(changes: dict, **_: Any) -> dict:
        tried.append(changes)
        return next(answers)

    found = trials.try_all(order, Slice.parse("v5e:2x2"), compile_, seconds=1000)
    assert [changes.get("remat") for changes in tried] == [None, "minimal", "none", "full", "full"]
    assert [each["estimate"]["step"] for each in found["plans"]] == [0.4, 0.5, 0.6]
    assert found["plans"][-1]["flags"] == []
    assert len(found["did_not_fit"]) == 2
    assert found["left_out"] == {"need more than what did not fit": 1, "is the run as it is": 1}
    text = capsys.readouterr().out
    assert "0. as configured: 1 GiB a device, 600 ms" in text
    assert "8 GiB too much" in text
    assert "signal 6" in text
    assert "num_microbatches=2" in text


def test_a_search_that_is_interrupted_keeps_what_is_done(capsys: Any) -> None:
    order = [Variation((("fsdp", 4),), "full", count) for count in (1, 2, 4)]
    speeds = {"step": 0.5, "utilisation": 0.3, "tokens_per_second_per_chip": 100.0}
    done = {"fits": True, "memory": {"total": 2**30}, "estimate": speeds}

    def compile_(changes: dict, **_: Any) -> dict:
        if changes.get("num_microbatches") == 2:
            raise KeyboardInterrupt
        return dict(done)

    found = trials.try_all(order, Slice.parse("v5e:2x2"), compile_, seconds=1000)
    assert len(found["plans"]) == 2
    assert found["left_out"] == {"not tried, interrupted": 2}
    text = capsys.readouterr().out
    assert "interrupted" in text
    assert "none that was tried is faster than the run as it is configured" in text
