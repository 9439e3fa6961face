"""Sizes of batches of requests: few, so that few programs are compiled."""

from collections.abc import Iterator, Sequence

import numpy as np

from t5lite.errors import InputError
from t5lite.inference.batching import Placed, bucket, num_rows, prompt_batch
from t5lite.inference.request import Request
from t5lite.models import Model


def longest_output(requests: Sequence[Request]) -> int:
    return max(request.options.max_new_tokens for request in requests)


def fitting(
    model: Model, indices: list[int], requests: Sequence[Request], lookahead: int
) -> Iterator[list[int]]:
    """Yields groups whose longest prompt and output fit the positions together; `indices` are
    sorted by the requests' lengths, each of which fits alone."""
    decoder = model.topology == "decoder"
    positions = model.spec.decoder.max_length if decoder else None  # type: ignore
    together: list[int] = []
    most = 0
    for index in indices:
        new = max(most, requests[index].options.max_new_tokens)
        length = len(requests[index].ids) + new + lookahead
        if together and positions is not None and length > positions:
            yield together
            together, new = [], requests[index].options.max_new_tokens
        together, most = [*together, index], new
    yield together


def positions_of(models: Sequence[Model], side: str) -> int | None:
    """Returns the positions of a side that all models have; None for any number."""
    lengths = [getattr(model.spec, side).max_length for model in models]
    return min((length for length in lengths if length is not None), default=None)


def prompt_limit(model: Model, requests: Sequence[Request], cache_length: int) -> int | None:
    """Returns the most tokens of a prompt in a cache; None for any number."""
    start, decoder = 0 if model.start_id is None else 1, model.topology == "decoder"
    needed = longest_output(requests)
    if decoder:
        longest = max(len(request.ids) + request.options.max_new_tokens for request in requests)
        needed = longest + start - 1
    if needed > cache_length:
        tokens = (
            f"{needed} tokens, prompt and max_new_tokens" if decoder else f"{needed} new tokens"
        )
        raise InputError(
            f"cache_length = {cache_length}: a request needs {tokens}", field="cache_length"
        )
    return cache_length - start if decoder else positions_of([model], "encoder")


def sized(
    placed: Placed, requests: Sequence[Request], lookahead: int, models: Sequence[Model] = ()
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns a batch of one of few sizes, for all models, its `cache_length` and `capacity`."""
    model = placed.model
    decoder, longest = model.topology == "decoder", max(len(request.ids) for request in requests)
    positions = positions_of([model, *models], "decoder")
    used = (longest if decoder else 0) + lookahead
    capacity = bucket(longest_output(requests), None if positions is None else positions - used)
    limit = positions_of([model], "encoder") if not decoder else positions
    if decoder and limit is not None:
        limit = max(limit - capacity - lookahead, longest)
    batch = prompts_of(placed, requests, limit=limit)
    width = batch["decoder_input_tokens"].shape[1] if decoder else 1
    # The last new token is never read.
    return batch, {"cache_length": width + capacity - 1 + lookahead, "capacity": capacity}


def prompts_of(
    placed: Placed, requests: Sequence[Request], *, limit: int | None, rows: int | None = None
) -> dict[str, np.ndarray]:
    """Returns prompts in one of few sizes."""
    topology = placed.model.topology
    return prompt_batch(
        "encoder_decoder" if topology == "encoder" else topology,
        [request.ids for request in requests],
        num_rows=num_rows(len(requests), placed.layout, placed.mesh) if rows is None else rows,
        length=bucket(max(len(request.ids) for request in requests), limit),
        prefix=requests[0].bidirectional,
        start_id=placed.model.start_id,
        seeds=[(request.options.seed, request.number) for request in requests],
    )
