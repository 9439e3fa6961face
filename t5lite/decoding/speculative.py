"""Speculative decoding: a cheap draft proposes tokens, the model verifies several in one step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.decoding.constraints import Flags
from t5lite.decoding.drafts import Draft, Proposals
from t5lite.decoding.generate import Generated, State, StepFn, TopTokens
from t5lite.decoding.output import Output, Rows
from t5lite.decoding.sampling import (
    categorical,
    filtered,
    likeliest,
    token_log_probabilities,
    top_log_probabilities,
)
from t5lite.decoding.settings import Settings
from t5lite.errors import InputError

_COUNTS = ("turns", "judged", "accepted")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Speculation(Rows):
    """Rows under speculative decoding; may be donated to `speculate`.

    Args:
      state: of the rows, as `generate.start` returned it.
      memory: of the draft.
      turns: `[rows]` int32, steps of the model until the row's end.
      judged: `[rows]` int32, proposals up to the first refused one of each turn or the row's end.
      accepted: `[rows]` int32, judged proposals that became output.
    """

    state: State
    memory: Any
    turns: jax.Array
    judged: jax.Array
    accepted: jax.Array

    @classmethod
    def of(cls, state: State, memory: Any = None) -> "Speculation":
        """Starts with rows without output, and the memory of a draft, if it has any."""
        zeros = (jnp.zeros(state.done.shape, jnp.int32) for _ in _COUNTS)  # each may be donated
        return cls(state, memory, *zeros)

    @property
    def generated(self) -> Generated:
        return self.state.generated

    @property
    def acceptance_rate(self) -> jax.Array:
        """Rate in [0, 1], of all rows, at which a proposal is accepted after accepted ones; NaN
        before the first turn. Source: arXiv:2211.17192, definition 3.1."""
        accepted, judged = (jnp.sum(x).astype(jnp.float32) for x in (self.accepted, self.judged))
        return accepted / judged


def speculate(
    step_fn: StepFn,
    speculation: Speculation,
    settings: Settings,
    draft: Draft,
    *,
    draft_length: int,
    steps: jax.Array | int | None = None,
) -> Speculation:
    """Continues rows as `decode` does, with fewer steps of the model, whatever the draft.

    Each step appends the accepted proposals and one token of the model. Greedy rows are those of
    `decode`; sampled ones have the same distribution, but other draws.

    Args:
      step_fn: as in `decode`; its cache has `lengths` `[rows]` int32, `rewind(lengths)`, and room
        for `capacity + draft_length` tokens after the prompts, as has that of a `ModelDraft`.
        Windowed layers of both must be able to rewind `draft_length` tokens.
      speculation: as `Speculation.of` or `speculate` returned it.
      settings: rules see each proposal after the proposals before it.
      draft_length: tokens proposed a turn, at least 1.
      steps: most steps of the model now, e.g. 1 to stream; None for all.
    Raises: InputError for a `draft_length` below 1, a temperature without keys, another vocabulary.
    Source: Leviathan et al. 2022, arXiv:2211.17192, algorithm 1; Chen et al. 2023,
    arXiv:2302.01318, algorithm 2.
    """
    if draft_length < 1:
        raise InputError(f"draft_length={draft_length} must be at least 1", field="draft_length")
    most = speculation.state.output.tokens.shape[1] if steps is None else steps
    flags = settings.flags()

    def unfinished(loop: tuple[jax.Array, Speculation]) -> jax.Array:
        count, speculation = loop
        return (count < most) & ~jnp.all(speculation.state.done)

    def turn(loop: tuple[jax.Array, Speculation]) -> tuple[jax.Array, Speculation]:
        count, speculation = loop
        return count + 1, _turn(step_fn, speculation, settings, flags, draft, draft_length)

    return jax.lax.while_loop(unfinished, turn, (jnp.int32(0), speculation))[1]


def _turn(
    step_fn: StepFn,
    speculation: Speculation,
    settings: Settings,
    flags: Flags,
    draft: Draft,
    length: int,
) -> Speculation:
    state = speculation.state
    output, going = state.output, ~state.done
    draft_keys, model_keys = _keys(state, settings)
    proposals = draft.propose(speculation.memory, state, settings, draft_keys, length=length)
    fed = jnp.concatenate([state.last[:, None], proposals.tokens], axis=1)
    logits, cache = step_fn(fed, state.cache)

    # One for each token fed. Positions beyond a row's capacity are verified too, never output.
    index = jnp.broadcast_to(jnp.arange(length + 1, dtype=jnp.int32)[None], fed.shape)
    lengths = output.lengths[:, None] + index
    tentative = _extended(output, proposals.tokens, jnp.full_like(state.last, length))

    adjusted = _by_position(settings.adjusted, tentative, flags, lengths, logits)
    accepted, tokens, policy_gains = _verified(adjusted, proposals, settings, flags, model_keys)
    tentative = _extended(output, tokens, accepted + 1)
    # Output ends at the first end.
    ends = _by_position(settings.ended, tentative, flags, lengths + 1)
    count = jnp.where(jnp.any(ends, axis=1), jnp.argmax(ends, axis=1).astype(jnp.int32), length)
    count = jnp.where(going, jnp.minimum(count, accepted) + 1, 0)
    inside = index < count[:, None]
    gains = token_log_probabilities(logits, tokens)
    excluded = ~(jnp.take_along_axis(adjusted, tokens[..., None], axis=-1)[..., 0] > -jnp.inf)
    stuck = state.stuck | jnp.any(inside & excluded, axis=1)
    nan = jnp.any(inside & jnp.isnan(gains), axis=1)
    last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]

    def put(array: jax.Array, values: jax.Array) -> jax.Array:
        return _with(array, values, output.lengths, count)

    top = state.top
    if top is not None:
        values, best = top_log_probabilities(logits, top.tokens.shape[-1])
        top = TopTokens(put(top.tokens, best), put(top.log_probabilities, values))
    return Speculation(
        state=dataclasses.replace(
            state,
            last=jnp.where(going, last, state.last),
            done=state.done | jnp.any(ends & inside, axis=1) | stuck | nan,
            stuck=stuck,
            output=_extended(output, tokens, count),
            token_log_probabilities=put(state.token_log_probabilities, gains),
            policy_log_probabilities=put(state.policy_log_probabilities, policy_gains),
            cache=cache.rewind(state.cache.lengths + count),
            top=top,
        ),
        memory=draft.rewind(proposals.memory, count, length=length),
        turns=speculation.turns + going.astype(jnp.int32),
        judged=speculation.judged + jnp.minimum(count, length),
        accepted=speculation.accepted + jnp.minimum(count, accepted),
    )


def _by_position(
    rule: Callable, output: Output, flags: Flags, lengths: jax.Array, *logits: jax.Array
) -> jax.Array:
    """Applies a rule about rows to the output of each of `lengths` `[rows, n]`."""

    def apply(lengths: jax.Array, *logits: jax.Array) -> jax.Array:
        return rule(*logits, dataclasses.replace(output, lengths=lengths), flags)

    return jax.vmap(apply, in_axes=1, out_axes=1)(lengths, *logits)


def _keys(state: State, settings: Settings) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    """Returns this turn's keys `[rows]` of the draft and of the model; None if all is greedy."""
    if settings.sampling.temperature is None:
        return None, None
    if state.keys is None:
        raise InputError("a temperature draws tokens, which needs keys; None is greedy")
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.output.lengths)
    keys = jax.vmap(jax.random.split)(keys)
    return keys[:, 0], keys[:, 1]


