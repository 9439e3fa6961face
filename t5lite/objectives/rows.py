"""Rows under the names that models know, SeqIO's. Pure numpy; rows of zeros have no weight.

Which places hold tokens, segment ids say; only rows without them are asked where they are not 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Rows = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]


def packing_of(rows: Rows, name: str, side: str) -> Batch:
    """Returns segment ids and positions of rows, for a side of the model; {} if not packed."""
    return {
        f"{side}_{suffix}": rows[f"{name}_{suffix}"]
        for suffix in ("segment_ids", "positions")
        if f"{name}_{suffix}" in rows
    }


def holds_tokens(rows: Mapping[str, Any], name: str) -> Any:
    """Returns `[batch, length]` bool: which places of a feature's rows hold a token.

    Args:
      rows: of numpy or of JAX, with `name_segment_ids` or, where 0 is padding, without.
      name: of the feature.
    """
    return rows.get(f"{name}_segment_ids", rows[name]) > 0


def shifted_right(rows: Rows, name: str, *, start: int = 0) -> np.ndarray:
    """Returns `[batch, length]`: each value one to the right within its segment, behind `start`."""
    values = rows[name]
    shifted = np.zeros_like(values)
    shifted[:, 1:] = values[:, :-1]
    segments = rows.get(f"{name}_segment_ids")
    if segments is None:
        shifted[:, 0] = start
        return shifted
    begins = np.diff(segments, axis=1, prepend=0) != 0
    shifted[begins] = 0
    shifted[begins & (segments > 0)] = start
    return shifted


def shifted_left(rows: Rows, name: str) -> np.ndarray:
    """Returns `[batch, length]`: each value one to the left within its segment, 0 at its end."""
    values = rows[name]
    shifted = np.zeros_like(values)
    shifted[:, :-1] = values[:, 1:]
    segments = rows.get(f"{name}_segment_ids")
    if segments is not None:
        shifted[np.diff(segments, axis=1, append=0) != 0] = 0
    return shifted


def decoder_batch(rows: Rows, *, start_id: int | None = 0) -> Batch:
    """Names rows of `targets` for a decoder that predicts all of them, as SeqIO's LM converter.

    Args:
      rows: `targets` `[batch, length]` int32; if packed, `_segment_ids` and `_positions` too.
      start_id: what the decoder reads in front of every text. None: nothing, so that its first
        token is not predicted; each place then predicts the token after it.

    Returns:
      decoder_target_tokens, decoder_input_tokens (the targets one to the right within their
      segment, behind `start_id`), decoder_loss_weights (float32, 1 on targets); if packed,
      decoder_segment_ids and decoder_positions too.
    """
    if start_id is None:
        inside = {**rows, "targets": holds_tokens(rows, "targets").astype(np.float32)}
        return {
            "decoder_target_tokens": shifted_left(rows, "targets"),
            "decoder_input_tokens": rows["targets"],
            "decoder_loss_weights": shifted_left(inside, "targets"),
            **packing_of(rows, "targets", "decoder"),
        }
    return {
        "decoder_target_tokens": rows["targets"],
        "decoder_input_tokens": shifted_right(rows, "targets", start=start_id),
        "decoder_loss_weights": holds_tokens(rows, "targets").astype(np.float32),
        **packing_of(rows, "targets", "decoder"),
    }


def encoder_decoder_batch(rows: Rows, *, start_id: int | None = 0) -> Batch:
    """Names rows of `inputs` and `targets` for an encoder-decoder, as SeqIO's converter does.

    Args:
      rows: `inputs` and `targets` `[batch, length]` int32; if packed, their `_segment_ids` and
        `_positions` too.
      start_id: as `decoder_batch` takes it.

    Returns:
      What `decoder_batch` does, and encoder_input_tokens; if packed, encoder_segment_ids and
      encoder_positions too.
    """
    encoder = {"encoder_input_tokens": rows["inputs"], **packing_of(rows, "inputs", "encoder")}
    return encoder | decoder_batch(rows, start_id=start_id)


def prefix_lm_batch(rows: Rows, *, start_id: int | None = 0, bidirectional: bool = True) -> Batch:
    """Names rows for a decoder that reads inputs and predicts what follows.

    Args:
      rows: what `join_pair` made, padded or packed: `targets` `[batch, length]` int32, inputs and
        targets one behind the other, and `prefix`, 1 on the inputs; if packed, their
        `_segment_ids` and `_positions` too.
      start_id: as `decoder_batch` takes it.
      bidirectional: whether inputs are seen in both directions.

    Returns:
      What `decoder_batch` does, with no weight on inputs; if `bidirectional`, also
      decoder_causal_attention, int32: 1 on the inputs as the decoder reads them, the start token in
      front included, as SeqIO has it: the last input is where the first target is predicted.

    Source: Raffel et al. 2020, arXiv:1910.10683, §3.2.1; `seqio.PrefixLMFeatureConverter`.
    """
    batch, prefix = decoder_batch(rows, start_id=start_id), rows["prefix"]
    if start_id is None:
        given = shifted_left({**rows, "targets": prefix}, "targets")
        batch["decoder_loss_weights"] *= 1 - given.astype(np.float32)
        return batch | ({"decoder_causal_attention": prefix} if bidirectional else {})
    batch["decoder_loss_weights"] *= 1 - prefix.astype(np.float32)
    if bidirectional:
        batch["decoder_causal_attention"] = prefix | shifted_right(rows, "prefix")
    return batch


def join_pair(pair: Rows) -> Batch:
    """Returns `inputs` and `targets` `[n]` as one text, and its `prefix`: 1 on the inputs."""
    inputs, targets = pair["inputs"], pair["targets"]
    return {
        "targets": np.concatenate([inputs, targets]),
        "prefix": np.repeat(np.array([1, 0], np.int32), [inputs.size, targets.size]),
    }


def split_pair(example: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets `[n]` of an example, whether or not `join_pair` joined them."""
    if "prefix" not in example:
        return example["inputs"], example["targets"]
    size = np.count_nonzero(example["prefix"])
    return example["targets"][:size], example["targets"][size:]
