"""Batches of one process, prefetched by a thread, and their position in the data."""

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
from t5lite.data.workers import Delivery, Rows, WorkerPool, Workers, take
from t5lite.errors import InputError
from t5lite.rows import HostHalf, RowSpec, token_names

Batch = dict[str, np.ndarray]
_STATE_FORMAT = 3
# Positions that can be loaded, by format: how their order differed.
_EARLIER_ORDERS = {
    1: "whose order was another: the run goes on at the same epoch, some examples of which it may "
    "repeat or skip",
    2: "which packed rows in another order: blocks of rows that were begun end as they were, later "
    "ones are packed tighter; no example is lost or repeated",
    _STATE_FORMAT: "",
}


class _Position(NamedTuple):
    """The position after a batch; tokens and slots were counted since the start."""

    shards: dict[str, Any]
    epoch: float
    vanished: int
    tokens: int = 0
    slots: int = 0

    @classmethod
    def of(cls, shards: Iterable[int], deliveries: Sequence[Delivery], *counts: int) -> "_Position":
        states = {str(n): delivery.state for n, delivery in zip(shards, deliveries, strict=True)}
        vanished = sum(delivery.vanished for delivery in deliveries)
        return cls(states, mean_epoch(deliveries), vanished, *counts)


_Item = tuple[Batch, _Position]


