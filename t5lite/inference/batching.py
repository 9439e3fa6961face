"""Batches of few sizes, so that few programs are compiled."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError
from t5lite.models import Model
from t5lite.parallel import Layout, batch_sharding, with_layout


class Placed(Protocol):
    """A model and its layout on devices, without parameters: an engine is one."""

    @property
    def model(self) -> Model: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def mesh(self) -> Mesh: ...


@functools.lru_cache(maxsize=64)
def compiled(fn: Callable, model: Model, layout: Layout, mesh: Mesh, **static: Any) -> Callable:
    """Returns `fn(model, params, batch, **static)` compiled, as `(params, batch)`; cached."""
    whole = NamedSharding(mesh, PartitionSpec())  # so that any process can read the outputs
    fn = functools.partial(fn, model, **static)
    return with_layout(fn, layout, mesh, out_shardings=whole)


SHORTEST = 16  # the least bucket


def bucket(size: int, positions: int | None = None) -> int:
    """Returns the padded length of at most `size` tokens: a power of two, or all positions."""
    length = max(SHORTEST, power_of_two(size))
    return length if positions is None else max(size, min(length, positions))


def num_rows(count: int, layout: Layout, mesh: Mesh) -> int:
    """Returns one of few numbers of rows, at least `count`, that the layout divides evenly."""
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
    """Returns prompts as `Model.start` reads them.

    Args:
      topology: "encoder_decoder", whose encoder reads the prompt, or "decoder", which continues it.
      prompts: token ids, each at most `length` long.
      num_rows: of the batch; those after the prompts are padding.
      length: of the padded prompts.
      prefix: whether a decoder's attention over the prompt is bidirectional, as in prefix LMs.
      start_id: the decoder's start token; None for none, and then no prompt is empty.
      seeds: a seed and a request's number for each prompt, which determine its draws; None for
        none.
    Returns: `encoder_input_tokens` and `encoder_segment_ids` `[num_rows, length]` int32; for a
    decoder `decoder_input_tokens` `[num_rows, length]`, or `[num_rows, length + 1]` with the start
    token, `decoder_lengths` `[num_rows]` and, with `prefix`, `decoder_causal_attention`. With
    `seeds`, `seeds` `[num_rows, 2]` uint32.
    """
    first = [] if topology == "encoder_decoder" or start_id is None else [start_id]
    rows = [[*first, *prompt] for prompt in prompts]
    tokens, segments = padded(rows, num_rows, len(first) + length)
    batch: dict[str, np.ndarray] = {}
    if seeds is not None:
        batch["seeds"] = np.zeros((num_rows, 2), np.uint32)
        batch["seeds"][: len(seeds)] = seeds
    if topology == "encoder_decoder":
        return batch | {"encoder_input_tokens": tokens, "encoder_segment_ids": segments}
    segments[:, 0] = 1  # padding rows have a token too
    tokens[len(prompts) :, : len(first)] = first
    lengths = segments.sum(axis=1, dtype=np.int32)
    batch |= {"decoder_input_tokens": tokens, "decoder_lengths": lengths}
    if prefix:
        batch["decoder_causal_attention"] = segments
    return batch


def by_size(sizes: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Yields the rows of each batch, `[n]`, those of like size together."""
    order = np.argsort(np.asarray(sizes, np.int64), kind="stable")
    for start in range(0, order.size, batch_size):
        yield order[start : start + batch_size]


def stack_outcomes(
    placed: Placed,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    compute: Callable[[np.ndarray, dict[str, np.ndarray]], jax.Array],
    read: Callable[[int, np.ndarray], Any],
) -> list[Any]:
    """Returns `read(row, output)` of each row of ids; `compute` takes the rows `[n]` of a batch,
    and the arrays that the stack reads."""
    check_count("batch_size", batch_size)
    outcomes: list[Any] = [None] * len(rows)
    side, model = placed.model.topology, placed.model
    for together in by_size([len(row) for row in rows], batch_size):
        ids = [rows[row] for row in together]
        length = bucket(max(map(len, ids)), positions(model))
        tokens, segments = padded(ids, num_rows(len(ids), placed.layout, placed.mesh), length)
        batch = {f"{side}_input_tokens": tokens, f"{side}_segment_ids": segments}
        for row, output in zip(together, np.asarray(compute(together, batch)), strict=False):
            outcomes[row] = read(row, output)
    return outcomes


def positions(model: Model) -> int | None:
    """Returns the positions of a single stack; None for any number."""
    stack = model.spec.encoder or model.spec.decoder
    assert stack is not None
    return stack.max_length


def check_max_length(max_length: int | None, *, special: int, positions: int | None) -> None:
    """Raises an InputError unless `max_length` is None or in (`special`, `positions`]."""
    if max_length is None:
        return
    check_count("max_length", max_length)
    if max_length <= special or max_length > (positions or max_length):
        most = "" if positions is None else f" and at most {positions}, the model's positions"
        raise InputError(
            f"max_length = {max_length}: must be at least {special + 1}{most}", field="max_length"
        )


def check_texts(name: str, texts: Any) -> None:
    """Raises an InputError unless `texts` is a list of at least one text."""
    if isinstance(texts, str):
        raise InputError(f"{name} is one string; put it in a list: [text]", field=name)
    if not texts:
        raise InputError(f"{name} is empty; give a list of at least one text", field=name)


def by_row(name: str, read: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """Returns `read` of each row of the columns; errors name the row: `name[3]: ...`."""
    values = []
    for index, row in enumerate(zip(*columns, strict=True)):
        try:
            values.append(read(*row))
        except InputError as error:
            raise InputError(f"{name}[{index}]: {error}") from error
    return values


def settled(name: str, outcomes: Sequence[Any]) -> list[Any]:
    """Returns outcomes; raises the first InputError in them, naming its row: `name[3]: ...`."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, InputError):
            raise InputError(f"{name}[{index}]: {outcome}") from outcome
    return list(outcomes)


def check_count(name: str, value: Any) -> None:
    """Raises an InputError unless a value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} = {value!r}: must be a whole number of at least 1", field=name)
