"""Autoregressive generation: one compiled loop over an explicit cache, one token a row and step."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from t5lite.decoding.constraints import Flags
from t5lite.decoding.output import Output, Rows, set_next
from t5lite.decoding.sampling import (
    draw,
    likeliest,
    token_log_probabilities,
    top_log_probabilities,
)
from t5lite.decoding.settings import Settings
from t5lite.errors import InputError

StepFn = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
_RECORDS = ("token_log_probabilities", "policy_log_probabilities")  # a number for each token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopTokens(Rows):
    """The model's most probable tokens at every step, `num_top` of them, best first.

    Args:
      tokens: `[rows, capacity, num_top]` int32.
      log_probabilities: `[rows, capacity, num_top]` float32 in nats, under softmax(logits).
    """

    tokens: jax.Array
    log_probabilities: jax.Array


class Generated(NamedTuple):
    """The output, without prompts.

    Attributes:
      tokens: `[rows, capacity]` int32, the EOS included, `pad_id` after it.
      lengths: `[rows]` int32, tokens generated, the EOS included.
      token_log_probabilities: `[rows, capacity]` float32 in nats, under the model's
        softmax(logits): before constraints and temperature; 0 after the end. NaN or infinite logits
        end a row with NaN.
      policy_log_probabilities: `[rows, capacity]` float32 in nats, under the distribution that the
        token was drawn from: after constraints, temperature and filters; 0 for greedy tokens.
      stuck: `[rows]` bool, rows that ended because rules allow no token; their last one is
        meaningless.
      top: see `TopTokens`; None unless `start` made room for them.
    """

    tokens: jax.Array
    lengths: jax.Array
    token_log_probabilities: jax.Array
    policy_log_probabilities: jax.Array
    stuck: jax.Array
    top: TopTokens | None = None

    @property
    def log_probabilities(self) -> Any:
        """`[rows]` float32, the sums of `token_log_probabilities`."""
        return self.token_log_probabilities.sum(axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State(Rows):
    """Rows under generation; may be donated to `decode`. `Generated` has the other fields.

    Args:
      last: `[rows]` int32, the token to feed next.
      done: `[rows]` bool, rows that have ended.
      keys: `[rows]` PRNG keys, so that a row's draws depend on no other row; None for greedy rows.
    """

    last: jax.Array
    done: jax.Array
    output: Output
    token_log_probabilities: jax.Array
    policy_log_probabilities: jax.Array
    stuck: jax.Array
    keys: jax.Array | None
    cache: Any
    top: TopTokens | None = None

    @property
    def generated(self) -> Generated:
        own = {name: getattr(self, name) for name in Generated._fields[2:]}
        return Generated(self.output.tokens, self.output.lengths, **own)


def start(
    cache: Any,
    first: Shaped[Array, " rows"],
    *,
    capacity: int,
    pad_id: int = 0,
    keys: jax.Array | None = None,
    prompts: jax.Array | None = None,
    num_top: int = 0,
) -> State:
    """Returns the state of rows without output.

    Args:
      cache: of the model, with all but the last token of each prompt; see `Model.start`.
      first: `[rows]` int32, that last token; of an encoder-decoder the start token.
      capacity: most tokens of a row, at least 1; the cache needs room for `capacity - 1`.
      pad_id: follows a row's end.
      keys: `[rows]` PRNG keys; needed to draw tokens.
      prompts: see `Output`.
      num_top: most probable tokens recorded at each step; see `Settings.num_top`.
    Raises: InputError if `capacity` is below 1.
    """
    if capacity < 1:
        raise InputError(f"capacity={capacity} must be at least 1", field="capacity")
    rows = first.shape[0]
    top = None
    if num_top:
        shape = (rows, capacity, num_top)
        top = TopTokens(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return State(
        last=first.astype(jnp.int32),
        done=jnp.zeros(rows, bool),
        output=Output.empty(rows, capacity, pad_id=pad_id, prompts=prompts),
        token_log_probabilities=jnp.zeros((rows, capacity), jnp.float32),
        policy_log_probabilities=jnp.zeros((rows, capacity), jnp.float32),
        stuck=jnp.zeros(rows, bool),
        keys=keys,
        cache=cache,
        top=top,
    )


def decode(
    step_fn: StepFn, state: State, settings: Settings, *, steps: jax.Array | int | None = None
) -> State:
    """Continues each row to its end. Pure and traceable; jit the caller.

    Args:
      step_fn: `(tokens [rows, n] int32, cache) -> (logits [rows, n, vocab], cache)`.
      state: as `start` or `decode` returned it.
      steps: most tokens a row now, e.g. 1 to stream them; None for all.
    Raises: InputError if there is a temperature but no keys.
    """
    if settings.sampling.temperature is not None and state.keys is None:
        raise InputError("a temperature draws tokens, which needs keys; None is greedy")
    most = state.output.tokens.shape[1] if steps is None else steps
    flags = settings.flags()

    def unfinished(loop: tuple[jax.Array, State]) -> jax.Array:
        count, state = loop
        return (count < most) & ~jnp.all(state.done)

    def turn(loop: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        count, state = loop
        logits, cache = step_fn(state.last[:, None], state.cache)
        return count + 1, _append(state, logits[:, 0], hold(cache, state), settings, flags)

    return jax.lax.while_loop(unfinished, turn, (jnp.int32(0), state))[1]


def hold(cache: Any, state: State) -> Any:
    """Returns the cache after a step, with the lengths of ended rows unchanged.

    Beyond the model's positions embeddings are NaN, which experts propagate to other rows.
    """
    if cache is None:  # a model without one
        return None
    return cache.rewind(jnp.where(state.done, state.cache.lengths, cache.lengths))


def _append(state: State, logits: jax.Array, cache: Any, settings: Settings, flags: Flags) -> State:
    output, going = state.output, ~state.done
    token, policy, allowed, stopped = _choose(logits, output, state.keys, settings, flags)
    gain = token_log_probabilities(logits, token)
    stuck = state.stuck | (going & ~allowed)
    longer = output.append(token, going)
    ended = settings.complete(longer) | stopped | stuck | jnp.isnan(gain)
    records = {
        name: set_next(getattr(state, name), output.lengths, values, going)
        for name, values in zip(_RECORDS, (gain, policy), strict=True)
    }
    return dataclasses.replace(
        state,
        last=jnp.where(going, token, state.last),
        done=state.done | ended,
        output=longer,
        stuck=stuck,
        cache=cache,
        top=_with_top(state, logits, going, flags),
        **records,
    )


def _choose(
    logits: jax.Array,
    output: Output,
    keys: jax.Array | None,
    settings: Settings,
    flags: Flags,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the next tokens `[rows]` int32, their log-probabilities under the policy `[rows]`
    float32, and two `[rows]` bool: whether rules allow a token, and whether it completes a stop."""

    def at(logits: jax.Array, token: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]

    def plain(logits: jax.Array, output: Output) -> tuple:
        """Greedy without rules by row: one pass over the logits."""
        logits = settings.constraints.without_banned(logits, output)
        token = likeliest(logits)
        never = jnp.zeros(token.shape, bool)
        return token, jnp.zeros(token.shape, jnp.float32), at(logits, token) > -jnp.inf, never

    def ruled(logits: jax.Array, output: Output) -> tuple:
        adjusted = settings.adjusted(logits, output, flags)
        own = None if keys is None else jax.vmap(jax.random.fold_in)(keys, output.lengths)
        token, policy = draw(adjusted, settings.sampling, own)
        stopped = settings.constraints.stopped(output.append(token), flags)
        return token, policy, at(adjusted, token) > -jnp.inf, stopped

    if settings.logits_fn is not None:
        return ruled(logits, output)
    rules = [flag for name, flag in flags.items() if name != "num_top"]
    if not rules:
        return plain(logits, output)
    return jax.lax.cond(jnp.any(jnp.stack(rules)), ruled, plain, logits, output)


def _with_top(state: State, logits: jax.Array, going: jax.Array, flags: Flags) -> TopTokens | None:
    """Returns the most probable tokens so far, this step's included if a row records them."""
    top, lengths = state.top, state.output.lengths
    if top is None:
        return None

    def record(top: TopTokens) -> TopTokens:
        values, tokens = top_log_probabilities(logits, top.tokens.shape[-1])
        return TopTokens(
            set_next(top.tokens, lengths, tokens, going),
            set_next(top.log_probabilities, lengths, values, going),
        )

    if "num_top" not in flags:
        return record(top)
    return jax.lax.cond(flags["num_top"], record, lambda top: top, top)


def generate(
    step_fn: StepFn,
    cache: Any,
    first: Shaped[Array, " rows"],
    settings: Settings,
    *,
    capacity: int,
    keys: jax.Array | None = None,
    prompts: jax.Array | None = None,
) -> Generated:
    """Generates to the end of each row: `start`, then `decode`, which have the arguments."""
    pad_id = settings.pad_id
    state = start(cache, first, capacity=capacity, pad_id=pad_id, keys=keys, prompts=prompts)
    return decode(step_fn, state, settings).generated
