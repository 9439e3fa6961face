"""What `pip install t5lite` gives: the wheel is built, installed beside what is here, and used."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "t5lite", "gin", "configs", "tests")


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "copy").mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / part, folder / "copy" / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, folder / "copy" / part)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "copy", cwd=folder)
    (built,) = folder.glob("t5lite-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of an environment that holds the wheel, and inherits all else from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    run(
        *(sys.executable, "-m", "pip", "--python", python),
        *("install", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    # Plain paths: .pth files in the inherited folders, an editable t5lite's say, are not read.
    inherited = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "inherited.pth").write_text("\n".join(inherited))
    return folder / "bin"


def test_wheel_holds_the_package_the_configs_and_nothing_else(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "t5lite").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "t5lite/reporting/report/page.js" in expected
    for kind in ("configs", "gin"):
        files = sorted((ROOT / kind).rglob("*.gin"))
        assert files
        expected |= {f"t5lite/_{kind}/{path.relative_to(ROOT / kind)}" for path in files}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_wheel_carries_its_license_and_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = {name.split("/")[-1]: name for name in archive.namelist() if ".dist-info/" in name}
        assert "Apache License" in archive.read(text["LICENSE"]).decode()
        assert "t5lite = t5lite.main:main" in archive.read(text["entry_points.txt"]).decode()


def test_command_answers_from_another_folder(installed, tmp_path):
    assert "t5lite train --gin_file=configs/quickstart.gin" in run(
        installed / "t5lite", "--help", cwd=tmp_path
    )


def test_configs_parse_from_another_folder(installed, tmp_path):
    code = (
        "import t5lite; from t5lite import configuration\n"
        "source = configuration.parse(['configs/quickstart.gin']).source\n"
        "print(t5lite.__file__, 't5lite.train' in {item.selector for item in source.bindings})"
    )
    file, bound = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.parent)
    assert bound == "True"
