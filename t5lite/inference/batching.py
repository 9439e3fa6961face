"""Batches of few sizes, so that few programs are compiled."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from t5lite.errors import InputError
from t5lite.models import Model
from t5lite.parallel import Layout, batch_sharding


class Placed(Protocol):
    """A model's place on devices, without parameters: an engine is one."""

    @property
    def model(self) -> Model: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def mesh(self) -> Mesh: ...


SHORTEST = 16  # rows are padded to a power of two from here on


def bucket(size: int, room: int | None = None) -> int:
    """Returns the length of the rows that `size` tokens are padded to.

    Args:
      size: of the longest row.
      room: what the model has positions for, at least `size`; None for any.
    """
    length = max(SHORTEST, power_of_two(size))
    return length if room is None else max(size, min(length, room))


def num_rows(count: int, layout: Layout, mesh: Mesh) -> int:
    """Returns a number of rows, of few, at least `count`, that the layout can share out."""
    shares = mesh.size // batch_sharding(layout, mesh).shard_shape((mesh.size, mesh.size))[0]
    return -(-power_of_two(count) // shares) * shares


def power_of_two(size: int) -> int:
    """Returns the least power of two that is at least `size`, itself at least 1."""
    return 1 << (size - 1).bit_length()


def padded(
    rows: Sequence[Sequence[int]], num_rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of rows and their segment ids, 1 on ids, both `[num_rows, length]` int32."""
    tokens = np.zeros((num_rows, length), np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    return tokens, segments


def prompt_batch(
    topology: str,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    num_rows: int,
    length: int,
    prefix: bool = False,
    start_id: int | None = 0,
    seeds: Sequence[tuple[int, int]] | None = None,
) -> dict[str, np.ndarray]:
    """Lays prompts out as `Model.start` takes them.

    Args:
      topology: "encoder_decoder", whose encoder reads the prompt, or "decoder", which continues it.
      prompts: token ids, each at most `length` long.
      num_rows: of the batch; those after the prompts are padding.
      length: of the longest prompt that there is room for.
      prefix: whether a decoder sees a prompt in both directions, as one trained on prefixes does.
      start_id: what a decoder reads first; None for nothing, and then no prompt is empty.
      seeds: a seed and a number for each prompt, which its draws depend on; None for none.

    Returns:
      `encoder_input_tokens` and `encoder_segment_ids` `[num_rows, length]` int32; or for a decoder
      `decoder_input_tokens` `[num_rows, length + 1]`, after the start token, or `[num_rows,
      length]` if there is none, `decoder_lengths`
      `[num_rows]` and, with `prefix`, `decoder_causal_attention`. With `seeds`, `seeds`
      `[num_rows, 2]` uint32.
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
        lengths = np.maximum(lengths, 1)  # also of padding
    batch: dict[str, np.ndarray] = {}
    if seeds is not None:
        batch["seeds"] = np.zeros((num_rows, 2), np.uint32)
        batch["seeds"][: len(seeds)] = seeds
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    if topology == "encoder_decoder":
        segments = inside.astype(np.int32)
        return batch | {"encoder_input_tokens": tokens, "encoder_segment_ids": segments}
    batch |= {"decoder_input_tokens": tokens, "decoder_lengths": lengths}
    if prefix:
        batch["decoder_causal_attention"] = inside.astype(np.int32)
    return batch


def by_size(sizes: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Yields the rows of each batch, `[n]`: those of like size, so that little is padding."""
    order = np.argsort(np.asarray(sizes, np.int64), kind="stable")
    for start in range(0, order.size, batch_size):
        yield order[start : start + batch_size]


def stack_batches(
    placed: Placed, rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields batches of a single stack: which rows `[n]`, and the arrays that the stack reads.

    Args:
      placed: an encoder or a decoder.
      rows: ids.
      batch_size: most rows at once; those of like length go together.

    Raises:
      InputError: a batch size below 1.
    """
    check_count("batch_size", batch_size)
    side, model = placed.model.topology, placed.model
    for together in by_size([len(row) for row in rows], batch_size):
        ids = [rows[row] for row in together]
        length = bucket(max(map(len, ids)), positions(model))
        tokens, segments = padded(ids, num_rows(len(ids), placed.layout, placed.mesh), length)
        yield together, {f"{side}_input_tokens": tokens, f"{side}_segment_ids": segments}


def positions(model: Model) -> int | None:
    """Returns the positions of a single stack; None for any number."""
    stack = model.spec.encoder or model.spec.decoder
    assert stack is not None
    return stack.max_length


def check_max_length(max_length: int | None, *, special: int, positions: int | None) -> None:
    """Raises an InputError unless texts of at most `max_length` tokens, if it is not None, can hold
    a token beside `special` ones, and the model has positions for them."""
    if max_length is None:
        return
    check_count("max_length", max_length)
    if max_length <= special or max_length > (positions or max_length):
        most = "" if positions is None else f" and at most {positions}, the model's positions"
        raise InputError(
            f"max_length = {max_length}: must be at least {special + 1}{most}", field="max_length"
        )


def each(name: str, read: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """Returns `read` of each row of the columns; its errors say which: `name[3]: ...`."""
    values = []
    for index, row in enumerate(zip(*columns, strict=True)):
        try:
            values.append(read(*row))
        except InputError as error:
            raise InputError(f"{name}[{index}]: {error}") from error
    return values


def settled(name: str, outcomes: Sequence[Any]) -> list[Any]:
    """Returns outcomes if none is an InputError; raises the first, saying which: `name[3]: ...`."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, InputError):
            raise InputError(f"{name}[{index}]: {outcome}") from outcome
    return list(outcomes)


def check_count(name: str, value: Any) -> None:
    """Raises an InputError unless a value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} = {value!r}: must be a whole number of at least 1", field=name)
