"""Several processes are one program: real ones, on this machine, with collectives over sockets."""

import contextlib
import http.server
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import one_process
import pytest

from t5lite.errors import InputError
from t5lite.main import main
from t5lite.parallel import Group, group, joined, processes

TESTS = Path(__file__).parent.parent
SECONDS = 240  # after which a process that hangs is a failure


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def arguments(model_dir: Path, **macros: Any) -> list[str]:
    config = model_dir.parent / "run.gin"
    config.write_text(one_process.CONFIG)
    macros = {"MODEL_DIR": f'"{model_dir}"', **macros}
    return [f"--gin_file={config}", *(f"--gin.{name}={value}" for name, value in macros.items())]


class Processes:
    """So many processes of one run, on four devices together."""

    def __init__(
        self,
        count: int,
        model_dir: Path,
        *flags: str,
        only: int | None = None,
        folders: Sequence[Path] = (),
        verb: str = "train",
        order: str = "0 1 2 3",
        **macros: Any,
    ):
        model_dir.mkdir(exist_ok=True)
        address = f"localhost:{free_port()}"
        self.logs = [model_dir.parent / f"{model_dir.name}_{index}.log" for index in range(count)]
        self.all = []
        for index in range(count) if only is None else [only]:
            several = [
                f"--coordinator_address={address}",
                f"--num_processes={count}",
                f"--process_id={index}",
            ]
            command = [sys.executable, str(TESTS / "parallel" / "one_process.py"), verb]
            folder = folders[index] if folders else model_dir
            command += [*arguments(folder, **macros), *(several if count > 1 else []), *flags]
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(4 // count),
                "DEVICE_ORDER": order,
                "XLA_FLAGS": "",
                "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            }
            with self.logs[index].open("w") as log:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            self.all.append(process)

    def wait(self) -> list[int]:
        """Returns the exit codes, once all are done."""
        try:
            end = time.monotonic() + SECONDS
            return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.all]
        finally:
            for process in self.all:
                process.kill()
                process.wait()

    def said(self, index: int) -> str:
        return self.logs[index].read_text()

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + SECONDS
        while not path.exists():
            codes = [process.poll() for process in self.all]
            assert not any(codes), [log.read_text()[-2000:] for log in self.logs]
            assert time.monotonic() < end, f"no {path}"
            time.sleep(0.05)


def finish(count: int, model_dir: Path, *flags: str, **options: Any) -> Processes:
    processes = Processes(count, model_dir, *flags, **options)
    codes = processes.wait()
    assert codes == [0] * count, [log.read_text()[-2000:] for log in processes.logs]
    return processes


def params(model_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(model_dir / "params.npz"))


