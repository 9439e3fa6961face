"""Batches of one process: rows of its shards, made ahead by a thread, and their position."""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import queue
import reprlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.like_lengths import cut
from t5lite.data.streams.rows import concatenate
from t5lite.data.workers import Rows, Taken, WorkerPool, Workers, take
from t5lite.errors import InputError
from t5lite.rows import HostHalf, RowSpec, token_names

Batch = dict[str, np.ndarray]
_STATE_FORMAT = 3
# The formats of positions that can be loaded, and what their order means for the run.
_EARLIER_ORDERS = {
    1: "which had another order: the run goes on at the same epoch, and some examples of it come "
    "again or only in the next one",
    2: "which packed rows in another order: blocks of rows that were begun end as they were, later "
    "ones are packed tighter; no example is lost or repeated",
    _STATE_FORMAT: "",
}


class _Delivery(NamedTuple):
    """A batch, and where the data is after it."""

    batch: Batch
    shards: dict[str, Any]
    epoch: float
    vanished: int
    tokens: int
    places: int


class Batches:
    """An endless iterator over one process's part of the batches, made ahead by a thread.

    Args:
      shards: the rows of each virtual shard that this process makes, by number.
      rows_per_shard: rows of a batch that come from one shard.
      objective: gives rows the names that the model knows.
      specs: of the rows.
      fingerprint: JSON values that must be the same where a state is loaded.
      prefetch: batches made ahead, >= 1.
      cuts: whether rows lose columns that hold only padding, see `like_lengths`.
      period: batches in which rows of all lengths come.
      workers: processes that prepare the shards; None: this one does.
      threads: whether this process prepares shards in threads, see `Source.waits`.
      earlier: number of shards by default in 0.1.0, and what makes the same batches of them, for
        positions with that number.
    """

    def __init__(
        self,
        shards: Mapping[int, Rows],
        rows_per_shard: int,
        objective: HostHalf,
        *,
        fingerprint: Mapping[str, Any],
        specs: Mapping[str, RowSpec],
        prefetch: int = 2,
        cuts: bool = False,
        period: int = 1,
        workers: Workers | None = None,
        threads: bool = False,
        earlier: tuple[int, Callable[[], "Batches"]] | None = None,
    ):
        self._earlier, self._workers, self._threads = earlier, workers, threads
        self._cuts, self.period = cuts, period
        self._specs = dict(specs)
        self._shards, self._rows_per_shard = dict(shards), rows_per_shard
        self._objective, self._fingerprint = objective, dict(fingerprint)
        self._prefetch = prefetch
        self._last = self._here()
        self._thread: _Thread | None = None
        self._closed = False

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """Returns this process's rows of the next batch; raises what its making raised."""
        if self._closed:
            raise RuntimeError("these batches are closed")
        if self._thread is None:
            # The thread gets everything but this object, which can be collected while it runs.
            pool = None
            if self._workers is not None:
                states = {number: rows.state() for number, rows in self._shards.items()}
                pool = WorkerPool(self._workers, states, self._rows_per_shard)
            produced = _produce(
                pool or _taken(self._shards, self._rows_per_shard, threads=self._threads),
                tuple(self._shards),
                self._objective,
                self._specs,
                cuts=self._cuts,
            )
            self._thread = _Thread(produced, self._prefetch, stop=pool.close if pool else None)
            # Also at exit: a thread that is inside TensorFlow then can hang the process.
            weakref.finalize(self, self._thread.stop)
        delivery = self._thread.get()
        self._last = delivery._replace(batch={})
        return delivery.batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last batch that was delivered: small, valid JSON."""
        return {
            "format": _STATE_FORMAT,
            "data": dict(self._fingerprint),
            "shards": dict(self._last.shards),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Args:
          state: of this process, or `merge_states` of all, however many there were; of an earlier
            version too, after a warning if its order was another.

        Raises:
          InputError: if it belongs to other data, another seed or another number of shards.
        """
        if state.get("format") not in _EARLIER_ORDERS:
            raise InputError(
                f"cannot resume the data position: its format is {state.get('format')!r} and this "
                f"version reads {_STATE_FORMAT}; go on with the version that wrote it"
            )
        if self._earlier and state.get("data", {}).get("num_shards") == self._earlier[0]:
            self._stop()
            vars(self).update(vars(self._earlier[1]()))
        state = _upgraded(state)
        saved = dict(state.get("data", {}))
        saved.pop("rows", None)  # of earlier versions: objective and lengths decide them
        if changed := dict(_differences(saved, self._fingerprint)):
            more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
            fix = "set what changed to what it was"
            # By default, batch_size decides the shards, and they the window.
            if {"num_shards"} <= changed.keys() <= {"num_shards", "window"}:
                was = state["data"]["num_shards"]
                fix = f"batch sizes that are multiples of {was} resume with num_shards = {was}"
            raise InputError(
                "cannot resume the data position: "
                + ";\n  ".join([*changed.values()][:3])
                + f"{more}\n{fix}"
            )
        missing = [shard for shard in self._shards if str(shard) not in state["shards"]]
        if missing:
            raise InputError(
                f"cannot resume the data position: the state lacks shards {missing}; "
                "merge the states of all processes"
            )
        self._stop()
        for shard, rows in self._shards.items():
            rows.load(state["shards"][str(shard)])
        if note := _EARLIER_ORDERS[state["format"]]:
            warnings.warn(f"the data position is of an earlier version, {note}", stacklevel=2)
        self._last = self._here()

    def _here(self) -> _Delivery:
        """Returns where the data is, without a batch."""
        taken = [Taken({}, rows.state(), rows.epoch, 0) for rows in self._shards.values()]
        return _delivery({}, self._shards, taken, 0, 0)

    @property
    def shards(self) -> dict[int, Rows]:
        """The rows of each virtual shard."""
        return self._shards

    @property
    def epoch(self) -> float:
        """The passes over the data that all batches amount to, judged by this process's shards.

        A float is examples read by examples in all, those of all parts of a mixture together; an
        integer, where the examples are not counted, the passes that every shard has completed.
        """
        return self._last.epoch

    @property
    def vanished(self) -> int:
        """Examples read of which the objective made nothing, since the start or the last load.

        0 where it joins texts: one that gave no example of its own may be part of another's.
        """
        return 0 if getattr(self._objective, "joins_texts", False) else self._last.vanished

    @property
    def padding_share(self) -> float:
        """The share of places, in `[0, 1]`, that held no token since the start or the last load."""
        return 1 - self._last.tokens / max(self._last.places, 1)

    def keep_lengths(self) -> None:
        """Leaves all rows at their full length; to be called before the first batch."""
        self._cuts = False

    def close(self) -> None:
        """Ends the thread. The state can still be read."""
        self._stop()
        self._closed = True

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


