"""The group of processes that run one program, from flags or from the cluster's environment."""

import dataclasses
import glob
import os
import urllib.request

from t5lite.errors import InputError


@dataclasses.dataclass(frozen=True)
class Group:
    """Processes that run one program; JAX detects the fields that are None from the cluster.

    Args:
      address: `HOST:PORT` of process 0; the port must be free.
      count: number of processes.
      index: of this process, in `[0, count)`.
    """

    address: str | None = None
    count: int | None = None
    index: int | None = None


def group(
    address: str | None = None, count: int | None = None, index: int | None = None
) -> Group | None:
    """Returns the group of this process, or None for a single process; arguments as for `Group`.

    Without any, it is detected in SLURM (more than one task), Kubernetes or on Cloud TPU VMs (more
    than one worker or slice).

    Raises: InputError if some but not all are set, or one is out of range.
    """
    flags = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return Group() if _in_cluster() else None
    if missing:
        raise InputError(f"{' and '.join(missing)} missing: --{', --'.join(flags)} go together")
    assert address is not None
    assert count is not None
    assert index is not None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(
            f"--coordinator_address={address}: must be HOST:PORT, as 10.0.0.2:8476",
            field="coordinator_address",
        )
    if count < 1:
        raise InputError(f"--num_processes={count}: must be at least 1", field="num_processes")
    if not 0 <= index < count:
        raise InputError(
            f"--process_id={index}: must be from 0 to {count - 1}, of {count} processes",
            field="process_id",
        )
    return Group(address, count, index)


def _in_cluster() -> bool:
    """Whether the environment describes several processes."""
    environ = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in slurm) and int(environ.get("SLURM_NTASKS", 1)) > 1:
        return True
    if (environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    if int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if workers is not None:
        return "," in workers
    has_tpu = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if not has_tpu or "TPU_SKIP_MDS_QUERY" in environ:
        return False
    return "," in _metadata("worker-network-endpoints") or _slices(_metadata("tpu-env")) > 1


def _metadata(key: str) -> str:
    """Returns an attribute of this Google Cloud VM; empty on other machines."""
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def _slices(environment: str) -> int:
    for line in environment.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "MEGASCALE_NUM_SLICES":
            return int(value.strip().strip("'") or 1)
    return 1
