"""One program as several processes: how they find each other, and how all stop if one is gone.

JAX's processes wait for each other inside of collectives, where nothing that Python does is heard
any more, and its runtime aborts without a word to the user once a heartbeat stays out. So process 0
has a line to every other one. A line that breaks is a process that is gone, whatever it was: then
the others say so and end.
"""

import contextlib
import ctypes
import dataclasses
import glob
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5lite.errors import InputError
from t5lite.parallel.multihost import gather

_HEARTBEAT_SECONDS = 100  # JAX's own watch, the second line: also while a host is very busy
_CONNECT_SECONDS = 10
_NOTE_SECONDS = 4
_OUTLIVE_SECONDS = 15
_BYE = b"bye\n"
_NOTES: list[Callable[[], str]] = []


@dataclasses.dataclass(frozen=True)
class Group:
    """Which processes are one program; what is None is left to JAX, which knows its clusters.

    Args:
      address: `HOST:PORT` of process 0, the port a free one.
      count: how many there are.
      index: which of them this is, in `[0, count)`.
    """

    address: str | None = None
    count: int | None = None
    index: int | None = None


def group(
    address: str | None = None, count: int | None = None, index: int | None = None
) -> Group | None:
    """Returns the group that this process belongs to, or None if it is alone.

    Args:
      address: `HOST:PORT`; without it the surroundings tell: SLURM (more than one task), Kubernetes
        or Cloud TPU virtual machines (more than one worker, or slice).
      count: of processes.
      index: of this one.

    Raises:
      InputError: if some are given and not all, or out of range.
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
        raise InputError(f"--coordinator_address={address}: must be HOST:PORT, as 10.0.0.2:8476")
    if count < 1:
        raise InputError(f"--num_processes={count}: must be at least 1")
    if not 0 <= index < count:
        raise InputError(
            f"--process_id={index}: must be from 0 to {count - 1}, of {count} processes"
        )
    return Group(address, count, index)


def _in_cluster() -> bool:
    """Whether the surroundings say that this is one of several processes."""
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
    """Returns what a Google virtual machine knows of itself; elsewhere nothing."""
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


@contextlib.contextmanager
def joined(which: Group | None, *, timeout: float = 300.0) -> Iterator[None]:
    """Makes this process one of a group for as long as the context lasts; alone, does nothing.

    To be entered before JAX touches a device. If another process ends before it has left this
    context, or fails inside of it, this one prints that and ends too, with code 1.

    Args:
      which: see `group`.
      timeout: seconds to wait for the others.

    Raises:
      InputError: if process 0 cannot be reached. If others cannot, the process prints that and
        ends with code 2: it is inside the runtime, which would abort it.
    """
    if not 0 < timeout < math.inf:
        raise InputError(f"--coordinator_timeout={timeout:g}: must be seconds, above 0")
    if which is None or which.count == 1:
        yield
        return
    _initialize(which, timeout)
    if jax.process_count() == 1:
        yield
        return
    _delay_aborts()
    _NOTES.clear()
    line = _Lines(which)
    try:
        yield
    except InputError as error:
        # Most are every process's own: the others have time to say it themselves.
        line.close(_lost(jax.process_index(), _first_line(error), patience=3.0))
        raise
    except (Exception, KeyboardInterrupt) as error:
        line.hear()
        line.close(_lost(jax.process_index(), _first_line(error)))
        raise
    except BaseException:  # all end together: after SIGTERM, for one
        line.close(_BYE)
        raise
    gather(None)  # nobody leaves before the last one is done
    line.close(_BYE)


@contextlib.contextmanager
def noted(note: Callable[[], str]) -> Iterator[None]:
    """Lets a process that ends because another one is gone say a line more.

    Args:
      note: returns it, such as what is saved; on a thread of its own, in a few seconds.
    """
    _NOTES.append(note)
    yield
    # After a failure it stays: a collective may fail before the line is heard to break.
    _NOTES.remove(note)


def _initialize(which: Group, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    if which.address is not None and which.index:
        _wait_for(which.address, deadline, timeout)
    if which.address is not None and which.index == 0:
        _check_free(which.address)
    # The runtime aborts the process when its own time is over, so ours is over first.
    left = max(deadline - time.monotonic(), 1.0)
    timer = threading.Timer(left, _not_together, (which, timeout))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            which.address,
            which.count,
            which.index,
            initialization_timeout=int(left) + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=30,
        )
    finally:
        timer.cancel()


def _delay_aborts() -> None:
    """Lets an abort wait while a thread says why.

    The runtime aborts this process as soon as process 0 is gone, and is often faster than the line.
    The handler is C's own `sleep`, which needs no Python: the number that it is called with, 6, is
    the signal's, and becomes seconds.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _not_together(which: Group, timeout: float) -> None:
    where = f"at --coordinator_address={which.address} " if which.address else ""
    print(
        f"t5lite: the processes did not come together {where}within {timeout:g} s; start all of "
        "them, each with its own --process_id, and see that the port is open",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _wait_for(address: str, deadline: float, timeout: float) -> None:
    """Waits until process 0 listens: the runtime would end the process without a word."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"--coordinator_address={address}: cannot be reached within {timeout:g} s "
                    f"({error.strerror or error}); is process 0 running there, and the port open?"
                ) from error
            time.sleep(0.2)


def _check_free(address: str) -> None:
    port = int(address.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise InputError(
            f"--coordinator_address={address}: port {port} cannot be listened on here "
            f"({os.strerror(error.errno or 0)}); choose another one"
        ) from error


class _Lines:
    """The lines between process 0 and the others; made by all of them together."""

    def __init__(self, which: Group):
        self._sockets: dict[int, socket.socket] = {}
        self._over = threading.Event()
        self._ending = threading.Lock()
        count, index = jax.process_count(), jax.process_index()
        server = None
        mine: Any = None
        if index == 0:
            server = socket.create_server(("", 0))
            hosts = [_own_address(), socket.gethostname()]
            if which.address:
                hosts.insert(0, which.address.rpartition(":")[0])
            mine = [hosts, server.getsockname()[1]]
        hosts, port = gather(mine)[0]
        if server is not None:
            server.settimeout(_CONNECT_SECONDS)
            with contextlib.suppress(TimeoutError), server:
                while len(self._sockets) < count - 1:
                    line, _ = server.accept()
                    self._sockets[int.from_bytes(line.recv(4), "big")] = line
        else:
            for host in dict.fromkeys(hosts):
                with contextlib.suppress(OSError):
                    line = socket.create_connection((host, port), timeout=_CONNECT_SECONDS / 2)
                    line.sendall(index.to_bytes(4, "big"))
                    self._sockets[0] = line
                    break
        self._threads = [
            threading.Thread(target=self._listen, args=each, daemon=True)
            for each in self._sockets.items()
        ]
        for line in self._sockets.values():
            _keep_alive(line)
            line.settimeout(None)
        for thread in self._threads:
            thread.start()

    def hear(self) -> None:
        """Ends this process if another one is gone: often a collective fails of that first."""
        time.sleep(1.0)
        self._ending.acquire(timeout=30.0)  # held by the thread that has heard it, to the end

    def close(self, word: bytes) -> None:
        """Says to the others why they will hear no more, and outlives them if they are to end."""
        self._over.set()
        self._tell(word)
        if word != _BYE:
            self._outlive()

    def _tell(self, word: bytes) -> None:
        for line in self._sockets.values():
            with contextlib.suppress(OSError):
                line.sendall(word)

    def _outlive(self) -> None:
        """In process 0, waits for the others: without it the runtime would abort them unheard."""
        end = time.monotonic() + _OUTLIVE_SECONDS
        for thread in self._threads if jax.process_index() == 0 else ():
            thread.join(max(end - time.monotonic(), 0.0))

    def _listen(self, other: int, line: socket.socket) -> None:
        """Waits for what a process says, and then for its end."""
        with contextlib.suppress(OSError), line.makefile("rb") as stream:
            heard = b""
            with contextlib.suppress(OSError):
                heard = stream.readline()
            if heard == _BYE:
                return
            if not self._over.is_set() and self._ending.acquire(blocking=False):
                threading.Thread(target=self._end, args=(other, heard), daemon=True).start()
            stream.read()

    def _end(self, other: int, heard: bytes) -> None:
        """Ends this process, while the main thread may never come back from a device."""
        gone, why, patience = other, "", 0.0  # of one that was killed, which says nothing
        with contextlib.suppress(ValueError):
            gone, why, patience = json.loads(heard)
        if jax.process_index() == 0:
            self._tell(_lost(gone, why, patience=patience))
        if not self._over.wait(patience):
            _say_gone(gone, why)
            self._outlive()
            os._exit(1)


def _lost(gone: int, why: str, *, patience: float = 0.0) -> bytes:
    """Returns what a line says when a process fails: which, why, and how long to wait for more."""
    return json.dumps([gone, why, patience]).encode() + b"\n"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:500]


def _say_gone(gone: int, why: str) -> None:
    notes: list[str] = []
    # A disk or a bucket may not answer; the end must not wait for it.
    asking = threading.Thread(target=lambda: notes.extend(note() for note in _NOTES), daemon=True)
    asking.start()
    asking.join(_NOTE_SECONDS)
    why = why or "killed, preempted or out of memory, as its own output may say"
    lines = [
        f"t5lite: process {gone} of {jax.process_count()} is gone ({why}); "
        f"process {jax.process_index()} ends too",
        *notes,
        "to go on, start all processes again with the same command",
    ]
    print("\n  ".join(lines), file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def _keep_alive(line: socket.socket) -> None:
    """Lets a line break within 30 seconds if the other host is gone without a word."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _own_address() -> str:
    """Returns the address that this host's packets leave from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
