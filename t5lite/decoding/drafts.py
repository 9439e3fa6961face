"""Drafts of speculative decoding: a smaller model, or n-grams of the text."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from t5lite.decoding.generate import State, StepFn
from t5lite.decoding.output import Output, Rows
from t5lite.decoding.sampling import categorical, filtered, likeliest
from t5lite.decoding.settings import Settings
from t5lite.errors import InputError


class Proposals(NamedTuple):
    """Proposed tokens.

    Attributes:
      tokens: `[rows, length]` int32, ids of the model's vocabulary.
      probabilities: `[rows, length, vocab]` float32, the distribution of each token, given those
        before it; None for greedy tokens.
      memory: of the draft after the proposal.
    """

    tokens: jax.Array
    probabilities: jax.Array | None
    memory: Any


class Draft(Protocol):
    """A proposer of tokens, whose memory is a pytree."""

    def propose(
        self, memory: Any, state: State, settings: Settings, keys: jax.Array | None, *, length: int
    ) -> Proposals:
        """Proposes `length` tokens a row after `state`'s output, drawn with `keys` `[rows]`."""
        ...

    def rewind(self, memory: Any, accepted: jax.Array, *, length: int) -> Any:
        """Returns the memory for the next turn, from that of `propose`.

        `accepted` `[rows]` int32 in [0, length + 1] counts tokens that became output: proposals,
        and one of the model's unless the row ended; 0 in rows that had ended before.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DraftMemory(Rows):
    """The tokens that a `ModelDraft` has read; `lagging` `[rows]` bool marks rows whose cache lacks
    the token before the last: a final proposal, which the draft never read."""

    cache: Any
    lagging: jax.Array

    @classmethod
    def of(cls, cache: Any) -> "DraftMemory":
        """Starts with a cache of all but the last token of each prompt."""
        return cls(cache, jnp.zeros(cache.lengths.shape, bool))


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """A smaller model of the same vocabulary, under the same settings; see `DraftMemory.of`."""

    step_fn: StepFn

    def propose(
        self,
        memory: DraftMemory,
        state: State,
        settings: Settings,
        keys: jax.Array | None,
        *,
        length: int,
    ) -> Proposals:
        flags = settings.flags()

        def choose(
            logits: jax.Array, output: Output, position: jax.Array
        ) -> tuple[jax.Array, jax.Array | None]:
            logits = settings.adjusted(logits, output, flags)
            if keys is None:
                return likeliest(logits), None

            def drawn(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
                policy = filtered(logits, settings.sampling)
                fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
                return categorical(fold(keys, position), policy), jax.nn.softmax(policy)

            def greedy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
                return likeliest(logits), jnp.zeros_like(logits)  # unused

            return jax.lax.cond(flags["temperature"], drawn, greedy, logits)

        def turn(carry: tuple, position: jax.Array) -> tuple[tuple, tuple]:
            token, output, cache = carry
            output = output.append(token)
            logits, cache = self.step_fn(token[:, None], cache)
            token, probabilities = choose(logits[:, 0], output, position)
            return (token, output, cache), (token, probabilities)

        # Lagging rows read two tokens first; the other rows of this step drop the second.
        output, lagging = state.output, memory.lagging
        before = jnp.maximum(output.lengths - 2, 0)[:, None]
        before = jnp.take_along_axis(output.tokens, before, axis=1)[:, 0]
        fed = jnp.stack([jnp.where(lagging, before, state.last), state.last], axis=1)
        logits, cache = self.step_fn(fed, memory.cache)
        cache = cache.rewind(memory.cache.lengths + 1 + lagging.astype(jnp.int32))
        logits = jnp.where(lagging[:, None], logits[:, 1], logits[:, 0])
        first = choose(logits, output, jnp.int32(0))
        positions = jnp.arange(1, length, dtype=jnp.int32)
        (_, _, cache), rest = jax.lax.scan(turn, (first[0], output, cache), positions)
        tokens, probabilities = jax.tree.map(
            lambda one, more: jnp.concatenate([one[:, None], jnp.moveaxis(more, 0, 1)], axis=1),
            first,
            rest,
        )
        return Proposals(tokens, probabilities, DraftMemory(cache, lagging))

    def rewind(self, memory: DraftMemory, accepted: jax.Array, *, length: int) -> DraftMemory:
        refused = jnp.maximum(length - accepted, 0)
        cache = memory.cache.rewind(memory.cache.lengths - refused)
        return DraftMemory(cache, accepted > length)


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Proposes what followed an earlier occurrence of the last tokens, without a model or memory.

    The longest match of up to `ngram` tokens in `references`, the prompts (see `Output`) and the
    output wins, and the latest of these; a match that overlaps the end repeats.

    Args:
      ngram: most tokens that must agree, at least 1.
      references: `[rows, n]` int32, further text to copy from (an encoder's inputs, a retrieved
        document), -1 for no token; None for none.
    Source: Saxena 2023, "Prompt lookup decoding"; Yang et al. 2023, arXiv:2304.04487, §3.
    """

    ngram: int = 3
    references: jax.Array | None = None

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise InputError(f"ngram={self.ngram} must be at least 1", field="ngram")

    def propose(
        self, memory: Any, state: State, settings: Settings, keys: jax.Array | None, *, length: int
    ) -> Proposals:
        padding = jnp.full((len(state.last), 1), -1, jnp.int32)  # for at least two positions
        parts = [padding] if self.references is None else [padding, self.references]
        text = state.output.text(before=jnp.concatenate(parts, axis=1))
        size = text.shape[1]
        same, agreeing = jnp.ones(text.shape, bool), jnp.zeros(text.shape, jnp.int32)
        for back in range(min(self.ngram, size)):  # from the end of a match to its beginning
            earlier = jnp.pad(text, ((0, 0), (back, 0)), constant_values=-1)[:, :size]
            same &= (earlier == text[:, size - 1 - back, None]) & (earlier >= 0)
            agreeing += same.astype(jnp.int32)
        # Without a match, the end is the last position but one: it proposes the last token again.
        ends = jnp.arange(size - 1, dtype=jnp.int32)[None]
        end = jnp.argmax(agreeing[:, :-1] * size + ends, axis=1).astype(jnp.int32)[:, None]
        positions = jnp.arange(length, dtype=jnp.int32)[None]
        tokens = jnp.take_along_axis(text, end + 1 + positions % (size - 1 - end), axis=1)
        return Proposals(jnp.maximum(tokens, 0), None, memory)

    def rewind(self, memory: Any, accepted: jax.Array, *, length: int) -> Any:
        return memory
