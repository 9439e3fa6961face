"""An engine's computations, as pure functions of parameters, and compiled for a layout. `jax.jit`
and `jax.export` take them with the model and the sizes bound by `partial`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite import decoding
from t5lite.decoding import (
    Beams,
    Generated,
    Infilled,
    ModelDraft,
    PromptLookup,
    Settings,
    Speculation,
    State,
    StepFn,
)
from t5lite.models import Model
from t5lite.parallel import Layout, shardings, with_layout

Batch = Mapping[str, jax.Array]


def prefill(
    model: Model,
    params: Any,
    batch: Batch,
    *,
    cache_length: int,
    capacity: int,
    num_samples: int = 1,
    draft_length: int = 0,
    num_top: int = 0,
) -> State:
    """Reads the prompts, and returns the state of `rows * num_samples` rows without output.

    Args:
      model, params: unstacked, with a decoder; see `Model.unstacked`.
      batch: see `batching.prompt_batch`, with `seeds`.
      cache_length, capacity, num_top: see `Steps.prefill`.
      num_samples: rows of each prompt, side by side, that share the encoder's output.
      draft_length: tokens proposed at a time by a draft; 0 for none.
    """
    cache, first = _start(model, params, batch, cache_length, draft_length)
    prompts, keys = _prompts(batch, first), _keys(batch["seeds"])
    if num_samples > 1:
        cache = cache.repeat(num_samples)
        first, prompts = (jnp.repeat(array, num_samples, axis=0) for array in (first, prompts))
        samples = jnp.arange(num_samples, dtype=jnp.uint32)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        keys = fold(keys, samples).reshape(-1)
    return decoding.start(
        cache, first, capacity=capacity, keys=keys, prompts=prompts, num_top=num_top
    )


def decode(
    model: Model,
    params: Any,
    state: State,
    settings: Settings,
    steps: jax.Array | int | None = None,
) -> State:
    """Appends at most `steps` tokens to each row, None for all; see `decoding.decode`."""
    return decoding.decode(_step_fn(model, params), state, settings, steps=steps)


def speculate(
    model: Model,
    params: Any,
    draft_params: Any,
    speculation: Speculation,
    settings: Settings,
    references: jax.Array | None,
    steps: jax.Array | int | None = None,
    *,
    draft_model: Model | None,
    draft_length: int,
) -> Speculation:
    """Decodes with a draft model, unstacked, or `PromptLookup` in text and `references`."""
    draft: Any = PromptLookup(references=references)
    if draft_model is not None:
        draft = ModelDraft(_step_fn(draft_model, draft_params))
    step_fn = _step_fn(model, params)
    return decoding.speculate(
        step_fn, speculation, settings, draft, draft_length=draft_length, steps=steps
    )


def search(
    model: Model,
    params: Any,
    batch: Batch,
    settings: Settings,
    length_penalty: jax.Array,
    *,
    cache_length: int,
    capacity: int,
    num_beams: int,
    num_samples: int,
    early_stopping: bool | None,
) -> Beams:
    """Reads the prompts and generates by beam search; see `prefill` and `decoding.beam_search`."""
    cache, first = _start(model, params, batch, cache_length, 0)
    return decoding.beam_search(
        _step_fn(model, params),
        cache,
        first,
        settings,
        num_beams=num_beams,
        capacity=capacity,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_samples=num_samples,
        prompts=_prompts(batch, first),
    )


def infill(
    model: Model,
    params: Any,
    batch: Batch,
    masked: jax.Array,
    settings: Settings,
    steps: jax.Array,
) -> Infilled:
    """Fills an encoder's mask tokens in `steps` `[rows]` iterations; see `decoding.infill`."""

    def logits(tokens: jax.Array) -> jax.Array:
        hidden, _ = model.hidden(params, {**_read(batch), "encoder_input_tokens": tokens})
        return model.logits(params, hidden)

    keys, tokens = _keys(batch["seeds"]), batch["encoder_input_tokens"]
    return decoding.infill(logits, tokens, masked, settings, turns=steps, keys=keys)