def assert_close(actual: Path, expected: Path) -> None:
    found, wanted = params(actual), params(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A whole run in this process, on its eight devices."""
    model_dir = tmp_path_factory.mktemp("alone") / "run"
    model_dir.mkdir()
    assert main(["train", *arguments(model_dir)]) == 0
    return model_dir


def test_two_processes_train_as_one(alone: Path, tmp_path: Path) -> None:
    model_dir = tmp_path / "two"
    processes = finish(2, model_dir, order="0 2 3 1")  # rows 0, 1, 6 and 7 are process 0's
    assert_close(model_dir, alone)
    assert "on 4 devices" in processes.said(0)
    assert "step 8/8" in processes.said(0)
    assert "step 8/8" not in processes.said(1)  # one process speaks
    assert (model_dir / "checkpoints" / "8").is_dir()
    metrics = (model_dir / "metrics.jsonl").read_text().splitlines()
    assert sum('"train/loss"' in line for line in metrics) == 8


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_one_process_resumes(
    alone: Path, tmp_path: Path
) -> None:
    model_dir = tmp_path / "killed"
    processes = Processes(2, model_dir, SECONDS=0.2)
    processes.wait_for(model_dir / "process_1_step_6")
    processes.all[1].send_signal(signal.SIGKILL)
    start = time.monotonic()
    assert processes.wait()[0] == 1
    assert time.monotonic() - start < 20
    assert "t5lite: process 1 of 2 is gone" in processes.said(0)
    assert f"step 4 is saved in {model_dir}" in processes.said(0)
    assert "start all processes again with the same command" in processes.said(0)
    assert [path.name for path in (model_dir / "checkpoints").iterdir()] == ["4"]
    assert main(["train", *arguments(model_dir)]) == 0
    assert_close(model_dir, alone)


def test_notes_are_printed_also_if_a_collective_failed_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_NOTES", [])
    with processes.noted(lambda: "step 2 is saved"):
        pass
    with contextlib.suppress(RuntimeError), processes.noted(lambda: "step 4 is saved"):
        raise RuntimeError("Gloo: connection closed by peer")
    processes._print_end(processes._Failure(1))
    said = capsys.readouterr().err
    assert "step 4 is saved" in said
    assert "step 2" not in said


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(alone: Path, tmp_path: Path) -> None:
    model_dir = tmp_path / "changing"
    finish(2, model_dir, STEPS=3)
    finish(4, model_dir, STEPS=6)
    finish(1, model_dir)
    assert_close(model_dir, alone)


@pytest.mark.slow
def test_processes_that_hold_the_same_rows_train_as_one(alone: Path, tmp_path: Path) -> None:
    model_dir, mesh = tmp_path / "shared", "--gin.t5lite.parallel.Layout.mesh"
    finish(2, model_dir, f'{mesh}={{"data": 2, "tensor": 2}}', order="0 2 3 1", STEPS=4)
    finish(4, model_dir, f'{mesh}={{"data": 2, "seq": 2}}', order="0 2 3 1")
    assert_close(model_dir, alone)


@pytest.mark.slow
def test_resumed_by_as_many_it_ends_the_same_to_the_last_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(2, whole)
    processes = Processes(2, killed, SECONDS=0.2)
    processes.wait_for(killed / "process_1_step_6")
    processes.all[0].kill()
    assert processes.wait()[1] == 1
    finish(2, killed)
    for name, value in params(whole).items():
        np.testing.assert_array_equal(params(killed)[name], value)


@pytest.mark.slow
def test_four_processes_train_as_one(alone: Path, tmp_path: Path) -> None:
    finish(4, tmp_path / "four")
    assert_close(tmp_path / "four", alone)


@pytest.mark.slow
def test_two_processes_measure_as_one(alone: Path) -> None:
    held_out = [
        "--gin.t5lite.train.callbacks=[@t5lite.evaluation.HeldOut()]",
        "--gin.t5lite.evaluation.HeldOut.every=1",
    ]
    assert main(["evaluate", *arguments(alone), *held_out]) == 0
    (written,) = alone.glob("evaluation-8-*.json")
    expected = json.loads(written.read_text())["metrics"]
    written.unlink()
    assert Processes(2, alone, *held_out, verb="evaluate").wait() == [0, 0]
    assert json.loads(written.read_text())["metrics"] == pytest.approx(expected, rel=1e-5)
    processes = Processes(2, alone, "--steps=1", "--warmup=0", verb="bench")
    assert processes.wait() == [0, 0]
    assert "4 × cpu, as data 2 × fsdp 2" in processes.said(0)
    assert "measured" not in processes.said(1)


@pytest.mark.slow
def test_two_processes_generate_as_one(alone: Path, capsys: Any) -> None:
    samples = [
        "--gin.t5lite.train.callbacks=[@t5lite.evaluation.Samples()]",
        "--gin.t5lite.evaluation.Samples.every=1",
        "--gin.t5lite.evaluation.Samples.num_examples=6",
    ]
    capsys.readouterr()
    assert main(["evaluate", *arguments(alone), *samples]) == 0
    shown = samples_in(capsys.readouterr().out)
    assert shown.count("model") == 4
    processes = Processes(2, alone, *samples, verb="evaluate")
    assert processes.wait() == [0, 0], processes.said(0)[-2000:]
    assert samples_in(processes.said(0)) == shown


def samples_in(printed: str) -> str:
    return printed.partition("samples at step")[2].partition("metrics at step")[0].strip()


@pytest.mark.slow
def test_without_process_0_the_others_end(tmp_path: Path) -> None:
    processes = Processes(4, tmp_path / "run", STEPS=200, SECONDS=0.2)
    processes.wait_for(tmp_path / "run" / "process_3_step_2")
    processes.all[0].kill()
    assert processes.wait()[1:] == [1, 1, 1]
    for index in (1, 2, 3):
        assert "t5lite: process 0 of 4 is gone" in processes.said(index)
        assert "no step is saved yet" in processes.said(index)


@pytest.mark.slow
def test_all_processes_name_the_failed_one(tmp_path: Path) -> None:
    processes = Processes(4, tmp_path / "run", STEPS=200, FAILS_AT=5)
    assert processes.wait() == [1, 1, 1, 1]
    assert "the disk of process 1 is full" in processes.said(1)
    for index in (0, 2, 3):
        assert "t5lite: process 1 of 4 is gone (RuntimeError: the disk" in processes.said(index)
        assert "step 4 is saved in" in processes.said(index)


@pytest.mark.slow
def test_a_notice_to_one_stops_both_and_saves(tmp_path: Path) -> None:
    processes = Processes(2, tmp_path / "run", STEPS=200, SECONDS=0.1)
    processes.wait_for(tmp_path / "run" / "process_1_step_2")
    processes.all[1].terminate()
    assert processes.wait() == [143, 143]
    (step,) = re.findall(r"terminated: step (\d+) is saved", processes.said(0))
    assert int(step) <= 100  # of 200: JAX looks for a notice once a second
    assert (tmp_path / "run" / "checkpoints" / step).is_dir()


@pytest.mark.slow
def test_ctrl_c_in_one_stops_both_and_saves_and_a_second_one_leaves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = Processes(2, run, STEPS=200, SECONDS=0.05)
    processes.wait_for(run / "process_1_step_2")
    processes.all[1].send_signal(signal.SIGINT)
    assert processes.wait() == [143, 130]
    assert "is saved; run again to resume" in processes.said(0)
    assert "Ctrl-C again leaves at once" in processes.said(1)
    assert max(int(path.name) for path in (run / "checkpoints").iterdir()) < 200

    slow = tmp_path / "slow"
    processes = Processes(2, slow, STEPS=200, SECONDS=20.0)  # a step that does not end soon
    processes.wait_for(slow / "process_0_step_1")
    for _ in range(2):
        processes.all[0].send_signal(signal.SIGINT)
        time.sleep(1.0)
    assert processes.wait()[0] == 130
    assert processes.all[1].returncode == 1
    assert not any((slow / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_two_processes_save_by_one_clock(tmp_path: Path) -> None:
    """Both at the same steps, or they would wait for each other for ever."""
    minutes = "--gin.t5lite.training.Checkpoints.every_minutes=0.03"
    never = "--gin.t5lite.training.Checkpoints.every=1000"
    keep = "--gin.t5lite.training.Checkpoints.keep=100"
    finish(2, tmp_path / "run", minutes, never, keep, STEPS=40, SECONDS=0.25)
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert 3 <= len(steps) <= 12
    assert steps[-1] == 40


@pytest.mark.slow
def test_sigterm_ends_runs_without_state_at_once(alone: Path) -> None:
    mark = alone / "process_1_step_8"
    mark.unlink(missing_ok=True)
    processes = Processes(2, alone, verb="evaluate", SECONDS=SECONDS)
    processes.wait_for(mark)
    processes.all[1].terminate()
    start = time.monotonic()
    assert processes.wait() == [1, -signal.SIGTERM]
    assert time.monotonic() - start < SECONDS / 4
    assert "t5lite: process 1 of 2 is gone" in processes.said(0)


def test_an_input_error_is_printed_as_by_one_process(tmp_path: Path) -> None:
    processes = Processes(2, tmp_path / "run", '--gin.t5lite.parallel.Layout.mesh={"data": 3}')
    assert processes.wait() == [2, 2]
    for index in (0, 1):
        assert "does not multiply to the 4 devices" in processes.said(index)


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    processes = Processes(2, tmp_path / "a", folders=[tmp_path / "a", tmp_path / "b"])
    assert processes.wait() == [2, 2]
    for index in (0, 1):
        assert "process 1 does not see the files of process 0" in processes.said(index)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.light("1")
def test_who_stays_alone_says_so(index: int, tmp_path: Path) -> None:
    processes = Processes(2, tmp_path / "run", "--coordinator_timeout=1", only=index)
    assert processes.wait() == [2]
    assert "--coordinator_address=localhost:" in processes.said(index)
    assert "within 1 s" in processes.said(index)


def test_a_port_in_use_is_named(tmp_path: Path, capsys: Any) -> None:
    with socket.create_server(("", 0)) as server:
        flags = [
            f"--coordinator_address=localhost:{server.getsockname()[1]}",
            "--num_processes=2",
            "--process_id=0",
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "_exit", sys.exit)
            with pytest.raises(SystemExit) as exited:
                main(["train", *arguments(tmp_path / "run"), *flags])
    assert exited.value.code == 2
    assert "cannot be listened on here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (("localhost:1", None, 0), "--num_processes missing"),
        (("localhost", 2, 0), "--coordinator_address=localhost: must be HOST:PORT"),
        (("localhost:99999", 2, 0), "must be HOST:PORT"),
        (("localhost:1", 0, 0), "--num_processes=0: must be at least 1"),
        (("localhost:1", 2, 2), "--process_id=2: must be from 0 to 1"),
    ],
)
def test_flags_that_make_no_group_are_refused(inputs: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        group(*inputs)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf])
def test_a_timeout_is_a_time(timeout: float) -> None:
    with pytest.raises(InputError, match="--coordinator_timeout"), joined(None, timeout=timeout):
        pass


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "2"}, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, False),  # salloc's shell, not srun's tasks
        ({"JAX_PLATFORMS": "tpu", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_PLATFORMS": "tpu", "TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({"JAX_PLATFORMS": "tpu", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_clusters_are_detected_by_their_environment(
    environment: dict[str, str], several: bool, monkeypatch: Any
) -> None:
    for name in (*SLURM, "SLURM_NTASKS", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert group() == (Group() if several else None)


@contextlib.contextmanager
def metadata_server(answers: dict[str, str]) -> Iterator[str]:
    """What a Google virtual machine can ask of itself."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = answers.get(self.path.rpartition("/")[2])
            calls = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if text is not None and calls else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("answers", "several"),
    [
        ({"worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2"}, True),
        ({"worker-network-endpoints": "a:1:10.0.0.1"}, False),
        ({"worker-network-endpoints": "a", "tpu-env": "X: '1'\nMEGASCALE_NUM_SLICES: '2'"}, True),
        ({}, False),
    ],
)
def test_the_metadata_server_of_a_tpu_vm_is_queried(
    answers: dict[str, str], several: bool, monkeypatch: Any
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0"] * ("accel" in pattern))
    with metadata_server(answers) as address:
        monkeypatch.setenv("GCE_METADATA_IP", address)
        assert group() == (Group() if several else None)
