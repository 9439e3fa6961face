"""Reads, averages and writes the metrics of finished steps; saves batches of bad losses."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from t5lite.errors import RunError
from t5lite.reporting.progress import Progress
from t5lite.reporting.rates import Meter, Rates
from t5lite.training.callbacks import Run
from t5lite.training.duration import Position
from t5lite.training.update import Update


class NonFiniteLoss(RunError):
    """A loss or gradient was NaN or infinite: once, or in every one of `Update.max_skips` steps."""


class Dispatched(NamedTuple):
    """A step that may still be under way, from 1; `metrics` are those of `train_step`.

    Args:
      rows: this host's rows of the batch.
      num_positions: token positions in the global batch.
      epoch: of the data after the batch.
    """

    step: int
    metrics: dict[str, Any]
    rows: Mapping[str, Any]
    num_positions: int
    epoch: float | None


@dataclasses.dataclass
class Ledger:
    """Reads, averages and writes the metrics of every step, once the next one is dispatched.

    Nothing else waits for a device between two dispatches, and nothing is computed on one here.

    Args:
      run: gives the writers.
      update: what a NaN does, and how many skipped updates in a row end the run.
      flops: per token position, for display; batches may be cut to shorter rows.
      log_every: steps between two lines of metrics.
    """

    run: Run
    meter: Meter
    progress: Progress
    update: Update = Update()
    flops: float = 0.0
    log_every: int = 10

    def __post_init__(self) -> None:
        self.tokens = 0
        self._num_skipped = self._skips_in_a_row = 0
        self._sums: dict[str, tuple[float, float]] = {}
        self._facts: dict[str, float] = {}
        self._position, self._unwritten = Position(), False
        self._pending: Dispatched | None = None

    @property
    def most_tokens(self) -> int:
        """Upper bound of `tokens` once the step under way is read."""
        return self.tokens + (self._pending.num_positions if self._pending else 0)

    def begin(self, step: int, epoch: float | None) -> None:
        """Shows the start of the run."""
        self._position = Position(step, self.tokens, epoch)
        self.progress.begin(self._position)

    def push(self, dispatched: Dispatched) -> None:
        """Takes the step just dispatched, and reads the one before.

        Raises:
          NonFiniteLoss: the read step's loss or gradient was not finite, unless those are skipped.
        """
        pending, self._pending = self._pending, dispatched
        if pending is not None:
            self._read(pending)

    def flush(self, *, last: bool = False) -> None:
        """Waits for the step under way and reads it, see `push`; after the last writes the rest."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(pending)
        if last and self._unwritten:
            self.progress.update(self._position, rates=self._write())

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts and sums to resume from, valid JSON."""
        return {
            "tokens": self.tokens,
            "num_skipped": self._num_skipped,
            "skips_in_a_row": self._skips_in_a_row,
            "sums": self._sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tokens, self._num_skipped = state["tokens"], state["num_skipped"]
        self._skips_in_a_row = state.get("skips_in_a_row", 0)  # older checkpoints have none
        self._sums = {name: (total, weight) for name, (total, weight) in state["sums"].items()}

    def _read(self, dispatched: Dispatched) -> None:
        step = dispatched.step
        metrics = jax.device_get(dispatched.metrics)
        sums = {name: (float(s), float(w)) for name, (s, w) in metrics["sums"].items()}
        for name in ("loss", "gradient_norm", "parameter_norm"):
            # The objective's own `loss`, without regularising terms, is the one people compare.
            sums[name if name not in sums else "total_loss"] = (float(metrics[name]), 1.0)
        if metrics["applied"]:
            self._skips_in_a_row = 0
            for name, (total, weight) in sums.items():
                old = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (old[0] + total, old[1] + weight)
        else:
            self._num_skipped += 1
            self._skips_in_a_row += 1
            self._explain(dispatched, metrics)
            self._check_skips(step, metrics)
        self.tokens += int(metrics["tokens"])
        flops = self.flops * dispatched.num_positions
        self.meter.step(tokens=int(metrics["tokens"]), flops=flops)
        self._position, self._unwritten = Position(step, self.tokens, dispatched.epoch), True
        self._facts = self._facts_now(metrics)
        rates = self._write() if step % self.log_every == 0 else None
        self.progress.update(self._position, metrics=_means(sums) | self._facts, rates=rates)

    def _facts_now(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics that are not averaged over steps."""
        _, tokens, epoch = self._position
        facts = {"tokens": float(tokens)}
        if epoch is not None:
            facts["epoch"] = float(epoch)
        for name in ("learning_rate", "loss_scale", "update_scale"):
            if name in metrics:
                facts[name] = float(metrics[name])
        if facts.get("update_scale") == 1.0:  # until a callback lowers it
            del facts["update_scale"]
        if self._num_skipped:
            facts["skipped_updates"] = float(self._num_skipped)
        return facts

    def _write(self) -> Rates:
        """Writes a line: means since the last one, latest values and rates."""
        rates = self.meter.read()
        line = _means(self._sums) | self._facts | rates.metrics()
        self.run.writers.write(
            self._position.step, {f"train/{name}": value for name, value in line.items()}
        )
        self._sums, self._unwritten = {}, False
        return rates

    def _explain(self, dispatched: Dispatched, metrics: Mapping[str, Any]) -> None:
        """Reports a skipped update and keeps its batch, unless only the loss scale fell."""
        loss, step = float(metrics["loss"]), dispatched.step
        if metrics["spike"]:
            cause = f"the loss {loss:.3f} is a spike, far above those before it"
        elif not metrics["finite"]:
            cause = f"loss {loss} or its gradient is not finite"
        else:
            return
        message = f"step {step}: {cause}; the batch is in {self._keep(dispatched)}"
        if self.update.on_nan == "stop" and not metrics["finite"]:
            raise NonFiniteLoss(
                f"{message}\nthe update was not applied; earlier checkpoints stand\n"
                "lower the learning rate or clip gradients (Update.clip_norm), and run again to "
                "resume; Update.on_nan = 'skip' leaves such updates out"
            )
        self.run.say(f"{message}; the update was skipped")

    def _check_skips(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Ends a run that no longer learns; its parameters are those of the last update."""
        if self._skips_in_a_row < self.update.max_skips:
            return
        scale = f", loss scale {float(metrics['loss_scale']):g}" if "loss_scale" in metrics else ""
        raise NonFiniteLoss(
            f"step {step}: the last {self._skips_in_a_row} updates were all skipped "
            f"(loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient_norm'])}"
            f"{scale})\nno skipped update reached the parameters, so every checkpoint stands\n"
            "lower the learning rate, clip gradients (Update.clip_norm) or train in bfloat16; "
            f"Update.max_skips = {self.update.max_skips} is the limit"
        )

    def _keep(self, dispatched: Dispatched) -> epath.Path:
        folder = epath.Path(self.run.model_dir) / "bad_batches"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step_{dispatched.step}_process_{jax.process_index()}.npz"
        with path.open("wb") as file:
            np.savez(file, **dispatched.rows)
        return path


def _means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: total / weight if weight else math.nan for name, (total, weight) in sums.items()}
