"""Memory capacity of a local device, or of the host whose processor is the device."""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

_SHARE = 0.9  # of the host's: Linux kills programs that take more than it has
_CGROUP = Path("/sys/fs/cgroup")


class Capacity(NamedTuple):
    """Memory for one device of this process, and its owner, for messages."""

    bytes: int
    owner: str


def capacity(device: Any) -> Capacity | None:
    """Returns the memory of a local device; None if unknown.

    For an accelerator all that JAX may take; for processors, which share the host's, each one's
    part of the memory available now, less a reserve for the data and other programs.
    """
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
        return None if limit is None else Capacity(int(limit), f"a {device.device_kind}")
    available = host_bytes()
    if available is None:
        return None
    count = len(jax.local_devices(backend="cpu"))
    parts = f" for {count} devices" if count > 1 else ""
    return Capacity(int(_SHARE * available) // count, f"this host{parts} (a tenth is kept free)")


def host_bytes() -> int | None:
    """Returns the bytes that this process could still take; None if unknown."""
    total = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        total.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # of a container; "max": no limit
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        total.append(max(limit - used + int(cached.get("inactive_file", 0)), 0))
    if not total:
        with contextlib.suppress(OSError, ValueError):  # macOS: the total
            total.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(total, default=None)
