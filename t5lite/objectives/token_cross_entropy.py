"""The loss of objectives that predict tokens."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t5lite.errors import unknown
from t5lite.objectives.base import (
    NOTHING,
    Batch,
    Model,
    Objective,
    Terms,
    check_number,
    expert_terms,
)
from t5lite.objectives.losses import (
    LOSS_NORMALIZING_FACTORS,
    chunked_cross_entropy,
    normalized_weights,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCrossEntropy(Objective):
    """Device half of objectives that predict `{side}_target_tokens`, by cross entropy.

    Targets have the positions of the inputs, or those of the batch's `{side}_target_positions`:
    then the logits of other positions are not computed.

    Class attributes:
      side: the stack whose output predicts tokens, `decoder` or `encoder`.

    Attributes:
      label_smoothing: probability in `[0, 1)` taken from the target and given to all others.
      z_loss: coefficient, >= 0, of the squared log of the softmax's normaliser.
      loss_normalizing_factor: divisor of the loss: None (the number of target tokens), a number
        > 0, or one of `LOSS_NORMALIZING_FACTORS`; see `losses.normalized_weights`.
      chunk_length: positions whose logits are in memory at once; None: all of them.
    """

    head: ClassVar[str] = "lm"
    side: ClassVar[str] = "decoder"
    loss_fields: ClassVar[tuple[str, ...]] = (
        *Objective.loss_fields,
        "label_smoothing",
        "z_loss",
        "loss_normalizing_factor",
        "chunk_length",
    )

    label_smoothing: float = 0.0
    z_loss: float = 1e-4
    loss_normalizing_factor: float | str | None = None
    chunk_length: int | None = None

    def __post_init__(self) -> None:
        check_number(self, "label_smoothing", lambda x: 0 <= x < 1, "a number in [0, 1)")
        check_number(self, "z_loss", lambda x: 0 <= x < math.inf, "finite and >= 0")
        if self.chunk_length is not None:
            check_number(
                self, "chunk_length", lambda x: isinstance(x, int) and x >= 1, "None or int >= 1"
            )
        factor = self.loss_normalizing_factor
        if isinstance(factor, str):
            if factor.upper() not in LOSS_NORMALIZING_FACTORS:
                raise unknown("loss_normalizing_factor", factor, LOSS_NORMALIZING_FACTORS)
        elif factor is not None:
            check_number(self, "loss_normalizing_factor", lambda x: 0 < x < math.inf, "> 0")

    def _at_targets(self, rows: jax.Array, batch: Batch) -> jax.Array:
        """Returns the values of rows `[batch, length, …]` at the positions to predict."""
        positions = batch.get(f"{self.side}_target_positions")
        if positions is None:
            return rows
        positions = positions.reshape(*positions.shape, *[1] * (rows.ndim - 2))
        return jnp.take_along_axis(rows, positions, axis=1)

    def _token_weights(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        factor = self.loss_normalizing_factor
        packed = f"{self.side}_lengths" not in batch
        segment_ids = batch[f"{self.side}_segment_ids"] if packed else None
        return normalized_weights(
            batch[f"{self.side}_loss_weights"],
            factor.upper() if isinstance(factor, str) else factor,
            segment_ids=None if segment_ids is None else self._at_targets(segment_ids, batch),
        )

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        _, divisor = self._token_weights(batch)
        return {"cross_entropy": divisor, "z_loss": divisor}

    def loss(
        self,
        model: Model,
        params: Any,
        batch: Batch,
        *,
        frozen: Mapping[str, Any] = NOTHING,
        rngs: Mapping[str, jax.Array] = NOTHING,
        train: bool = False,
    ) -> tuple[Terms, Terms]:
        """Returns the loss's terms; metrics: `loss` (nats, unsmoothed) and `accuracy`."""
        hidden, aux = model.hidden(params, batch, rngs=rngs, train=train)
        tokens = chunked_cross_entropy(
            functools.partial(model.logits, params),
            self._at_targets(hidden, batch),
            batch[f"{self.side}_target_tokens"],
            label_smoothing=self.label_smoothing,
            chunk_length=self.chunk_length,
        )
        weights, _ = self._token_weights(batch)
        terms = {
            "cross_entropy": (jnp.sum(weights * tokens.cross_entropy), jnp.float32(1)),
            "z_loss": (jnp.sum(weights * tokens.z_squared), jnp.float32(self.z_loss)),
        } | expert_terms(aux)
        # Metrics count every token once, whatever the loss is divided by, so that runs compare.
        mask = batch[f"{self.side}_loss_weights"]
        num_tokens = jnp.sum(mask)
        metrics = {
            "loss": (jnp.sum(mask * tokens.negative_log_likelihood), num_tokens),
            "accuracy": (jnp.sum(mask * tokens.correct), num_tokens),
        }
        return terms, metrics
