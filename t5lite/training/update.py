"""How gradients become an update, whatever the optimizer: the settings of a step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.training.guards import LossScale, spike_start


@dataclasses.dataclass(frozen=True)
class Update:
    """How gradients become an update, whatever the optimizer.

    Args:
      num_microbatches: parts of the batch computed one after the other; the sum of their gradients
        is exactly the whole batch's.
      clip_norm: largest global norm of the gradient; None for no clipping.
      ema_decay: of an average of the parameters, in (0, 1), used for evaluation; None for none.
      on_nan: what a NaN or infinite loss or gradient does: `stop` the run or `skip` the update. In
        both cases it never reaches the parameters.
      max_skips: updates skipped in a row, for whatever reason, that end the run, at least 1. A loss
        scale skips some while it falls. The count goes on over restarts.
      spike_threshold: standard deviations above the running mean of the loss, above 0, from which
        an update is skipped and its batch saved; None for never.
      spike_decay: of that mean and deviation, in (0, 1): 0.99 remembers about 100 steps.
      spike_warmup_steps: updates before any loss is called a spike, at least 2.
      loss_scale: of the loss, as float16 needs it; None for none.

    Raises:
      InputError: if a field is out of range.
    """

    num_microbatches: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    on_nan: str = "stop"
    max_skips: int = 100
    spike_threshold: float | None = None
    spike_decay: float = 0.99
    spike_warmup_steps: int = 100
    loss_scale: LossScale | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_microbatches, int) or self.num_microbatches < 1:
            raise InputError(
                f"Update.num_microbatches = {self.num_microbatches!r}: at least 1",
                field="Update.num_microbatches",
            )
        for name in ("clip_norm", "spike_threshold"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(
                    f"Update.{name} = {value!r}: must be above 0", field=f"Update.{name}"
                )
        for name in ("ema_decay", "spike_decay"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(
                    f"Update.{name} = {value!r}: must be in (0, 1)", field=f"Update.{name}"
                )
        if self.on_nan not in ("stop", "skip"):
            raise InputError(
                f"Update.on_nan = {self.on_nan!r}: must be 'stop' or 'skip'", field="Update.on_nan"
            )
        if not isinstance(self.max_skips, int) or self.max_skips < 1:
            raise InputError(
                f"Update.max_skips = {self.max_skips!r}: at least 1", field="Update.max_skips"
            )
        if not isinstance(self.spike_warmup_steps, int) or self.spike_warmup_steps < 2:
            raise InputError(
                f"Update.spike_warmup_steps = {self.spike_warmup_steps!r}: at least 2",
                field="Update.spike_warmup_steps",
            )
        if self.loss_scale is not None and not isinstance(self.loss_scale, LossScale):
            raise InputError(
                f"Update.loss_scale = {self.loss_scale!r}: must be a LossScale",
                field="Update.loss_scale",
            )

    def extra(self, params: Any) -> dict[str, Any]:
        """Returns `TrainState.extra` before the first step, of these trained parameters."""
        extra: dict[str, Any] = {"update_scale": jnp.float32(1)}
        if self.ema_decay is not None:
            extra["ema"] = jax.tree.map(jnp.copy, params)  # a copy, because both are donated
        if self.spike_threshold is not None:
            extra["spike"] = spike_start()
        if self.loss_scale is not None:
            extra["loss_scale"] = self.loss_scale.start()
        return extra
