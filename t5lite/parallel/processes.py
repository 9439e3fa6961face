"""Processes of one program: they start together, and all end when one of them fails.

Processes wait for each other inside collectives, where no Python code runs, and JAX notices a dead
one only after 100 seconds without a heartbeat. So every process keeps a TCP connection to process
0, which the kernel closes as soon as a process ends: the others then print which one, and end.
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from t5lite.errors import InputError
from t5lite.parallel.clusters import Group
from t5lite.parallel.multihost import gather

_CONNECT_SECONDS = 10
_NOTE_SECONDS = 4  # less than aborts are delayed by
_OUTLIVE_SECONDS = 15
_BYE = b"bye\n"
_NOTES: list[Callable[[], str]] = []


class _Failure(NamedTuple):
    """The failure of the process with an index, sent over the connections.

    Args:
      reason: the error; empty if it was killed.
      patience: seconds in which the others may fail with the same error themselves.
    """

    process: int
    reason: str = ""
    patience: float = 0.0

    @classmethod
    def own(cls, error: BaseException, *, patience: float = 0.0) -> "_Failure":
        first_line = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:500]
        return cls(jax.process_index(), first_line, patience)

    @property
    def line(self) -> bytes:
        return json.dumps(self).encode() + b"\n"


@contextlib.contextmanager
def joined(
    group: Group | None, *, timeout: float = 300.0, preemptible: bool = True
) -> Iterator[None]:
    """Joins a group of processes while the context lasts; a single process does nothing.

    Enter it before JAX uses a device. If another process ends or fails inside the context, this
    process prints which one and why, and ends with code 1.

    Args:
      group: see `clusters.group`.
      timeout: seconds to wait for the other processes; if one is missing then, this process says
        so and ends with code 2, before the runtime would abort it.
      preemptible: whether SIGTERM ends training after the step; otherwise it ends this process at
        once, and with it the others.
    Raises: InputError process 0 cannot be reached.
    """
    if not 0 < timeout < math.inf:
        raise InputError(
            f"--coordinator_timeout={timeout:g}: must be seconds, above 0",
            field="coordinator_timeout",
        )
    if group is None or group.count == 1:
        yield
        return
    # With the service, SIGTERM no longer ends a process by itself.
    jax.config.update("jax_enable_preemption_service", preemptible)
    _initialize(group, timeout)
    if jax.process_count() == 1:
        yield
        return
    _NOTES.clear()
    lines = _Lines(group)
    try:
        yield
    except InputError as error:
        # Mostly of all processes: each prints it as if it were alone.
        lines.close(_Failure.own(error, patience=3.0).line)
        raise
    except (Exception, KeyboardInterrupt) as error:
        lines.wait_for_end()
        lines.close(_Failure.own(error).line)
        raise
    except BaseException:  # an end that all agreed on, such as after SIGTERM
        lines.close(_BYE)
        raise
    gather(None)  # no process leaves before the last one is done
    lines.close(_BYE)


@contextlib.contextmanager
def noted(note: Callable[[], str]) -> Iterator[None]:
    """Adds a line to the message of this process when it ends because of another one.

    `note` returns the line, such as what is saved, on a thread within a few seconds.
    """
    _NOTES.append(note)
    yield
    # After an exception it stays: a collective may fail before the connection is seen to break.
    _NOTES.remove(note)


def _initialize(group: Group, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    if group.address is not None and group.index:
        _wait_for(group.address, deadline, timeout)
    if group.address is not None and group.index == 0:
        _check_free(group.address)
    # JAX aborts the process when its own timeout is over: this one comes first.
    left = max(deadline - time.monotonic(), 1.0)
    timer = threading.Timer(left, _exit_incomplete, (group, timeout))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            group.address,
            group.count,
            group.index,
            initialization_timeout=int(left) + 60,
            shutdown_timeout_seconds=30,
        )
    finally:
        timer.cancel()
    if jax.process_index() != 0:
        _delay_aborts()


def _delay_aborts() -> None:
    """Lets this process print why it ends when the end of process 0 makes JAX abort it.

    JAX's client calls abort() within milliseconds of losing the coordination service, which runs in
    process 0. Neither of its hooks prevents that (jaxlib 0.10.2): `missed_heartbeat_callback`
    cannot be a Python function (its absl::Status converts to no Python object: std::bad_cast), and
    `jax_enable_recoverability` covers every process but that one. A Python signal handler runs too
    late. So the handler is C's `sleep`: its argument, SIGABRT's number 6, are the seconds.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _exit_incomplete(group: Group, timeout: float) -> None:
    at_address = f"at --coordinator_address={group.address} " if group.address else ""
    print(
        f"t5lite: the processes did not come together {at_address}within {timeout:g} s; start all "
        "of them, each with its own --process_id, and check that the port is open",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _wait_for(address: str, deadline: float, timeout: float) -> None:
    """Waits until process 0 listens: JAX would end this process without an error."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"--coordinator_address={address}: cannot be reached within {timeout:g} s "
                    f"({error.strerror or error}); is process 0 running there, and the port open?",
                    field="coordinator_address",
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
            f"({os.strerror(error.errno or 0)}); choose another one",
            field="coordinator_address",
        ) from error


class _Lines:
    """The connections between process 0 and the others; made by all processes together."""

    def __init__(self, group: Group):
        self._leaving = threading.Event()
        self._ending = threading.Lock()  # held by the thread that ends this process
        self._sockets = _connected(group)
        self._threads = [
            threading.Thread(target=self._listen, args=connection, daemon=True)
            for connection in self._sockets.items()
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_end(self) -> None:
        """Waits while another process's failure ends this one: collectives often fail of it."""
        time.sleep(1.0)
        self._ending.acquire(timeout=30.0)

    def close(self, word: bytes) -> None:
        """Tells the others how this process ends; process 0 outlives them if it failed."""
        self._leaving.set()
        self._tell(word)
        if word != _BYE:
            self._outlive()

    def _tell(self, word: bytes) -> None:
        for line in self._sockets.values():
            with contextlib.suppress(OSError):
                line.sendall(word)

    def _outlive(self) -> None:
        """Lets process 0 end last: JAX aborts the others once it is gone."""
        end = time.monotonic() + _OUTLIVE_SECONDS
        for thread in self._threads if jax.process_index() == 0 else ():
            thread.join(max(end - time.monotonic(), 0.0))

    def _listen(self, process: int, line: socket.socket) -> None:
        """Waits for the last message of a process, and then for its end."""
        with contextlib.suppress(OSError), line.makefile("rb") as stream:
            word = b""
            with contextlib.suppress(OSError):
                word = stream.readline()
            if word == _BYE:
                return
            failure = _Failure(*json.loads(word)) if word.endswith(b"\n") else _Failure(process)
            if not self._leaving.is_set() and self._ending.acquire(blocking=False):
                threading.Thread(target=self._end, args=(failure,), daemon=True).start()
            stream.read()

    def _end(self, failure: _Failure) -> None:
        """Ends this process, whose main thread may never return from a collective."""
        if jax.process_index() == 0:
            self._tell(failure.line)
        if not self._leaving.wait(failure.patience):
            _print_end(failure)
            self._outlive()
            os._exit(1)


def _connected(group: Group) -> dict[int, socket.socket]:
    """Returns process 0's connections to all others, or theirs to process 0, by process."""
    lines: dict[int, socket.socket] = {}
    if jax.process_index() == 0:
        with socket.create_server(("", 0)) as server:
            server.settimeout(_CONNECT_SECONDS)
            hosts = [group.address.rpartition(":")[0]] if group.address else []
            gather([[*hosts, _own_address(), socket.gethostname()], server.getsockname()[1]])
            with contextlib.suppress(TimeoutError):
                while len(lines) < jax.process_count() - 1:
                    line, _ = server.accept()
                    lines[int.from_bytes(line.recv(4), "big")] = line
    else:
        hosts, port = gather(None)[0]
        for host in dict.fromkeys(hosts):
            with contextlib.suppress(OSError):
                lines[0] = socket.create_connection((host, port), timeout=_CONNECT_SECONDS / 2)
                lines[0].sendall(jax.process_index().to_bytes(4, "big"))
                break
    for line in lines.values():
        _keep_alive(line)
        line.settimeout(None)
    return lines


def _print_end(failure: _Failure) -> None:
    notes: list[str] = []
    # A disk or a bucket may not answer, and must not delay the end.
    asking = threading.Thread(target=lambda: notes.extend(note() for note in _NOTES), daemon=True)
    asking.start()
    asking.join(_NOTE_SECONDS)
    why = failure.reason or "killed, preempted or out of memory, as its own output may say"
    lines = [
        f"t5lite: process {failure.process} of {jax.process_count()} is gone ({why}); "
        f"process {jax.process_index()} ends too",
        *notes,
        "to go on, start all processes again with the same command",
    ]
    print("\n  ".join(lines), file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def _keep_alive(line: socket.socket) -> None:
    """Lets a connection break within 30 seconds if the other host vanishes from the network."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _own_address() -> str:
    """Returns the address from which this host's packets leave; sends none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
