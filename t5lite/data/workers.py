"""Worker processes that prepare shards, and send rows and positions through pipes.

Each process owns some of the shards and sends their rows of every batch, so that batches are the
same with any number of processes, or none. Processes are spawned: they inherit no thread, device
or lock, import the main script (which must train under `if __name__ == "__main__":`), and end when
the other end of their pipe closes.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from t5lite.errors import InputError, RunError

_POLL = 0.2  # seconds between looks at whether a worker lives


class Rows(Protocol):
    """Rows of a shard, and its position, which is valid JSON; `vanished` is optional."""

    @property
    def epoch(self) -> float: ...

    def take(self, count: int) -> dict[str, np.ndarray]: ...

    def state(self) -> Any: ...

    def load(self, state: Any) -> None: ...


class Delivery(NamedTuple):
    """Rows of a shard for one batch, and its position after them."""

    rows: dict[str, np.ndarray]
    state: Any
    epoch: float
    vanished: int


def take(shard: Rows, count: int) -> Delivery:
    rows = shard.take(count)
    return Delivery(rows, shard.state(), shard.epoch, getattr(shard, "vanished", 0))


class Workers:
    """Number of worker processes, at most one for each shard, and the function that opens shards.

    Raises: InputError if `open_shards`, which opens shards by number, cannot be pickled.
    """

    def __init__(self, count: int, open_shards: Callable[[Sequence[int]], Mapping[int, Rows]]):
        self.count = count
        try:
            self.recipe = pickle.dumps(open_shards)
        except Exception as error:  # a user's class may raise anything
            raise InputError(
                f"workers = {count}: the data or the objective cannot be sent to another process: "
                f"{error}; define its classes and functions in a module, name tasks instead of "
                "passing them, or set workers = 0",
                field="Dataset.workers",
            ) from error


class WorkerPool:
    """Running workers; an endless iterator over the rows of all shards, by batch.

    `states` are the first positions by shard, in the order of a batch's rows.
    """

    def __init__(self, workers: Workers, states: Mapping[int, Any], rows_per_shard: int):
        self._shards = list(states)
        count = min(workers.count, len(self._shards))
        self._owned = [self._shards[first::count] for first in range(count)]
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("spawn")
        for number, owned in enumerate(self._owned):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work,
                args=(theirs, workers.recipe, {n: states[n] for n in owned}, rows_per_shard),
                name=f"t5lite-data-{number}",
                daemon=True,
            )
            with _interrupts_blocked():
                process.start()
            theirs.close()  # so that the pipe ends with the process
            self._pipes.append(mine)
            self._processes.append(process)

    def __iter__(self) -> Iterator[list[Delivery]]:
        while True:
            deliveries: dict[int, Delivery] = {}
            for number, owned in enumerate(self._owned):
                deliveries |= zip(owned, self._received(number), strict=True)
            yield [deliveries[shard] for shard in self._shards]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join()
            pipe.close()

    def _received(self, number: int) -> list[Delivery]:
        pipe, process = self._pipes[number], self._processes[number]
        try:
            while not pipe.poll(_POLL):
                if not process.is_alive() and not pipe.poll():
                    raise EOFError
            message = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            process.join(_POLL)
            raise RunError(
                f"data worker {number} ended with exit code {process.exitcode}: {_reason(process)}"
            ) from error
        if isinstance(message, BaseException):
            raise message
        return message


def _reason(process: Any) -> str:
    """Returns the likely reason why a worker ended, and the fix."""
    if (process.exitcode or -1) < 0:  # by a signal
        return "if the machine ran out of memory, set fewer workers or a smaller window"
    return (
        "its error is above; workers import the script that starts them, which must train under "
        '`if __name__ == "__main__":`'
    )


def _work(pipe: Any, recipe: bytes, states: Mapping[int, Any], rows_per_shard: int) -> None:
    """Sends the rows of some shards endlessly; the main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ["JAX_PLATFORMS"] = "cpu"  # accelerators belong to the main process
    if "jax" in sys.modules:  # imported by a user's main module
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    # The reader is gone if the pipe breaks, also while it was being killed.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            shards = pickle.loads(recipe)(list(states))
            for number, state in states.items():
                shards[number].load(state)
            while True:
                pipe.send_bytes(_pickled([take(shards[n], rows_per_shard) for n in states]))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            pipe.send_bytes(_pickled(error))
        except BaseException as error:  # user code that calls sys.exit, say
            failure = RuntimeError(f"the process that reads the data ended with {error!r}")
            pipe.send_bytes(_pickled(failure))


def _pickled(message: Any) -> bytes:
    try:
        content = pickle.dumps(message, protocol=5)
        if isinstance(message, BaseException):
            pickle.loads(content)  # some errors pickle, but do not unpickle
        return content
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(message).__name__}: {message}"))


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in a process that starts now, until the process ignores it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
