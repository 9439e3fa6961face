"""The compiled functions that models write with: prompts, options and seeds in, tokens out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.decoding import (
    ModelDraft,
    PromptLookup,
    Settings,
    advance,
    beam_search,
    begin,
    infill,
    speculate,
)
from t5lite.decoding.generate import StepFn
from t5lite.inference.answers import first_tokens
from t5lite.models import Model
from t5lite.parallel import Layout, with_layout


class Functions(NamedTuple):
    """The compiled functions that a model writes with; each compiles for every new size."""

    begin: Callable
    advance: Callable
    search: Callable
    infill: Callable
    speculate: Callable


def compile_functions(model: Model, layout: Layout, mesh: Mesh) -> Functions:
    """Returns the compiled functions of a model.

    Those that write take the parameters of `Model.unstack`.
    """
    decoding = model.unstacked
    whole = NamedSharding(mesh, PartitionSpec())  # so that any process can read it

    def step_fn(model: Model, params: Any) -> StepFn:
        return lambda tokens, cache: model.extend(params, tokens, cache)

    def prompts_of(batch: Any, first: jax.Array) -> jax.Array:
        """Returns all that the decoder has read, -1 where there is nothing."""
        if "decoder_lengths" not in batch:
            return first[:, None]
        tokens = batch["decoder_input_tokens"]
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        inside = jnp.broadcast_to(places, tokens.shape) < batch["decoder_lengths"][:, None]
        return jnp.where(inside, tokens, -1)

    def start(params: Any, batch: Any, room: int, ahead: int = 0) -> tuple[Any, jax.Array]:
        taken = batch["decoder_input_tokens"].shape[1] if "decoder_lengths" in batch else 1
        # The last new token is never read.
        length = taken + room - 1 + ahead
        cache = decoding.start(params, batch, max_length=length, draft_length=ahead)
        return cache, first_tokens(decoding, batch)

    def begun(
        params: Any,
        batch: Any,
        seeds: jax.Array | None,
        room: int,
        num_samples: int,
        ahead: int,
        asked: bool,
    ) -> Any:
        cache, first = start(params, batch, room, ahead)
        prompts = prompts_of(batch, first) if asked else None
        keys = None if seeds is None else _keys(seeds)
        if num_samples > 1:
            repeat = lambda array: jnp.repeat(array, num_samples, axis=0)  # noqa: E731
            cache, first = cache.repeat(num_samples), repeat(first)
            prompts = None if prompts is None else repeat(prompts)
            if keys is not None:
                samples = jnp.arange(num_samples, dtype=jnp.uint32)
                fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
                keys = fold(keys, samples).reshape(-1)
        return begin(cache, first, room=room, keys=keys, prompts=prompts)

    def advanced(params: Any, state: Any, settings: Settings, steps: jax.Array) -> Any:
        state = advance(step_fn(decoding, params), state, settings, steps=steps)
        return state, (state.generated, state.done)

    def speculated(
        params: Any,
        draft_params: Any,
        state: Any,
        settings: Settings,
        steps: jax.Array,
        references: jax.Array | None,
        draft_model: Model | None,
        length: int,
    ) -> Any:
        draft: Any = PromptLookup(references=references)
        if draft_model is not None:
            draft = ModelDraft(step_fn(draft_model, draft_params))
        state = speculate(
            step_fn(decoding, params), state, settings, draft, draft_length=length, steps=steps
        )
        return state, (state.generated, state.state.done)

    def searched(
        params: Any,
        batch: Any,
        settings: Settings,
        penalties: jax.Array,
        room: int,
        num_beams: int,
        num_samples: int,
        early_stopping: bool | None,
    ) -> Any:
        cache, first = start(params, batch, room)
        asked = settings.constraints.reads_prompts
        return beam_search(
            step_fn(decoding, params),
            cache,
            first,
            settings,
            num_beams=num_beams,
            room=room,
            length_penalty=penalties,
            early_stopping=early_stopping,
            num_samples=num_samples,
            prompts=prompts_of(batch, first) if asked else None,
        )

    def filled(
        params: Any, batch: Any, masked: jax.Array, settings: Settings, seeds: Any, turns: jax.Array
    ) -> Any:
        def logits(tokens: jax.Array) -> jax.Array:
            hidden, _ = model.hidden(params, {**batch, "encoder_input_tokens": tokens})
            return model.logits(params, hidden)

        keys = None if seeds is None else _keys(seeds)
        tokens = batch["encoder_input_tokens"]
        return infill(logits, tokens, masked, settings, turns=turns, keys=keys)

    def compiled(fn: Callable, **options: Any) -> Callable:
        return with_layout(fn, layout, mesh, **options)

    return Functions(
        begin=compiled(begun, static_argnums=(3, 4, 5, 6)),
        advance=compiled(advanced, donate_argnums=1, out_shardings=(None, whole)),
        search=compiled(searched, static_argnums=(4, 5, 6, 7), out_shardings=whole),
        infill=compiled(filled, out_shardings=whole),
        speculate=compiled(
            speculated, static_argnums=(6, 7), donate_argnums=2, out_shardings=(None, whole)
        ),
    )


def _keys(seeds: jax.Array) -> jax.Array:
    """Returns `[rows]` PRNG keys of `seeds` `[rows, 2]` uint32: a seed, and a text's number."""
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1]))(seeds)
