"""Shards that processes prepare: rows and positions come back through pipes, in a fixed order.

Each process owns some of the shards and sends their rows of every batch, so that batches are the
same with any number of processes, or none. Processes are spawned: they inherit no thread, no device
and no lock, and end when the other end of their pipe is gone.
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
    """What a shard gives: rows, and a position that is valid JSON."""

    @property
    def epoch(self) -> float: ...

    # Perhaps also `vanished`, the raw examples of which the objective made nothing.

    def take(self, count: int) -> dict[str, np.ndarray]: ...

    def state(self) -> Any: ...

    def load(self, state: Any) -> None: ...


class Taken(NamedTuple):
    """Rows of a shard for one batch, and where the shard is after them."""

    rows: dict[str, np.ndarray]
    state: Any
    epoch: float
    vanished: int


def take(shard: Rows, count: int) -> Taken:
    """Takes rows from a shard."""
    rows = shard.take(count)
    return Taken(rows, shard.state(), shard.epoch, getattr(shard, "vanished", 0))


class Workers:
    """How many processes prepare shards, and how they open them.

    Args:
      count: > 0; no more than shards are started.
      open_shards: opens some shards in a process.

    Raises:
      InputError: if `open_shards` cannot be sent to a process.
    """

    def __init__(self, count: int, open_shards: Callable[[Sequence[int]], Mapping[int, Rows]]):
        self.count = count
        try:
            self.recipe = pickle.dumps(open_shards)
        except Exception as error:  # of whatever a user's own class raises
            raise InputError(
                f"workers = {count}: the data or the objective cannot be sent to another process: "
                f"{error}; define its classes and functions in a module, name tasks instead of "
                "passing them, or set workers = 0",
                field="Dataset.workers",
            ) from error


class WorkerPool:
    """Processes that prepare shards; an endless iterator over the rows of all shards, by batch.

    Args:
      workers: how many, and how they open shards.
      states: where each shard begins, by number, in the order in which rows are given.
      rows_per_shard: rows of a batch that come from one shard.
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

    def __iter__(self) -> Iterator[list[Taken]]:
        """Yields each batch's rows of all shards, in the order of the shards."""
        while True:
            taken: dict[int, Taken] = {}
            for number, owned in enumerate(self._owned):
                taken |= zip(owned, self._received(number), strict=True)
            yield [taken[shard] for shard in self._shards]

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for process in self._processes:
            process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join()
            pipe.close()

    def _received(self, number: int) -> list[Taken]:
        pipe, process = self._pipes[number], self._processes[number]
        try:
            while not pipe.poll(_POLL):
                if not process.is_alive() and not pipe.poll():
                    raise EOFError
            message = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            process.join(_POLL)
            raise RunError(
                f"data worker {number} ended with exit code {process.exitcode}: if the machine ran "
                "out of memory, set fewer workers or a smaller window"
            ) from error
        if isinstance(message, BaseException):
            raise message
        return message


def _work(pipe: Any, recipe: bytes, states: Mapping[int, Any], rows_per_shard: int) -> None:
    """Sends the rows of some shards for ever; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ["JAX_PLATFORMS"] = "cpu"  # accelerators are the main process's
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
            pickle.loads(content)  # some errors can be written, and not read
        return content
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(message).__name__}: {message}"))


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keeps Ctrl-C from a process that starts now, until it ignores it by itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
