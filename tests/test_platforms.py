"""JAX's platform where libtpu is installed: no search for an absent TPU, no TPU lost."""

import fnmatch
import glob
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5lite import platforms

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("files", "modules", "environment", "expected"),
    [
        ([], ["libtpu"], {}, "cpu"),
        ([], [], {}, None),
        ([], ["jax_cuda12_plugin"], {}, None),
        (["/dev/accel0"], ["libtpu"], {}, None),
        (["/dev/vfio/0"], ["libtpu"], {}, None),
        (["/dev/vfio/vfio"], ["libtpu"], {}, "cpu"),  # there on any machine with virtual devices
        (["/dev/nvidia0"], ["libtpu"], {}, "cpu"),
        (["/dev/nvidia0"], ["libtpu", "jax_cuda12_plugin"], {}, "cuda,cpu"),
        (["/dev/nvidiactl"], ["libtpu", "jax_cuda12_plugin"], {}, "cpu"),
        (["/dev/kfd"], ["libtpu", "jax_rocm7_plugin"], {}, "rocm,cpu"),
        (["/dev/accel0", "/dev/nvidia0"], ["libtpu", "jax_cuda12_plugin"], {}, None),
        ([], ["libtpu"], {"JAX_FORCE_TPU_INIT": "1"}, None),
    ],
)
def test_platforms_follow_the_devices(monkeypatch, files, modules, environment, expected):
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in modules or None)
    monkeypatch.setattr(os, "environ", environment)
    assert platforms.platforms_without_tpu() == expected


def test_the_users_choice_stays(monkeypatch):
    monkeypatch.setattr(platforms, "platforms_without_tpu", lambda: "cpu")
    monkeypatch.setattr(os, "environ", {"JAX_PLATFORMS": "tpu"})
    platforms.skip_absent_tpu()
    assert os.environ["JAX_PLATFORMS"] == "tpu"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(bool(glob.glob("/dev/accel*")), reason="a TPU may be here")
@pytest.mark.parametrize("first", ["import t5lite.errors, jax", "import jax, t5lite.errors"])
@pytest.mark.parametrize("unset", [None, ""])
def test_nothing_is_printed_of_an_absent_tpu(tmp_path, first, unset):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": unset or ""}
    if unset is None:
        del environment["JAX_PLATFORMS"]
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\nprint(jax.devices()[0].platform)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("cpu\n", "") or done.stdout == "gpu\n"
