"""How the next token is chosen from its logits."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from t5lite.decoding.output import Rows
from t5lite.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling(Rows):
    """How tokens are drawn: from softmax(logits / temperature) after the filters.

    Filters apply in the order below, each to the renormalised distribution that the former left.
    All keep at least one token a row, and ties with the last one kept. Each value is a scalar,
    `[rows]`, or None, which leaves the filter out of the compiled function.

    Args:
      temperature: divides the logits, at least 0; at 0 or None the row is greedy: it takes its most
        probable token, the lowest id among equals, and ignores the filters.
      top_k: keeps the k most probable tokens; 0 is off. Source: Fan et al. 2018, arXiv:1805.04833.
      top_p: keeps the smallest set of most probable tokens with this probability, in (0, 1]; 1 is
        off. Source: Holtzman et al. 2019, arXiv:1904.09751.
      min_p: keeps tokens at least this times as probable as the most probable, in [0, 1]; 0 is off.
        Source: Nguyen et al. 2024, arXiv:2407.01082.
      typical_p: keeps the smallest set of tokens with information nearest to the entropy that has
        this probability, in (0, 1]; 1 is off. Source: Meister et al. 2022, arXiv:2202.00666.
    Raises: InputError if a Python number is out of range; arrays are not checked.
    """

    temperature: jax.Array | float | None = None
    top_k: jax.Array | int | None = None
    top_p: jax.Array | float | None = None
    min_p: jax.Array | float | None = None
    typical_p: jax.Array | float | None = None

    def __post_init__(self) -> None:
        check_numbers(
            self,
            temperature=("at least 0 (greedy)", lambda value: 0 <= value < math.inf),
            top_k=("a whole number, at least 0 (off)", lambda value: value >= 0 == value % 1),
            top_p=("above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
            min_p=("from 0 (off) to 1", lambda value: 0 <= value <= 1),
            typical_p=("above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
        )


def check_numbers(owner: Any, **ranges: tuple[str, Callable[[Any], bool]]) -> None:
    """Raises an InputError if a field of `owner` is a Python number out of its range."""
    for name, (allowed, in_range) in ranges.items():
        value = getattr(owner, name)  # of any type when JAX rebuilds the tree
        if isinstance(value, int | float) and not in_range(value):
            raise InputError(
                f"{name}={value} must be {allowed}", field=f"{type(owner).__name__}.{name}"
            )


def filtered(
    logits: Float[Array, "rows vocab"], sampling: Sampling
) -> Float32[Array, "rows vocab"]:
    """Returns `[rows, vocab]` float32, the logits that `choose` draws from: -inf for tokens
    filtered out, in greedy rows all but one.

    Args:
      logits: any float dtype; -inf for excluded tokens, not all.
    """
    logits = logits.astype(jnp.float32)
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)  # no temperature can overflow these
    best = likeliest(logits)[:, None]
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    greedy = jnp.where(ids == best, 0.0, -jnp.inf)
    if sampling.temperature is None:
        return greedy
    temperature = column(sampling.temperature)
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    for value, neutral, keeps in (
        (sampling.top_k, 0.0, _top_k),
        (sampling.top_p, 1.0, _top_p),
        (sampling.min_p, 0.0, _min_p),
        (sampling.typical_p, 1.0, _typical_p),
    ):
        if value is not None:  # skipped while it is neutral in every row
            values = column(value)
            logits = jax.lax.cond(
                jnp.any(values != neutral),
                lambda logits, values, keeps=keeps: jnp.where(
                    keeps(logits, values), logits, -jnp.inf
                ),
                lambda logits, values: logits,
                logits,
                values,
            )
    return jnp.where(temperature > 0, logits, greedy)


# Filters: `(logits [rows, vocab], value [1 or rows, 1]) -> [rows, vocab]` bool, the kept tokens. A
# row's highest logit is 0.


def _top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    return (k == 0) | _highest(logits, 1.0, k)


def _top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    return (p >= 1) | _highest(logits, jax.nn.softmax(logits), p)


def _min_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    return logits >= jnp.log(p)


def _typical_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(log_probabilities)
    information = jnp.where(probabilities > 0, -log_probabilities, 0.0)
    entropy = jnp.sum(probabilities * information, axis=-1, keepdims=True)
    typical = -jnp.abs(-log_probabilities - entropy)
    return (p >= 1) | _highest(typical, probabilities, p)


def choose(
    logits: Float[Array, "rows vocab"], sampling: Sampling, keys: jax.Array | None = None
) -> Int32[Array, " rows"]:
    """Returns one token a row, `[rows]` int32; see `draw`."""
    return draw(logits, sampling, keys)[0]


def draw(
    logits: Float[Array, "rows vocab"], sampling: Sampling, keys: jax.Array | None
) -> tuple[Int32[Array, " rows"], Float32[Array, " rows"]]:
    """Returns one token a row, and its log-probability after temperature and filters, 0 if greedy.

    Args:
      keys: `[rows]`, so that a row's draw depends on no other row; None where `temperature` is.
    Raises: InputError if rows are sampled without keys.
    """

    def greedy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return likeliest(logits), jnp.zeros(len(logits), jnp.float32)

    def drawn(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        assert keys is not None
        policy = filtered(logits, sampling)
        tokens = categorical(keys, policy)
        return tokens, token_log_probabilities(policy, tokens)

    if sampling.temperature is None:
        return greedy(logits)
    if keys is None:
        raise InputError("a temperature draws tokens, which needs keys; None is greedy")
    return jax.lax.cond(jnp.any(column(sampling.temperature) > 0), drawn, greedy, logits)


def categorical(keys: jax.Array, logits: Float[Array, "rows vocab"]) -> Int32[Array, " rows"]:
    """Draws `[rows]` int32 from `logits`, each row with its own key `[rows]`."""
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def likeliest(logits: Float[Array, "*rows vocab"]) -> Int32[Array, "*rows"]:
    """Returns the lowest id of the maximum: `jnp.argmax` in a quarter of its time on CPUs."""
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    highest = logits == jnp.max(logits, axis=-1, keepdims=True)
    last = logits.shape[-1] - 1  # of a row with a NaN, which has no maximum
    return jnp.min(jnp.where(highest, ids, jnp.int32(last)), axis=-1)


def token_log_probabilities(
    logits: Float[Array, "*rows vocab"], tokens: Int32[Array, "*rows"]
) -> Float32[Array, "*rows"]:
    """Returns log softmax(logits) of `tokens` `[...]` int32, `[...]` float32 in nats."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]