class Functions(NamedTuple):
    """The compiled functions of a model, each compiled once for each size; see `functions_of`."""

    prefill: Callable
    decode: Callable
    speculate: Callable
    search: Callable
    infill: Callable
    insert: Callable
    insert_settings: Callable


@functools.lru_cache(maxsize=16)
def functions_of(model: Model, layout: Layout, mesh: Mesh) -> Functions:
    """Returns a model's compiled functions, shared by equal arguments. `decode` and `speculate`
    donate the state; what a host reads, output and ended rows, is whole on every process."""
    decoder, whole = model.unstacked, NamedSharding(mesh, PartitionSpec())

    def decoded(*arguments: Any) -> tuple[State, tuple[Generated, jax.Array]]:
        state = decode(decoder, *arguments)
        return state, (state.generated, state.done)

    def speculated(*arguments: Any, **options: Any) -> tuple[Speculation, Any]:
        speculation = speculate(decoder, *arguments, **options)
        return speculation, (speculation.generated, speculation.state.done)

    def inserted(running: Any, rows: jax.Array, new: Any) -> Any:
        return running.insert(rows, new)

    def compiled(fn: Callable, static: str = "", **options: Any) -> Callable:
        return with_layout(fn, layout, mesh, static_argnames=tuple(static.split()), **options)

    sizes = "cache_length capacity num_samples"
    return Functions(
        prefill=compiled(functools.partial(prefill, decoder), f"{sizes} draft_length num_top"),
        decode=compiled(decoded, donate_argnums=1, out_shardings=(None, whole)),
        speculate=compiled(
            speculated, "draft_model draft_length", donate_argnums=2, out_shardings=(None, whole)
        ),
        search=compiled(
            functools.partial(search, decoder),
            f"{sizes} num_beams early_stopping",
            out_shardings=whole,
        ),
        infill=compiled(functools.partial(infill, model), out_shardings=whole),
        insert=compiled(inserted, donate_argnums=0),
        insert_settings=compiled(inserted),  # small, and partly shared by all batches
    )


@functools.lru_cache(maxsize=16)
def prepare_of(model: Model, layout: Layout, mesh: Mesh) -> Callable:
    """Returns the compiled function that unstacks parameters and shards them by a layout."""
    stacked, unstacked = (
        shardings(variant.axes(), layout.parameters, mesh) for variant in (model, model.unstacked)
    )
    unstack = with_layout(model.unstack, layout, mesh, out_shardings=unstacked)
    return lambda params: unstack(jax.device_put(params, stacked))


def _step_fn(model: Model, params: Any) -> StepFn:
    return lambda tokens, cache: model.extend(params, tokens, cache)


def _read(batch: Batch) -> dict[str, jax.Array]:
    return {name: array for name, array in batch.items() if name != "seeds"}


def _start(
    model: Model, params: Any, batch: Batch, cache_length: int, draft_length: int
) -> tuple[Any, jax.Array]:
    """Returns the cache, and `[rows]` int32 the last token of each prompt, or the start token."""
    cache = model.start(params, _read(batch), max_length=cache_length, draft_length=draft_length)
    if "decoder_lengths" not in batch:
        assert model.start_id is not None
        rows = len(batch["encoder_input_tokens"])
        return cache, jnp.full(rows, model.start_id, jnp.int32)
    last = batch["decoder_lengths"][:, None] - 1
    return cache, jnp.take_along_axis(batch["decoder_input_tokens"], last, axis=1)[:, 0]


def _prompts(batch: Batch, first: jax.Array) -> jax.Array:
    """Returns `[rows, n]` int32, the decoder's tokens before the output, -1 for padding."""
    if "decoder_lengths" not in batch:
        return first[:, None]
    tokens = batch["decoder_input_tokens"]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return jnp.where(positions < batch["decoder_lengths"][:, None], tokens, -1)


def _keys(seeds: jax.Array) -> jax.Array:
    """Returns `[rows]` PRNG keys of `seeds` `[rows, 2]` uint32: a seed, and a request's number."""
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1]))(seeds)
