"""Rows under SeqIO's batch names. Pure NumPy; rows of zeros have no weight.

A batch has the segment ids of every token (0 on padding), from which models derive positions, and
the lengths of texts where each row holds one.
"""

from collections.abc import Mapping

import numpy as np

Rows = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]


def segments_of(rows: Rows, name: str, side: str) -> Batch:
    """Returns the segment ids of a feature, and its lengths if any, for a side of the model."""
    segments = {f"{side}_segment_ids": rows[f"{name}_segment_ids"]}
    lengths = rows.get(f"{name}_lengths")
    return segments if lengths is None else segments | {f"{side}_lengths": lengths}


def weights_of(rows: Rows, name: str) -> np.ndarray:
    """Returns `[batch, length]` float32: 1 on the tokens of a feature."""
    return (rows[f"{name}_segment_ids"] > 0).astype(np.float32)


def shifted_right(values: np.ndarray, segments: np.ndarray, *, start: int = 0) -> np.ndarray:
    """Returns `[batch, length]`: each value one to the right within its segment, after `start`."""
    shifted = np.zeros_like(values)
    shifted[:, 1:] = values[:, :-1]
    begins = np.diff(segments, axis=1, prepend=0) != 0
    shifted[begins] = 0
    shifted[begins & (segments > 0)] = start
    return shifted


def shifted_left(values: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Returns `[batch, length]`: each value one to the left within its segment, 0 at its end."""
    shifted = np.zeros_like(values)
    shifted[:, :-1] = values[:, 1:]
    shifted[np.diff(segments, axis=1, append=0) != 0] = 0
    return shifted


def decoder_batch(rows: Rows, *, start_id: int | None = 0) -> Batch:
    """Names rows of `targets` for a decoder that predicts all of them, as SeqIO's LM converter.

    Args:
      rows: `targets` `[batch, length]` int32 and their segment ids.
      start_id: the token that the decoder reads before every text. None: none, so that its first
        token is not predicted; each position then predicts the token after it.

    Returns:
      decoder_target_tokens, decoder_input_tokens (the targets one to the right within their
      segment, after `start_id`), decoder_loss_weights (float32, 1 on targets), decoder_segment_ids
      and, of unpacked rows, decoder_lengths.
    """
    targets, segments = rows["targets"], rows["targets_segment_ids"]
    weights = weights_of(rows, "targets")
    if start_id is None:
        inputs, targets = targets, shifted_left(targets, segments)
        weights = shifted_left(weights, segments)
    else:
        inputs = shifted_right(targets, segments, start=start_id)
    return {
        "decoder_target_tokens": targets,
        "decoder_input_tokens": inputs,
        "decoder_loss_weights": weights,
        **segments_of(rows, "targets", "decoder"),
    }


def encoder_decoder_batch(rows: Rows, *, start_id: int | None = 0) -> Batch:
    """Names rows of `inputs` and `targets` for an encoder-decoder, as SeqIO's converter does.

    To the arrays of `decoder_batch`, which documents the arguments, it adds encoder_input_tokens,
    encoder_segment_ids and, of unpacked rows, encoder_lengths.
    """
    encoder = {"encoder_input_tokens": rows["inputs"], **segments_of(rows, "inputs", "encoder")}
    return encoder | decoder_batch(rows, start_id=start_id)


def prefix_lm_batch(rows: Rows, *, start_id: int | None = 0, bidirectional: bool = True) -> Batch:
    """Returns rows for a decoder that reads inputs and predicts the targets after them.

    Args:
      rows: joined by `join_pair`, padded or packed: `targets` `[batch, length]` int32, inputs and
        targets in one, their segment ids, and `prefix`, 1 on the inputs.
      start_id: see `decoder_batch`.
      bidirectional: whether inputs are seen in both directions.

    Returns:
      Those of `decoder_batch`, without weights on inputs; if `bidirectional`, also
      decoder_causal_attention, int32: 1 on the inputs as the decoder reads them, the start token
      included, as SeqIO has it: the last input is where the first target is predicted.
    Source: Raffel et al. 2020, arXiv:1910.10683, §3.2.1; `seqio.PrefixLMFeatureConverter`.
    """
    batch, prefix = decoder_batch(rows, start_id=start_id), rows["prefix"]
    segments = rows["targets_segment_ids"]
    predicted_prefix = shifted_left(prefix, segments) if start_id is None else prefix
    batch["decoder_loss_weights"] *= 1 - predicted_prefix.astype(np.float32)
    if bidirectional:
        read = prefix if start_id is None else prefix | shifted_right(prefix, segments)
        batch["decoder_causal_attention"] = read
    return batch


def with_segments(batch: Rows) -> Batch:
    """Adds segment ids and lengths to an unpacked batch of SeqIO's own feature converters.

    Arrays are `[batch, length]` under SeqIO's names, 0 on padding. Packed batches keep their
    segment ids and lose their positions, which models derive.
    """
    named = dict(batch)
    for side in ("encoder", "decoder"):
        named.pop(f"{side}_positions", None)
        # A decoder's first input may be 0; its targets distinguish tokens from padding.
        names = [f"{side}_{name}_tokens" for name in ("target", "input")]
        tokens = [batch[name] for name in names[side == "encoder" :] if name in batch]
        if not tokens or f"{side}_segment_ids" in batch:
            continue
        filled = np.cumsum(tokens[0][:, ::-1] != 0, axis=1)[:, ::-1] > 0  # zeros inside count
        named[f"{side}_segment_ids"] = filled.astype(np.int32)
        named[f"{side}_lengths"] = filled.sum(axis=1, dtype=np.int32)
    return named


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
