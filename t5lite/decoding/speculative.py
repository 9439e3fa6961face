"""Speculative decoding: a cheap draft proposes tokens, and the model verifies several in one step.

The output has exactly the distribution that `decode` gives it, whatever the draft.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from t5lite.decoding.constraints import Flags
from t5lite.decoding.generate import Generated, State, StepFn, TopTokens
from t5lite.decoding.output import Output, insert_rows
from t5lite.decoding.sampling import categorical, filtered, likeliest, token_log_probabilities
from t5lite.decoding.settings import Settings
from t5lite.errors import InputError


class Proposals(NamedTuple):
    """Proposed tokens.

    Args:
      tokens: `[rows, length]` int32, each a token that the model knows.
      probabilities: `[rows, length, vocab]` float32, the distribution of each token, given those
        before it; None where nothing was drawn.
      memory: of the draft after it proposed.
    """

    tokens: jax.Array
    probabilities: jax.Array | None
    memory: Any


class Draft(Protocol):
    """A proposer of tokens, whose memory is a pytree of its own."""

    def propose(
        self, memory: Any, state: State, settings: Settings, keys: jax.Array | None, *, length: int
    ) -> Proposals:
        """Proposes tokens after the output.

        Args:
          memory: the initial one, or as `rewind` returned it.
          state: of the model's rows.
          settings: of these rows.
          keys: `[rows]` PRNG keys, for this turn; None where nothing is drawn.
          length: tokens a row.
        """
        ...

    def rewind(self, memory: Any, kept: jax.Array, *, length: int) -> Any:
        """Returns the memory for the next turn.

        Args:
          memory: as `propose` returned it.
          kept: `[rows]` int32 in [0, length + 1], tokens that became output: proposals and one more
            of the model's own unless the row ended; 0 in rows that had ended before.
          length: as given to `propose`.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DraftMemory:
    """The tokens that a `ModelDraft` has read.

    Args:
      cache: of the draft.
      behind: `[rows]` bool, whether the token before the last is missing there: a proposal with no
        other behind it, which the draft never read itself.
    """

    cache: Any
    behind: jax.Array

    @classmethod
    def of(cls, cache: Any) -> "DraftMemory":
        """Begins with a cache that holds all but the last token of each prompt."""
        return cls(cache, jnp.zeros(cache.lengths.shape, bool))

    def insert(self, rows: jax.Array, new: "DraftMemory") -> "DraftMemory":
        """Replaces whole rows; see `State.insert`."""
        behind = insert_rows("behind", self.behind, rows, new.behind)
        return DraftMemory(self.cache.insert(rows, new.cache), behind)


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """A smaller model of the same vocabulary, held to the same settings; see `DraftMemory.of`.

    Args:
      step_fn: as in `decode`.
    """

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
            logits: jax.Array, output: Output, place: jax.Array
        ) -> tuple[jax.Array, jax.Array | None]:
            logits = settings.adjusted(logits, output, flags)
            if keys is None:
                return likeliest(logits), None

            def drawn(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
                policy = filtered(logits, settings.sampling)
                fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
                return categorical(fold(keys, place), policy), jax.nn.softmax(policy)

            def greedy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
                return likeliest(logits), jnp.zeros_like(logits)  # nobody reads these

            return jax.lax.cond(flags["temperature"], drawn, greedy, logits)

        def turn(carry: tuple, place: jax.Array) -> tuple[tuple, tuple]:
            token, output, cache = carry
            output = output.append(token)
            logits, cache = self.step_fn(token[:, None], cache)
            token, probabilities = choose(logits[:, 0], output, place)
            return (token, output, cache), (token, probabilities)

        # Rows that are behind read two tokens first. The others, which share the step, forget the
        # second.
        output, behind = state.output, memory.behind
        before = jnp.maximum(output.lengths - 2, 0)[:, None]
        before = jnp.take_along_axis(output.tokens, before, axis=1)[:, 0]
        fed = jnp.stack([jnp.where(behind, before, state.last), state.last], axis=1)
        logits, cache = self.step_fn(fed, memory.cache)
        cache = cache.rewind(memory.cache.lengths + 1 + behind.astype(jnp.int32))
        logits = jnp.where(behind[:, None], logits[:, 1], logits[:, 0])
        first = choose(logits, output, jnp.int32(0))
        places = jnp.arange(1, length, dtype=jnp.int32)
        (_, _, cache), others = jax.lax.scan(turn, (first[0], output, cache), places)
        tokens, probabilities = jax.tree.map(
            lambda one, more: jnp.concatenate([one[:, None], jnp.moveaxis(more, 0, 1)], axis=1),
            first,
            others,
        )
        return Proposals(tokens, probabilities, DraftMemory(cache, behind))

    def rewind(self, memory: DraftMemory, kept: jax.Array, *, length: int) -> DraftMemory:
        forgotten = jnp.maximum(length - kept, 0)
        cache = memory.cache.rewind(memory.cache.lengths - forgotten)
        return DraftMemory(cache, kept > length)


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Proposes what followed an earlier occurrence of the last tokens; needs no model or memory.

    It looks in `references`, in the prompts (see `Output`) and in the output, for the longest
    match up to `ngram` tokens, and takes the latest of those; text that runs into its own end goes
    round.

    Args:
      ngram: most tokens that must agree, at least 1.
      references: `[rows, n]` int32, further text that may be copied, such as an encoder's inputs or
        a retrieved document, -1 where there is no token; None for none.

    Source: Saxena 2023, "Prompt lookup decoding"; Yang et al. 2023, arXiv:2304.04487, §3, for
    references.
    """

    ngram: int = 3
    references: jax.Array | None = None

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise InputError(f"ngram={self.ngram} must be at least 1", field="ngram")

    def propose(
        self, memory: Any, state: State, settings: Settings, keys: jax.Array | None, *, length: int
    ) -> Proposals:
        nothing = jnp.full((len(state.last), 1), -1, jnp.int32)  # so that there are two places
        parts = [nothing] if self.references is None else [nothing, self.references]
        text = state.output.text(before=jnp.concatenate(parts, axis=1))
        size = text.shape[1]
        same, agreeing = jnp.ones(text.shape, bool), jnp.zeros(text.shape, jnp.int32)
        for back in range(min(self.ngram, size)):  # from the end of a match to its beginning
            earlier = jnp.pad(text, ((0, 0), (back, 0)), constant_values=-1)[:, :size]
            same &= (earlier == text[:, size - 1 - back, None]) & (earlier >= 0)
            agreeing += same.astype(jnp.int32)
        # Without a match that is the last place but one, and the last token is proposed again.
        ends = jnp.arange(size - 1, dtype=jnp.int32)[None]
        end = jnp.argmax(agreeing[:, :-1] * size + ends, axis=1).astype(jnp.int32)[:, None]
        places = jnp.arange(length, dtype=jnp.int32)[None]
        tokens = jnp.take_along_axis(text, end + 1 + places % (size - 1 - end), axis=1)
        return Proposals(jnp.maximum(tokens, 0), None, memory)

    def rewind(self, memory: Any, kept: jax.Array, *, length: int) -> Any:
        return memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Speculation:
    """Speculative decoding under way; give it to `speculate`, which may have its memory.

    Args:
      state: of the rows, as `generate.start` returned it.
      memory: of the draft.
      turns: `[rows]` int32, steps of the model until the row's end.
      judged: `[rows]` int32, proposals up to the first refused one of each turn or the row's end.
      accepted: `[rows]` int32, those of them that became output.
    """

    state: State
    memory: Any
    turns: jax.Array
    judged: jax.Array
    accepted: jax.Array

    @classmethod
    def of(cls, state: State, memory: Any = None) -> "Speculation":
        """Begins with rows without output, and the memory of a draft, if it has any."""
        zeros = (jnp.zeros(state.done.shape, jnp.int32) for _ in range(3))  # each may be donated
        return cls(state, memory, *zeros)

    def insert(self, rows: jax.Array, new: "Speculation") -> "Speculation":
        """Replaces whole rows; see `State.insert`."""
        memory = None if self.memory is None else self.memory.insert(rows, new.memory)
        counts = (
            insert_rows(name, getattr(self, name), rows, getattr(new, name))
            for name in ("turns", "judged", "accepted")
        )
        return Speculation(self.state.insert(rows, new.state), memory, *counts)

    @property
    def generated(self) -> Generated:
        return self.state.generated

    @property
    def acceptance_rate(self) -> jax.Array:
        """Float32 scalar in [0, 1], of all rows: how likely a proposal is to be accepted if those
        before it were; nan before the first turn. Source: arXiv:2211.17192, definition 3.1."""
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
    """Does as `decode` does, with fewer steps of the model.

    In each, a row writes the proposals that are accepted and one token of the model's own. Greedy
    rows are those of `decode`, and drawn ones have the same distribution, but other draws.

    Args:
      step_fn: as in `decode`; its cache has `lengths` `[rows]` int32, `rewind(lengths)`, and room
        for `capacity + draft_length` tokens after the prompts, as has that of a `ModelDraft`. Where
        layers see windows, both must be able to take back `draft_length` tokens.
      speculation: as `Speculation.of` or `speculate` returned it.
      settings: how rows are generated. Rules see each proposal as if those before it were output.
      draft: what proposes tokens.
      draft_length: tokens that it proposes a turn, at least 1.
      steps: most steps of the model now, e.g. 1 to show tokens as they come; None for all.

    Raises:
      InputError: no token to propose, no keys where tokens are drawn, or a draft of another
        vocabulary.

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
    """Returns the speculation after one step of the model."""
    state = speculation.state
    output, going = state.output, ~state.done
    draft_keys, own_keys = _keys(state, settings)
    proposals = draft.propose(speculation.memory, state, settings, draft_keys, length=length)
    fed = jnp.concatenate([state.last[:, None], proposals.tokens], axis=1)
    logits, cache = step_fn(fed, state.cache)

    # One for each token fed. A place beyond a row's capacity is verified too, and never output.
    places = jnp.arange(length + 1, dtype=jnp.int32)[None]
    at = jnp.broadcast_to(places, fed.shape)
    lengths = output.lengths[:, None] + at
    tentative = _extended(output, proposals.tokens, jnp.full_like(state.last, length))

    def rules(logits: jax.Array, lengths: jax.Array) -> jax.Array:
        return settings.adjusted(logits, dataclasses.replace(tentative, lengths=lengths), flags)

    adjusted = jax.vmap(rules, in_axes=1, out_axes=1)(logits, lengths)

    def spliced(accepted: jax.Array, own: jax.Array) -> jax.Array:
        """Returns the accepted proposals, then the model's own token."""
        tokens = jnp.pad(proposals.tokens, ((0, 0), (0, 1)))
        return jnp.where(at < accepted[:, None], tokens, own[:, None])

    def greedy(adjusted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        accepted, own = _agree(adjusted, proposals)
        return accepted, spliced(accepted, own), jnp.zeros(fed.shape, jnp.float32)

    def drawn(adjusted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        by_place = jax.vmap(lambda logits: filtered(logits, settings.sampling), 1, 1)
        policy = by_place(adjusted)
        assert own_keys is not None
        accepted, own = _accept(policy, proposals, own_keys)
        tokens = spliced(accepted, own)
        return accepted, tokens, token_log_probabilities(policy, tokens)

    if own_keys is None:
        accepted, tokens, policy_gains = greedy(adjusted)
    else:
        accepted, tokens, policy_gains = jax.lax.cond(flags["temperature"], drawn, greedy, adjusted)
    tentative = _extended(output, tokens, accepted + 1)

    def ended(lengths: jax.Array) -> jax.Array:
        return settings.ended(dataclasses.replace(tentative, lengths=lengths), flags)

    # All that up to an end.
    ends = jax.vmap(ended, in_axes=1, out_axes=1)(lengths + 1)
    kept = jnp.where(jnp.any(ends, axis=1), jnp.argmax(ends, axis=1).astype(jnp.int32), length)
    kept = jnp.where(going, jnp.minimum(kept, accepted) + 1, 0)
    inside = at < kept[:, None]
    gains = token_log_probabilities(logits, tokens)
    chosen = jnp.take_along_axis(adjusted, tokens[..., None], axis=-1)[..., 0]
    stuck = state.stuck | jnp.any(inside & ~(chosen > -jnp.inf), axis=1)
    nan = jnp.any(inside & jnp.isnan(gains), axis=1)
    last = jnp.take_along_axis(tokens, jnp.maximum(kept - 1, 0)[:, None], axis=1)[:, 0]

    def put(array: jax.Array, values: jax.Array) -> jax.Array:
        return _with(array, values, output.lengths, kept)

    top = state.top
    if top is not None:
        values, best = jax.lax.top_k(
            jax.nn.log_softmax(logits.astype(jnp.float32)), top.tokens.shape[-1]
        )
        top = TopTokens(put(top.tokens, best), put(top.log_probabilities, values))
    return Speculation(
        state=dataclasses.replace(
            state,
            last=jnp.where(going, last, state.last),
            done=state.done | jnp.any(ends & inside, axis=1) | stuck | nan,
            stuck=stuck,
            output=_extended(output, tokens, kept),
            token_log_probabilities=put(state.token_log_probabilities, gains),
            policy_log_probabilities=put(state.policy_log_probabilities, policy_gains),
            cache=cache.rewind(state.cache.lengths + kept),
            top=top,
        ),
        memory=draft.rewind(proposals.memory, kept, length=length),
        turns=speculation.turns + going.astype(jnp.int32),
        judged=speculation.judged + jnp.minimum(kept, length),
        accepted=speculation.accepted + jnp.minimum(kept, accepted),
    )


def _keys(state: State, settings: Settings) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    """Returns this turn's keys `[rows]` of the draft and of the model; None where all is greedy."""
    if settings.sampling.temperature is None:
        return None, None
    if state.keys is None:
        raise InputError("a temperature draws tokens, which needs keys; None is greedy")
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.output.lengths)
    keys = jax.vmap(jax.random.split)(keys)
    return keys[:, 0], keys[:, 1]


def _agree(logits: jax.Array, proposals: Proposals) -> tuple[jax.Array, jax.Array]:
    """Returns `[rows]` int32 each: how many proposals are greedy, and the token behind them."""
    greedy = likeliest(logits)
    accepted = _leading(greedy[:, :-1] == proposals.tokens)
    return accepted, jnp.take_along_axis(greedy, accepted[:, None], axis=1)[:, 0]


def _accept(
    logits: jax.Array, proposals: Proposals, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `[rows]` int32 each: how many proposals are accepted, and the token behind them.

    With p of the model and q of the draft, a proposal x is accepted with probability
    min(1, p(x) / q(x)), and a refused one is replaced by a draw from max(0, p - q), normalised.
    Behind the last q is 0.

    Args:
      logits: `[rows, length + 1, vocab]` float32, of p.
      proposals: see `Proposals`; without probabilities q is 1 at each token.
      keys: `[rows]`.
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

    place = jnp.minimum(accepted, length - 1)[:, None]  # of the refused one
    behind = jnp.take_along_axis(logits, accepted[:, None, None], axis=1)[:, 0]
    p = jax.nn.softmax(behind)
    if probabilities is None:
        refused = jnp.take_along_axis(tokens, place, axis=1)[:, 0]
        q = jax.nn.one_hot(refused, vocab, dtype=jnp.float32)
    else:
        q = jnp.take_along_axis(probabilities, place[..., None], axis=1)[:, 0]
    rest = jnp.maximum(p - jnp.where((accepted < length)[:, None], q, 0.0), 0.0)
    # Nothing is left only where rounding refused what p and q agree on.
    rest = jnp.where(jnp.any(rest > 0, axis=1, keepdims=True), rest, p)
    return accepted, categorical(keys[:, 1], jnp.log(rest))


def _leading(flags: jax.Array) -> jax.Array:
    """Returns `[rows]` int32: how many of `flags` `[rows, n]` bool are true before the first that
    is not."""
    return jnp.sum(jnp.cumprod(flags.astype(jnp.int32), axis=1), axis=1)


def _extended(output: Output, tokens: jax.Array, counts: jax.Array) -> Output:
    """Returns the output with the first `counts` `[rows]` of `tokens` `[rows, n]` in each row."""
    return dataclasses.replace(
        output,
        tokens=_with(output.tokens, tokens, output.lengths, counts),
        lengths=output.lengths + counts,
    )


def _with(array: jax.Array, values: jax.Array, lengths: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns `array` `[rows, capacity, …]` with the first `counts` `[rows]` of `values`
    `[rows, n, …]` at and after `lengths` `[rows]`."""
    places = jnp.arange(array.shape[1], dtype=jnp.int32)[None] - lengths[:, None]
    here = (places >= 0) & (places < counts[:, None])
    places = jnp.clip(places, 0, values.shape[1] - 1)
    trailing = [1] * (array.ndim - 2)
    new = jnp.take_along_axis(values, places.reshape(*places.shape, *trailing), axis=1)
    return jnp.where(here.reshape(*here.shape, *trailing), new, array)
