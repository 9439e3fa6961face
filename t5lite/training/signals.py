"""Signals that end a run once the step under way is saved: a scheduler's SIGTERM, and Ctrl-C."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_REPEATED_SECONDS = 0.5  # a launcher may pass on a Ctrl-C that its processes have had already


class Signals:
    """The signals received so far; `interrupted` is whether Ctrl-C was pressed on this process.

    Several processes end after the same step, whichever of them was signalled: JAX's preemption
    service, which listens for SIGTERM itself, agrees on a step in the background.
    """

    def __init__(self) -> None:
        self._terminated, self._at = threading.Event(), 0.0
        self.interrupted = False

    @property
    def exit_code(self) -> int:
        """The code of a process that was ended by the signal."""
        return 128 + (signal.SIGINT if self.interrupted else signal.SIGTERM)

    def end_run(self, step: int) -> bool:
        """Returns whether the run ends after this step; the same on every process."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._terminated.is_set()

    def terminate(self, *_: object) -> None:
        self._terminated.set()

    def interrupt(self, *_: object) -> None:
        """Handles SIGINT: ends the run after its step, and by KeyboardInterrupt the second time."""
        now = time.monotonic()
        if self.interrupted:
            if now - self._at > _REPEATED_SECONDS:
                raise KeyboardInterrupt
            return
        self.interrupted, self._at = True, now
        with contextlib.suppress(RuntimeError):  # it came while something was being printed
            print(
                "\ninterrupted: the step under way is finished and saved; Ctrl-C again leaves at "
                "once",
                file=sys.stderr,
                flush=True,
            )
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which the preemption service passes on
        else:
            self._terminated.set()


@contextlib.contextmanager
def catching_signals() -> Iterator[Signals]:
    """Handles SIGTERM and SIGINT while the context lasts, on the main thread."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    handlers = {signal.SIGINT: signals.interrupt}
    if jax.process_count() == 1:
        handlers[signal.SIGTERM] = signals.terminate
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Lets a second Ctrl-C end the process, with 130, also where no Python code runs.

    Python runs signal handlers between two bytecode instructions, which a compilation or a wait for
    a device may delay by minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="t5lite-interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()


def _watch(reader: socket.socket) -> None:
    """Ends the process at the second SIGINT that the interpreter writes to the socket."""
    first: float | None = None
    with reader:
        while number := reader.recv(1):
            if number[0] != signal.SIGINT:
                continue
            now = time.monotonic()
            if first is None:
                first = now
            elif now - first > _REPEATED_SECONDS:
                os.write(2, b"\nt5lite: interrupted\n")
                os._exit(128 + signal.SIGINT)