def _verified(
    adjusted: jax.Array,
    proposals: Proposals,
    settings: Settings,
    flags: Flags,
    keys: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `[rows]` int32 the number of accepted proposals; and `[rows, length + 1]` these with
    the model's token after them, int32, and their log-probabilities under the policy, float32."""

    def spliced(accepted: jax.Array, last: jax.Array) -> jax.Array:
        tokens = jnp.pad(proposals.tokens, ((0, 0), (0, 1)))
        index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return jnp.where(index < accepted[:, None], tokens, last[:, None])

    def greedy(adjusted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        accepted, last = _agree(adjusted, proposals)
        return accepted, spliced(accepted, last), jnp.zeros(adjusted.shape[:2], jnp.float32)

    def drawn(adjusted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        policy = jax.vmap(lambda logits: filtered(logits, settings.sampling), 1, 1)(adjusted)
        assert keys is not None
        accepted, last = _accept(policy, proposals, keys)
        tokens = spliced(accepted, last)
        return accepted, tokens, token_log_probabilities(policy, tokens)

    if keys is None:
        return greedy(adjusted)
    return jax.lax.cond(flags["temperature"], drawn, greedy, adjusted)


def _agree(logits: jax.Array, proposals: Proposals) -> tuple[jax.Array, jax.Array]:
    """Returns `[rows]` int32 each: the number of greedy proposals, and the model's next token."""
    greedy = likeliest(logits)
    accepted = _leading(greedy[:, :-1] == proposals.tokens)
    return accepted, jnp.take_along_axis(greedy, accepted[:, None], axis=1)[:, 0]


def _accept(
    logits: jax.Array, proposals: Proposals, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `[rows]` int32 each: the number of accepted proposals, and the model's next token.

    With p of the model and q of the draft (1 at each token without probabilities), a proposal x is
    accepted with probability min(1, p(x) / q(x)), and a refused one is replaced by a draw from
    max(0, p - q), normalised. After the last proposal q is 0.
    """
    tokens, probabilities = proposals.tokens, proposals.probabilities
    length, vocab = tokens.shape[1], logits.shape[-1]
    if probabilities is not None and probabilities.shape[-1] != vocab:
        raise InputError(
            f"a draft with {probabilities.shape[-1]} tokens: the model has {vocab}; "
            "both need the same vocabulary"
        )
    keys = jax.vmap(jax.random.split)(keys)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (length,), jnp.float32))(keys[:, 0])
    p = jnp.exp(token_log_probabilities(logits[:, :-1], tokens))
    q = jnp.ones_like(p)
    if probabilities is not None:
        q = jnp.take_along_axis(probabilities, tokens[..., None], axis=-1)[..., 0]
    accepted = _leading(uniform * q < p)

    index = jnp.minimum(accepted, length - 1)[:, None]  # of the refused proposal
    p = jax.nn.softmax(jnp.take_along_axis(logits, accepted[:, None, None], axis=1)[:, 0])
    if probabilities is None:
        refused = jnp.take_along_axis(tokens, index, axis=1)[:, 0]
        q = jax.nn.one_hot(refused, vocab, dtype=jnp.float32)
    else:
        q = jnp.take_along_axis(probabilities, index[..., None], axis=1)[:, 0]
    rest = jnp.maximum(p - jnp.where((accepted < length)[:, None], q, 0.0), 0.0)
    # All zero only if rounding refused a token on which p and q agree.
    rest = jnp.where(jnp.any(rest > 0, axis=1, keepdims=True), rest, p)
    return accepted, categorical(keys[:, 1], jnp.log(rest))


def _leading(flags: jax.Array) -> jax.Array:
    """Returns `[rows]` int32: the number of `flags` `[rows, n]` bool before the first false one."""
    return jnp.sum(jnp.cumprod(flags.astype(jnp.int32), axis=1), axis=1)


def _extended(output: Output, tokens: jax.Array, counts: jax.Array) -> Output:
    """Returns the output with the first `counts` `[rows]` of `tokens` `[rows, n]` in each row."""
    return dataclasses.replace(
        output,
        tokens=_with(output.tokens, tokens, output.lengths, counts),
        lengths=output.lengths + counts,
    )


def _with(array: jax.Array, values: jax.Array, lengths: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns `array` with the first `counts` of `values` `[rows, n, …]` at and after `lengths`."""
    index = jnp.arange(array.shape[1], dtype=jnp.int32)[None] - lengths[:, None]
    inside = (index >= 0) & (index < counts[:, None])
    index = jnp.clip(index, 0, values.shape[1] - 1)
    trailing = [1] * (array.ndim - 2)
    new = jnp.take_along_axis(values, index.reshape(*index.shape, *trailing), axis=1)
    return jnp.where(inside.reshape(*inside.shape, *trailing), new, array)