def _upgraded(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a position whose blocks of rows are as they were packed by the version of then."""
    if state["format"] == _STATE_FORMAT:
        return state
    data, shards = dict(state["data"]), state["shards"]
    block_rows = data.pop("block_rows", 0)
    if state["format"] == 2 and block_rows:
        if not data["pack"]:  # rows are as they were; blocks ordered by length had 64 and more
            data["like_lengths"] = block_rows >= 64
            return {**state, "data": data, "format": _STATE_FORMAT}
        shards = {shard: {**rows, "first_fit": block_rows} for shard, rows in shards.items()}
    return {**state, "data": data, "shards": shards}


def _differences(saved: Any, mine: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields the name of each value that a saved position was made with and that has changed, told.

    A whole entry that the version that saved it did not know yet is not compared, nor is a flag
    that is off.
    """
    if isinstance(saved, Mapping) and isinstance(mine, Mapping):
        for key in {**saved, **mine} if name else saved:
            if key not in saved and mine[key] is False:
                continue  # a flag that came later, and is off
            inner = f"{name}.{key}" if name else key
            yield from _differences(saved.get(key), mine.get(key), inner)
    elif isinstance(saved, list) and isinstance(mine, list | tuple) and len(saved) == len(mine):
        for number, pair in enumerate(zip(saved, mine, strict=True)):
            yield from _differences(*pair, f"{name}[{number}]")
    elif json.loads(json.dumps(mine)) != saved:
        was, now = (reprlib.repr(value) for value in (saved, mine))
        yield name, f"`{name}` was {was} in the checkpoint and is {now} now"


def joint_state(mine: Mapping[str, Any], gather: Callable[[Any], Sequence[Any]]) -> dict[str, Any]:
    """Returns `merge_states` of all processes' states, of which a digest says that they agree.

    Args:
      mine: this process's `Batches.state_dict`.
      gather: returns every process's value, on all of them.
    """
    text = json.dumps(mine["data"], sort_keys=True).encode()
    states = gather({**mine, "data": hashlib.sha256(text).hexdigest()})
    return {**merge_states(states), "data": mine["data"]}


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the `Batches.state_dict`s of all processes into one that any of them can load.

    Raises:
      InputError: if they do not belong together, or processes that read the same shard differ.
    """
    first, *others = states
    merged = {**first, "shards": dict(first["shards"])}
    for other in others:
        if any(other[key] != merged[key] for key in ("format", "data")):
            raise InputError("the processes' data states do not belong to the same data")
        for shard, position in other["shards"].items():
            if merged["shards"].setdefault(shard, position) != position:
                raise InputError(
                    f"the processes that read shard {shard} of the data are not at the same place "
                    "in it: do all of them read the same files?"
                )
    return merged


class _Thread:
    """Runs an iterator in a daemon thread, some items ahead."""

    def __init__(
        self, items: Iterator[_Delivery], ahead: int, *, stop: Callable[[], None] | None = None
    ):
        self._stop_items = stop
        self._queue: queue.Queue[_Delivery | Exception] = queue.Queue(maxsize=ahead)
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, args=(items,), name="t5lite-batches", daemon=True
        )
        self._thread.start()

    def get(self) -> _Delivery:
        """Returns the next item; raises what the iterator raised, again and again."""
        if self._failure is None:
            item = self._queue.get()
            if not isinstance(item, Exception):
                return item
            self._failure = item
        raise self._failure

    def stop(self) -> None:
        """Ends the thread as soon as the item that it is making is done."""
        self._stopping.set()
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()  # it may be waiting for room
        if self._stop_items is not None:
            self._stop_items()
        if threading.current_thread() is not self._thread:  # the collector can run anywhere
            self._thread.join()

    def _run(self, items: Iterator[_Delivery]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(RuntimeError("the training data ended; its rows must go on for ever"))
        except Exception as error:
            self._put(error)
        except BaseException as error:  # user code that calls sys.exit, say
            failure = RuntimeError(f"the thread that reads the data ended with {error!r}")
            failure.__cause__ = error
            self._put(failure)

    def _put(self, item: _Delivery | Exception) -> bool:
        """Waits for room; returns False if it is time to stop."""
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return not self._stopping.is_set()
        return False


def _taken(
    shards: Mapping[int, Rows], rows_per_shard: int, *, threads: bool
) -> Iterator[list[Taken]]:
    """Yields each batch's rows of all shards."""
    if not threads:  # they would only compete for Python's lock
        while True:
            yield [take(shard, rows_per_shard) for shard in shards.values()]
    num_threads = min(len(shards), 4 * (os.cpu_count() or 1))
    with concurrent.futures.ThreadPoolExecutor(num_threads, "t5lite-shards") as executor:
        while True:
            yield list(executor.map(lambda shard: take(shard, rows_per_shard), shards.values()))


def _produce(
    batches: Iterable[list[Taken]],
    shards: Sequence[int],
    objective: HostHalf,
    specs: Mapping[str, RowSpec],
    *,
    cuts: bool,
) -> Iterator[_Delivery]:
    tokens = places = 0
    names = token_names(specs)
    for taken in batches:
        rows = concatenate([each.rows for each in taken])
        rows = cut(rows, specs) if cuts else rows
        for name in names:
            segments = rows[f"{name}_segment_ids"]
            tokens += int(np.count_nonzero(segments))
            places += segments.size
        yield _delivery(objective.batch(rows), shards, taken, tokens, places)


def _delivery(
    batch: Batch, shards: Iterable[int], taken: Sequence[Taken], tokens: int, places: int
) -> _Delivery:
    states = {str(shard): each.state for shard, each in zip(shards, taken, strict=True)}
    vanished = sum(each.vanished for each in taken)
    return _Delivery(batch, states, mean_epoch(taken), vanished, tokens, places)


def mean_epoch(shards: Iterable[Rows | Taken]) -> float:
    """Returns the epoch of some shards together; see `Batches.epoch`."""
    epochs = [each.epoch for each in shards]
    if all(isinstance(epoch, float) for epoch in epochs):
        return math.fsum(epochs) / len(epochs)
    return min(int(epoch) for epoch in epochs)
