"""Prompts in, tokens out, for every topology that writes: what `load` and samplers decode with."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding import Generated, Settings, generate


def prompt_batch(
    topology: str,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    num_rows: int,
    length: int,
    prefix: bool = False,
    start_id: int | None = 0,
) -> dict[str, np.ndarray]:
    """Lays prompts out as `Model.start` takes them.

    Args:
      topology: "encoder_decoder", whose encoder reads the prompt, or "decoder", which continues it.
      prompts: token ids, each at most `length` long.
      num_rows: of the batch; those behind the prompts ask nothing.
      length: of the longest prompt that there is room for.
      prefix: whether a decoder sees a prompt in both directions, as one trained on prefixes does.
      start_id: what a decoder reads first; None for nothing, and then no prompt is empty.

    Returns:
      `encoder_input_tokens` and `encoder_segment_ids` `[num_rows, length]` int32; or for a decoder
      `decoder_input_tokens` `[num_rows, length + 1]`, behind the start token, or `[num_rows,
      length]` if there is none, `decoder_lengths`
      `[num_rows]` and, with `prefix`, `decoder_causal_attention`.
    """
    first = [] if topology == "encoder_decoder" or start_id is None else [start_id]
    start = len(first)
    tokens = np.zeros((num_rows, start + length), np.int32)
    tokens[:, :start] = first
    lengths = np.full(num_rows, start, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, start : start + len(prompt)] = prompt
        lengths[row] += len(prompt)
    if topology == "decoder":
        lengths = np.maximum(lengths, 1)  # also where nothing is asked
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    if topology == "encoder_decoder":
        return {"encoder_input_tokens": tokens, "encoder_segment_ids": inside.astype(np.int32)}
    batch = {"decoder_input_tokens": tokens, "decoder_lengths": lengths}
    if prefix:
        batch["decoder_causal_attention"] = inside.astype(np.int32)
    return batch


def first_tokens(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns `[batch]` int32, what a decoder reads first behind what `Model.start` has read.

    Args:
      model: an encoder-decoder or a decoder.
      batch: as `prompt_batch` lays it out.
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
      batch: as `prompt_batch` lays it out.
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
        room=max_new_tokens,
    )
