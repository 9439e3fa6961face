"""Prompts in, tokens out, for every topology that writes: what `load` and samplers decode with."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding import Generated, generate


def prompt_batch(
    topology: str,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    num_rows: int,
    length: int,
    prefix: bool = False,
    start_id: int = 0,
) -> dict[str, np.ndarray]:
    """Lays prompts out as `Model.start` takes them.

    Args:
      topology: "encoder_decoder", whose encoder reads the prompt, or "decoder", which continues it.
      prompts: token ids, each at most `length` long.
      num_rows: of the batch; those behind the prompts ask nothing.
      length: of the longest prompt that there is room for.
      prefix: whether a decoder sees a prompt in both directions, as one trained on prefixes does.
      start_id: what a decoder reads first.

    Returns:
      `encoder_input_tokens` and `encoder_segment_ids` `[num_rows, length]` int32; or for a decoder
      `decoder_input_tokens` `[num_rows, length + 1]`, behind the start token, `decoder_lengths`
      `[num_rows]` and, with `prefix`, `decoder_causal_attention`.
    """
    start = 0 if topology == "encoder_decoder" else 1
    tokens = np.zeros((num_rows, start + length), np.int32)
    tokens[:, :start] = start_id
    lengths = np.full(num_rows, start, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, start : start + len(prompt)] = prompt
        lengths[row] += len(prompt)
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    if topology == "encoder_decoder":
        return {"encoder_input_tokens": tokens, "encoder_segment_ids": inside.astype(np.int32)}
    batch = {"decoder_input_tokens": tokens, "decoder_lengths": lengths}
    if prefix:
        batch["decoder_causal_attention"] = inside.astype(np.int32)
    return batch


def answer(
    model: Any,
    params: Any,
    batch: Mapping[str, jax.Array],
    *,
    max_new_tokens: int,
    **options: Any,
) -> Generated:
    """Answers or continues each prompt; pure and traceable.

    Args:
      model: an encoder-decoder or a decoder.
      params: its parameters.
      batch: as `prompt_batch` lays it out.
      max_new_tokens: most tokens written a row, at least 1.
      **options: of `decoding.generate`.
    """
    if "decoder_lengths" in batch:
        # The last token of each prompt is fed once more: its logits give the first new one.
        tokens, last = batch["decoder_input_tokens"], batch["decoder_lengths"] - 1
        first = jnp.take_along_axis(tokens, last[:, None], axis=1)[:, 0]
        room = tokens.shape[1] + max_new_tokens - 1  # the last new one is never read
    else:
        first = jnp.full(len(batch["encoder_input_tokens"]), model.start_id, jnp.int32)
        room = max_new_tokens
    cache = model.start(params, batch, max_length=room)
    return generate(
        lambda tokens, cache: model.extend(params, tokens, cache),
        cache,
        first,
        max_new_tokens=max_new_tokens,
        **options,
    )
