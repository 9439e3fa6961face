"""Strict numerics and eight CPU devices for every test."""

import gc
import importlib.metadata
import os
import resource
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = [
    "--xla_force_host_platform_device_count=8",
    # Compiling is what tests spend their time on; half of it is for speed that none of them needs.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",  # workers share the cores as it is
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions know it no more
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

import jax  # noqa: E402 - reads the flags above
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Here alone are annotations checked, shapes and dtypes of arrays among them.
install_import_hook(["t5lite.layers", "t5lite.models", "t5lite.decoding"], "shape_types.checked")

gc.set_threshold(50_000, 50, 100)  # traces are many objects, and few of them garbage
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


_STATM = Path("/proc/self/statm")  # Linux
_room = {"bytes": 4e9}  # of a worker, until its compiled functions are dropped


@pytest.hookimpl
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Drops compiled functions now and then: by the end of the suite they would be 10 GB."""
    if nextitem is not None and _STATM.exists() and _resident_bytes() > _room["bytes"]:
        jax.clear_caches()
        gc.collect()
        _room["bytes"] = max(_room["bytes"], _resident_bytes() + 1e9)


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Makes cases of a table slow, but those that `light` names, by their id or a part of it."""
    for item in items:
        if mark := item.get_closest_marker("light"):
            case = item.callspec.id
            if case not in mark.args and not set(case.split("-")) & set(mark.args):
                item.add_marker(pytest.mark.slow)
