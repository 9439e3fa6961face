"""What an objective is, and the halves that most of them share.

An objective has a host half, which turns tokenised examples into batches with numpy, and a device
half, which turns a batch into sums with JAX. It knows neither the data pipeline, which shuffles,
packs and pads between `prepare` and `batch`, nor the train step, which divides and differentiates.

Writing one takes a class. Deshuffling (Raffel et al. 2020, §3.3.1) learns from the cross entropy of
its targets, so that its device half and its loss options are inherited; all of it is:

    import dataclasses
    import numpy as np
    from t5lite.objectives import TokenCrossEntropy, encoder_decoder_batch, end_with_eos

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Deshuffling(TokenCrossEntropy):
        '''Gives the encoder a text's tokens in random order, and asks for the text.'''

        features = ("inputs", "targets")

        def prepare(self, examples, *, lengths, vocabulary, rng):
            length = min(lengths["inputs"], lengths["targets"])
            for example in examples:
                text = np.asarray(example["targets"], np.int32)[: length - 1]
                yield {
                    "inputs": end_with_eos(rng.permutation(text), length, vocabulary.eos_id),
                    "targets": end_with_eos(text, length, vocabulary.eos_id),
                }

        def batch(self, rows):
            return encoder_decoder_batch(rows)

and in a config `t5lite.train.objective = @mine.Deshuffling()`. A new loss defines `weights` and
`loss` instead; `TokenCrossEntropy` below is the example to read. A decoder-only objective differs
in `features` and in the function that its `batch` calls, and in nothing else.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError, unknown
from t5lite.objectives.losses import (
    LOSS_NORMALIZING_FACTORS,
    chunked_cross_entropy,
    normalized_weights,
)

Example = Mapping[str, np.ndarray]
Terms = dict[str, tuple[jax.Array, jax.Array]]


class Vocabulary(Protocol):
    """What an objective asks of a vocabulary."""

    @property
    def eos_id(self) -> int: ...
    @property
    def num_sentinels(self) -> int: ...
    def sentinel(self, index: int) -> int: ...
    def decode(self, ids: Any) -> str: ...


class Model(Protocol):
    """What an objective asks of a model: two pure functions."""

    def hidden(
        self, params: Any, batch: Mapping[str, jax.Array], *, rngs: Any = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns `[batch, length, embed]` before the output projection, and auxiliary outputs."""

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, length, vocab]` float32."""


class Objective(Protocol):
    """The contract between an objective, the data pipeline and the train step."""

    @property
    def features(self) -> tuple[str, ...]:
        """The names of a prepared example's arrays; each has a length in `lengths`."""

    def prepare(
        self,
        examples: Iterator[Example],
        *,
        lengths: Mapping[str, int],
        vocabulary: Any,
        rng: np.random.Generator,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Makes trainable examples, on the host.

        Runs are resumed by repeating this, so that it must depend on its arguments alone, take
        `examples` one by one and draw from nothing but `rng`.

        Args:
          examples: tokenised examples as SeqIO tasks give them: 1-D integer arrays by feature.
          lengths: the room there is for each feature, in tokens, EOS included.
          vocabulary: eos_id, sentinels, and text for humans; None if the data is ids alone.
          rng: the only source of chance.

        Yields:
          One 1-D int32 array for each of `features`, not empty and at most `lengths[name]` long.
        """

    def batch(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Gives rows the names the model knows, on the host; works on rows of zeros too.

        Args:
          rows: `name [batch, length]` int32 for each of `features`, and, if rows hold several
            examples, `name_segment_ids` (0 padding, 1.. the examples) and `name_positions`.

        Returns:
          `[batch, ...]` int32 and float32 arrays under SeqIO's batch names.
        """

    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns by how much each term's sum is divided, from the whole global batch, on device.

        A term that is not named here is averaged over microbatches.
        """

    def loss(
        self,
        model: Model,
        params: Any,
        batch: Mapping[str, jax.Array],
        *,
        rngs: Any = None,
        train: bool = False,
    ) -> tuple[Terms, Terms]:
        """Computes sums over the rows at hand, which may be a part of the batch, on device.

        Sums and not means, so that microbatches and devices add up to the whole batch: the step
        minimises the sum of `coefficient * sum / weight` over terms.

        Args:
          model: pure functions of `params`.
          params: the model's parameters.
          batch: what `batch` returned.
          rngs: keys for dropout by name; None when not training.
          train: whether dropout is on.

        Returns:
          Terms `{name: (sum, coefficient)}` and metrics `{name: (sum, weight)}`, float32 scalars.
        """


def feature_length(lengths: Mapping[str, int], name: str, *, at_least: int = 2) -> int:
    """Returns the room for a feature.

    Raises: InputError if it is not given, or is less than `at_least`.
    """
    if name not in lengths:
        raise InputError(
            f"TASK_FEATURE_LENGTHS has no {name!r} (it has {sorted(lengths)}): "
            "give each feature of the objective a length"
        )
    if lengths[name] < at_least:
        raise InputError(
            f"TASK_FEATURE_LENGTHS[{name!r}] is {lengths[name]}: it must be at least {at_least}"
        )
    return lengths[name]


def end_with_eos(tokens: np.ndarray, length: int, eos_id: int) -> np.ndarray:
    """Returns the tokens with exactly one EOS at their end, cut so that it fits.

    Args:
      tokens: `[n]` integers, with or without EOS at the end, perhaps padded with 0.
      length: the most tokens to return, EOS included; >= 1.
      eos_id: the id of EOS.
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.size and tokens[-1] == 0:
        tokens = np.trim_zeros(tokens, "b")
    if tokens.size and tokens[-1] == eos_id:
        tokens = tokens[:-1]
    return np.concatenate([tokens[: length - 1], np.array([eos_id], np.int32)])


def encoder_decoder_batch(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names rows of `inputs` and `targets` for an encoder-decoder, as SeqIO's converter does.

    Args:
      rows: `inputs` and `targets` `[batch, length]` int32; if packed, their `_segment_ids` and
        `_positions` too.

    Returns:
      encoder_input_tokens, decoder_target_tokens, decoder_input_tokens (the targets one to the
      right within their segment, behind a 0), decoder_loss_weights (float32, 1 on targets); if
      packed, {encoder,decoder}_{segment_ids,positions} too.
    """
    targets = rows["targets"]
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    batch = {"encoder_input_tokens": rows["inputs"], "decoder_target_tokens": targets}
    if "targets_segment_ids" in rows:
        segments = rows["targets_segment_ids"]
        shifted[:, 1:] *= segments[:, 1:] == segments[:, :-1]
        for side, name in ("encoder", "inputs"), ("decoder", "targets"):
            batch[f"{side}_segment_ids"] = rows[f"{name}_segment_ids"]
            batch[f"{side}_positions"] = rows[f"{name}_positions"]
    batch["decoder_input_tokens"] = shifted
    batch["decoder_loss_weights"] = (targets > 0).astype(np.float32)
    return batch


def check_number(owner: object, name: str, valid: Callable[[Any], bool], allowed: str) -> None:
    """Raises InputError unless a dataclass's field is a number, not a bool, and `valid`."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not valid(value):
        raise InputError(f"{type(owner).__name__}.{name} is {value!r}: it must be {allowed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCrossEntropy:
    """The device half of objectives that predict `decoder_target_tokens`.

    Attributes:
      label_smoothing: probability in `[0, 1)` taken from the target and given to all others.
      z_loss: coefficient, >= 0, of the squared log of the softmax's normaliser.
      loss_normalizing_factor: what the loss is divided by: None (the number of target tokens), a
        number > 0, or one of `LOSS_NORMALIZING_FACTORS`; see `losses.normalized_weights`.
      chunk_length: how many positions have their logits in memory at once; None: all of them.
    """

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

    def _token_weights(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        factor = self.loss_normalizing_factor
        return normalized_weights(
            batch["decoder_loss_weights"],
            factor.upper() if isinstance(factor, str) else factor,
            segment_ids=batch.get("decoder_segment_ids"),
        )

    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the divisor of both terms; see `Objective.weights`."""
        _, divisor = self._token_weights(batch)
        return {"cross_entropy": divisor, "z_loss": divisor}

    def loss(
        self,
        model: Model,
        params: Any,
        batch: Mapping[str, jax.Array],
        *,
        rngs: Any = None,
        train: bool = False,
    ) -> tuple[Terms, Terms]:
        """Returns cross entropy and z-loss; metrics `loss` (nats, unsmoothed) and `accuracy`."""
        hidden, _ = model.hidden(params, batch, rngs=rngs, train=train)
        tokens = chunked_cross_entropy(
            functools.partial(model.logits, params),
            hidden,
            batch["decoder_target_tokens"],
            label_smoothing=self.label_smoothing,
            chunk_length=self.chunk_length,
        )
        weights, _ = self._token_weights(batch)
        terms = {
            "cross_entropy": (jnp.sum(weights * tokens.cross_entropy), jnp.float32(1)),
            "z_loss": (jnp.sum(weights * tokens.z_squared), jnp.float32(self.z_loss)),
        }
        # Metrics count every token once, whatever the loss is divided by, so that runs compare.
        mask = batch["decoder_loss_weights"]
        num_tokens = jnp.sum(mask)
        metrics = {
            "loss": (jnp.sum(mask * tokens.negative_log_likelihood), num_tokens),
            "accuracy": (jnp.sum(mask * tokens.correct), num_tokens),
        }
        return terms, metrics