def top_log_probabilities(
    logits: Float[Array, "*rows vocab"], count: int
) -> tuple[Float32[Array, "*rows count"], Int32[Array, "*rows count"]]:
    """Returns the highest log softmax(logits) `[..., count]` in nats, and their ids."""
    values, ids = jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32)), count)
    return values, ids


def column(value: Any, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Returns a scalar or `[rows]` as `[1 or rows, 1]`, to broadcast against `[rows, vocab]`."""
    return jnp.asarray(value, dtype).reshape(-1, 1)


def _highest(scores: jax.Array, mass: jax.Array | float, needed: jax.Array) -> jax.Array:
    """Returns `[rows, vocab]` bool, the fewest highest scores that together have the needed mass.

    Args:
      scores: ties are kept or dropped together.
      mass: `[rows, vocab]` float32 or one for all, at least 0.
      needed: `[1 or rows, 1]` float32; a row with less keeps all scores, and any row its highest.
    """
    # Builds the lowest kept score bit by bit, from the top, in integers in the order of the floats.
    # It is exact, and 32 sums over the vocabulary take less than a tenth of the time of a sort
    # (8 x 32,128 scores on two CPU cores).
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def turn(count: jax.Array, lowest: jax.Array) -> jax.Array:
        higher = lowest ^ (jnp.int32(1) << (31 - count))
        enough = jnp.sum(jnp.where(order >= higher, mass, 0.0), axis=-1, keepdims=True) >= needed
        return jnp.where(enough, higher, lowest)

    start = jnp.full((scores.shape[0], 1), jnp.iinfo(jnp.int32).min, jnp.int32)
    lowest = jax.lax.fori_loop(0, 32, turn, start)
    return order >= jnp.minimum(lowest, jnp.max(order, axis=-1, keepdims=True))