class Batches:
    """An endless iterator over one process's rows of the batches, prefetched by a thread.

    Args:
      shards: the rows of each virtual shard of this process, by number.
      rows_per_shard: rows of a batch that come from one shard.
      objective: names the batch's arrays.
      fingerprint: JSON values that must be the same when a state is loaded.
      prefetch: batches made ahead, >= 1.
      cuts: whether rows lose columns that hold only padding, see `like_lengths`.
      period: batches within which rows of all lengths come.
      workers: processes that prepare the shards; None: this one does.
      threads: whether this process prepares shards in threads, see `Source.waits`.
      earlier: the default number of shards in 0.1.0, and a function that opens the same data with
        it, for positions with that number.
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
        self._position = self._start()
        self._thread: _Thread | None = None
        self._closed = False

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise RuntimeError("these batches are closed")
        if self._thread is None:
            # The thread holds no reference to this object, which can be collected meanwhile.
            pool = None
            if self._workers is not None:
                states = {number: rows.state() for number, rows in self._shards.items()}
                pool = WorkerPool(self._workers, states, self._rows_per_shard)
            produced = _produce(
                pool or _prepared(self._shards, self._rows_per_shard, threads=self._threads),
                tuple(self._shards),
                self._objective,
                self._specs,
                cuts=self._cuts,
            )
            self._thread = _Thread(produced, self._prefetch, stop=pool.close if pool else None)
            # Also at exit: a thread that is inside TensorFlow then can hang the process.
            weakref.finalize(self, self._thread.stop)
        batch, self._position = self._thread.get()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last batch that was delivered: small, valid JSON."""
        shards = dict(self._position.shards)
        return {"format": _STATE_FORMAT, "data": dict(self._fingerprint), "shards": shards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues at the position of a `state_dict`.

        Args:
          state: of this process, or `merge_states` of any number of processes; of an earlier
            version too, with a warning if its order was another.
        Raises: InputError if its data, seed or number of shards differ.
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
        saved.pop("rows", None)  # of earlier versions; follows from objective and lengths
        if changed := dict(_differences(saved, self._fingerprint)):
            more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
            fix = "restore the earlier values"
            # By default, batch_size decides num_shards, and num_shards the window.
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
        self._position = self._start()

    def _start(self) -> _Position:
        rows = self._shards.values()
        return _Position.of(self._shards, [Delivery({}, r.state(), r.epoch, 0) for r in rows])

    @property
    def shards(self) -> dict[int, Rows]:
        """The rows of each virtual shard."""
        return self._shards

    @property
    def epoch(self) -> float:
        """Epochs of all batches so far, estimated from this process's shards.

        A float is the fraction of all examples read, of all parts of a mixture together. An
        integer, where examples are not counted, is the number of passes that all shards completed.
        """
        return self._position.epoch

    @property
    def vanished(self) -> int:
        """Examples read that the objective dropped, since the start or the last load.

        0 where it joins texts, since a text without an example may be part of the next.
        """
        return 0 if getattr(self._objective, "joins_texts", False) else self._position.vanished

    @property
    def padding_share(self) -> float:
        """Fraction of positions, in `[0, 1]`, without a token since the start or the last load."""
        return 1 - self._position.tokens / max(self._position.slots, 1)

    def keep_lengths(self) -> None:
        """Keeps all rows at their full length; call it before the first batch."""
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
    """Returns a position in the present format, with blocks as the earlier version packed them."""
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
    """Yields the name of each changed value of a saved fingerprint, and a sentence about it.

    Entries that the saving version lacked are not compared, nor are later flags that are off.
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
    """Returns `merge_states` of all processes, which exchange digests of their fingerprints.

    Args:
      mine: this process's `Batches.state_dict`.
      gather: returns every process's value, on all processes.
    """
    if "shards" not in mine:  # a user's own batches
        if any(state != mine for state in gather(mine)):
            raise InputError(
                "the processes' data states differ: `state_dict` of batches of your own must be "
                "the same on all processes, or have `shards` as that of `data.Batches`"
            )
        return dict(mine)
    text = json.dumps(mine["data"], sort_keys=True).encode()
    states = gather({**mine, "data": hashlib.sha256(text).hexdigest()})
    return {**merge_states(states), "data": mine["data"]}


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the `Batches.state_dict`s of all processes into one that any of them can load.

    Raises: InputError if their data differ, or the positions of a shard that several read.
    """
    first, *rest = states
    merged = {**first, "shards": dict(first["shards"])}
    for state in rest:
        if any(state[key] != merged[key] for key in ("format", "data")):
            raise InputError("the processes' data states do not belong to the same data")
        for shard, position in state["shards"].items():
            if merged["shards"].setdefault(shard, position) != position:
                raise InputError(
                    f"the processes that read shard {shard} of the data differ in their position: "
                    "do all of them read the same files?"
                )
    return merged


class _Thread:
    """Runs an iterator in a daemon thread, some items ahead."""

    def __init__(
        self, items: Iterator[_Item], ahead: int, *, stop: Callable[[], None] | None = None
    ):
        self._stop_items = stop
        self._queue: queue.Queue[_Item | Exception] = queue.Queue(maxsize=ahead)
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, args=(items,), name="t5lite-batches", daemon=True
        )
        self._thread.start()

    def get(self) -> _Item:
        """Returns the next item; raises the iterator's error, each time."""
        if self._failure is None:
            item = self._queue.get()
            if not isinstance(item, Exception):
                return item
            self._failure = item
        raise self._failure

    def stop(self) -> None:
        self._stopping.set()
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()  # it may be waiting for room
        if self._stop_items is not None:
            self._stop_items()
        if threading.current_thread() is not self._thread:  # the collector can run anywhere
            self._thread.join()

    def _run(self, items: Iterator[_Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(RuntimeError("the training data ended; its rows must be endless"))
        except Exception as error:
            self._put(error)
        except BaseException as error:  # such as sys.exit in user code
            failure = RuntimeError(f"the thread that reads the data ended with {error!r}")
            failure.__cause__ = error
            self._put(failure)

    def _put(self, item: _Item | Exception) -> bool:
        """Waits for room; returns False after `stop`."""
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return not self._stopping.is_set()
        return False


def _prepared(
    shards: Mapping[int, Rows], rows_per_shard: int, *, threads: bool
) -> Iterator[list[Delivery]]:
    if not threads:  # they would only compete for Python's lock
        while True:
            yield [take(shard, rows_per_shard) for shard in shards.values()]
    num_threads = min(len(shards), 4 * (os.cpu_count() or 1))
    with concurrent.futures.ThreadPoolExecutor(num_threads, "t5lite-shards") as executor:
        while True:
            yield list(executor.map(lambda shard: take(shard, rows_per_shard), shards.values()))


def _produce(
    batches: Iterable[list[Delivery]],
    shards: Sequence[int],
    objective: HostHalf,
    specs: Mapping[str, RowSpec],
    *,
    cuts: bool,
) -> Iterator[_Item]:
    tokens = slots = 0
    for deliveries in batches:
        rows = concatenate([delivery.rows for delivery in deliveries])
        rows = cut(rows, specs) if cuts else rows
        for name in token_names(specs):
            segments = rows[f"{name}_segment_ids"]
            tokens += int(np.count_nonzero(segments))
            slots += segments.size
        yield objective.batch(rows), _Position.of(shards, deliveries, tokens, slots)


def mean_epoch(shards: Iterable[Rows | Delivery]) -> float:
    """Returns the epoch of several shards; see `Batches.epoch`."""
    epochs = [shard.epoch for shard in shards]
    if all(isinstance(epoch, float) for epoch in epochs):
        return math.fsum(epochs) / len(epochs)
    return min(int(epoch) for epoch in epochs)
