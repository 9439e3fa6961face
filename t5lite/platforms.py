"""Selects JAX's platform where libtpu is installed without a TPU.

`t5lite plan` compiles with libtpu on machines that have no TPU. There, JAX would load libtpu, wait
for a TPU and print a dozen lines of warnings before it used another platform. Every other machine
is left to JAX.
"""

import glob
import importlib.util
import os
import sys

_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_ROCM_PLUGINS = ("jax_rocm7_plugin", "jax_rocm60_plugin")


def skip_absent_tpu() -> None:
    """Sets JAX_PLATFORMS to the platforms of this machine if libtpu would search for a TPU in vain.

    Takes effect until JAX uses its first device. A JAX_PLATFORMS that the user set stays.
    """
    if os.environ.get("JAX_PLATFORMS"):
        return
    if platforms := platforms_without_tpu():
        os.environ["JAX_PLATFORMS"] = platforms  # of child processes too
        if "jax" in sys.modules and not sys.modules["jax"].config.jax_platforms:
            sys.modules["jax"].config.update("jax_platforms", platforms)


def platforms_without_tpu() -> str | None:
    """Returns the value for JAX_PLATFORMS, or None if a TPU may be here or libtpu is missing.

    A visible GPU whose plugin is installed is named: if it fails, JAX says so instead of using the
    CPU.
    """
    if not _installed("libtpu") or "JAX_FORCE_TPU_INIT" in os.environ:
        return None
    # TPU VMs show their chips as /dev/accel0 (v2 to v4) or /dev/vfio/0 (v5e and later).
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return None
    # /dev/dxg is the GPU of Windows' Linux subsystem.
    if (glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg")) and _installed(*_CUDA_PLUGINS):
        return "cuda,cpu"
    if glob.glob("/dev/kfd") and _installed(*_ROCM_PLUGINS):
        return "rocm,cpu"
    return "cpu"


def _installed(*modules: str) -> bool:
    return any(importlib.util.find_spec(module) is not None for module in modules)
