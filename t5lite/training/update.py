"""Settings of a step: microbatches, clipping, averaging and guards."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5lite.errors import InputError, check_fields
from t5lite.training.guards import LossScale, after_loss, is_spike, spike_start


class Verdict(NamedTuple):
    """The verdict on a step's gradients; bool scalars.

    Args:
      applied: whether the update is applied; otherwise only `step` and the guards change.
      finite: False if loss or gradient is NaN or infinite, unless the loss scale was too high,
        which its guard corrects.
      spike: whether the loss is finite and far above earlier ones.
    """

    applied: jax.Array
    finite: jax.Array
    spike: jax.Array


@dataclasses.dataclass(frozen=True)
class Update:
    """Settings of a step, independent of the optimizer.

    Args:
      num_microbatches: parts of the batch computed one after the other; their gradients add up
        exactly to the whole batch's.
      clip_norm: largest global norm of the gradient; None for no clipping.
      ema_decay: of an average of the parameters, in (0, 1), used for evaluation; None for none.
      on_nan: what a NaN or infinite loss or gradient does: `stop` the run or `skip` the update. In
        both cases it never reaches the parameters.
      max_skips: skipped updates in a row, for whatever reason, that end the run, at least 1. A loss
        scale skips some while it falls. The count goes on over restarts.
      spike_threshold: standard deviations above the running mean of the loss, above 0, from which
        an update is skipped and its batch saved; None for never.
      spike_decay: of that mean and deviation, in (0, 1): 0.99 remembers about 100 steps.
      spike_warmup_steps: updates before any loss counts as a spike, at least 2.
      loss_scale: of the loss, as float16 needs it; None for none.
    Raises: InputError if a field is out of range.
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
        check_fields(
            self,
            num_microbatches="integer in [1, inf)",
            clip_norm="number in (0, inf) or None",
            ema_decay="number in (0, 1) or None",
            on_nan=("stop", "skip"),
            max_skips="integer in [1, inf)",
            spike_threshold="number in (0, inf) or None",
            spike_decay="number in (0, 1)",
            spike_warmup_steps="integer in [2, inf)",
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

    def average(self, state: Any, params: Any) -> dict[str, Any]:
        """Returns `state.extra` with its average of the parameters, if any, one update further."""
        if self.ema_decay is None:
            return dict(state.extra)
        ema = optax.incremental_update(params, state.extra["ema"], 1 - self.ema_decay)
        return state.extra | {"ema": ema}

    def clip(self, gradients: Any, norm: jax.Array) -> Any:
        """Returns gradients of at most `clip_norm`; `norm` is their global norm, float32 scalar."""
        if self.clip_norm is None:
            return gradients
        factor = jnp.minimum(1.0, self.clip_norm / jnp.maximum(norm, 1e-12))
        return jax.tree.map(lambda g: g * factor, gradients)

    def judge(
        self, extra: Any, loss: jax.Array, gradient_norm: jax.Array
    ) -> tuple[Verdict, dict[str, Any]]:
        """Returns the verdict on a step, and the guards' part of `extra` after it."""
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        failed, spike, guards = ~finite, jnp.bool_(False), {}
        if self.spike_threshold is not None:
            spike = finite & is_spike(
                extra["spike"],
                loss,
                threshold=self.spike_threshold,
                warmup_steps=self.spike_warmup_steps,
            )
            guards["spike"] = after_loss(
                extra["spike"], loss, finite=finite, spike=spike, decay=self.spike_decay
            )
        if self.loss_scale is not None:
            failed &= extra["loss_scale"]["scale"] <= self.loss_scale.minimum
            guards["loss_scale"] = self.loss_scale.after(extra["loss_scale"], finite)
        return Verdict(applied=finite & ~spike, finite=~failed, spike=spike), guards
