"""Prompts in, tokens out, for every topology that writes: what `load` and samplers decode with."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.decoding import Generated, Settings, generate


def first_tokens(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns `[batch]` int32, what a decoder reads first behind what `Model.start` has read.

    Args:
      model: an encoder-decoder or a decoder.
      batch: as `batching.prompt_batch` lays it out.
    """
    if "decoder_lengths" not in batch:
        return jnp.full(len(batch["encoder_input_tokens"]), model.start_id, jnp.int32)
    # The last token of each prompt, whose logits give the first new one.
    last = batch["decoder_lengths"][:, None] - 1
    return jnp.take_along_axis(batch["decoder_input_tokens"], last, axis=1)[:, 0]


def answer(
    model: Any,
    params: Any,
    batch: Mapping[str, jax.Array],
    *,
    max_new_tokens: int,
    settings: Settings,
) -> Generated:
    """Answers or continues each prompt; pure and traceable.

    Args:
      model: an encoder-decoder or a decoder.
      params: its parameters.
      batch: as `batching.prompt_batch` lays it out.
      max_new_tokens: most tokens written a row, at least 1.
      settings: how; nothing is drawn.
    """
    prompts = batch["decoder_input_tokens"].shape[1] if "decoder_lengths" in batch else 1
    # The last new token is never read.
    cache = model.start(params, batch, max_length=prompts + max_new_tokens - 1)
    return generate(
        lambda tokens, cache: model.extend(params, tokens, cache),
        cache,
        first_tokens(model, batch),
        settings,
        capacity=max_new_tokens,
    )
