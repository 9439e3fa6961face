"""How the next token is chosen from its logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from t5lite.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from softmax(logits / temperature) less what the filters take out.

    Filters work in the order below, each on what the former left, renormalised. All leave at least
    one token a row, and tokens as likely as the last one kept stay in. Each value is a scalar,
    `[rows]` for one a row, or None, which leaves the filter out of the compiled function. One that
    is neutral in every row is skipped.

    Args:
      temperature: divides the logits, at least 0; where it is 0, and wherever with None, the row
        takes its likeliest token, the lowest id among equals, and no filter matters.
      top_k: keeps the k likeliest tokens; 0 is off. Source: Fan et al. 2018, arXiv:1805.04833.
      top_p: keeps the likeliest tokens, as few as together have this probability, in (0, 1]; 1 is
        off. Source: Holtzman et al. 2019, arXiv:1904.09751.
      min_p: keeps what is at least this times as likely as the likeliest, in [0, 1]; 0 is off.
        Source: Nguyen et al. 2024, arXiv:2407.01082.
      typical_p: keeps the tokens whose information is nearest to the entropy, as few as together
        have this probability, in (0, 1]; 1 is off. Source: Meister et al. 2022, arXiv:2202.00666.

    Raises:
      InputError: a Python number out of its range; arrays are not looked into.
    """

    temperature: jax.Array | float | None = None
    top_k: jax.Array | int | None = None
    top_p: jax.Array | float | None = None
    min_p: jax.Array | float | None = None
    typical_p: jax.Array | float | None = None

    def __post_init__(self) -> None:
        for name, allowed, good in (
            ("temperature", "at least 0 (greedy)", lambda value: 0 <= value < math.inf),
            ("top_k", "a whole number, at least 0 (off)", lambda value: value >= 0 == value % 1),
            ("top_p", "above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
            ("min_p", "from 0 (off) to 1", lambda value: 0 <= value <= 1),
            ("typical_p", "above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
        ):
            value = getattr(self, name)  # of any kind when JAX rebuilds the tree
            if isinstance(value, int | float) and not good(value):
                raise InputError(f"{name}={value} must be {allowed}", field=name)


def filtered(
    logits: Float[Array, "rows vocab"], sampling: Sampling
) -> Float32[Array, "rows vocab"]:
    """Returns the logits of the distribution that `choose` draws from.

    Args:
      logits: `[rows, vocab]`, any float dtype; -inf for tokens that may not come, not all.
      sampling: how tokens are drawn.

    Returns:
      `[rows, vocab]` float32, -inf where a token is out; in greedy rows all but one.
    """
    logits = logits.astype(jnp.float32)
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)  # no temperature can overflow these
    best = likeliest(logits)[:, None]
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    greedy = jnp.where(ids == best, 0.0, -jnp.inf)
    if sampling.temperature is None:
        return greedy
    temperature = _column(sampling.temperature)
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    for value, neutral, keeps in (
        (sampling.top_k, 0.0, _top_k),
        (sampling.top_p, 1.0, _top_p),
        (sampling.min_p, 0.0, _min_p),
        (sampling.typical_p, 1.0, _typical_p),
    ):
        if value is not None:  # skipped while it is neutral in every row
            column = _column(value)
            logits = jax.lax.cond(
                jnp.any(column != neutral),
                lambda logits, column, keeps=keeps: jnp.where(
                    keeps(logits, column), logits, -jnp.inf
                ),
                lambda logits, column: logits,
                logits,
                column,
            )
    return jnp.where(temperature > 0, logits, greedy)


# Filters: `(logits [rows, vocab], value [1 or rows, 1]) -> [rows, vocab]` bool, tokens that stay. A
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
    """Chooses one token a row.

    Args:
      logits: see `filtered`.
      sampling: how tokens are drawn.
      keys: `[rows]` PRNG keys, so that a row's draw depends on no other row; unused, so optional,
        when `temperature` is None.

    Returns:
      `[rows]` int32 token ids.

    Raises:
      InputError: sampling without keys.
    """
    return draw(logits, sampling, keys)[0]


def draw(
    logits: Float[Array, "rows vocab"], sampling: Sampling, keys: jax.Array | None
) -> tuple[Int32[Array, " rows"], Float32[Array, " rows"]]:
    """Does as `choose`, and returns log-probabilities as well; nothing is drawn if all is greedy.

    Args:
      logits, sampling, keys: see `choose`.

    Returns:
      `[rows]` int32 token ids, and `[rows]` float32 their log-probabilities after temperature and
      filters: 0 in greedy rows.
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
    return jax.lax.cond(jnp.any(_column(sampling.temperature) > 0), drawn, greedy, logits)


def categorical(keys: jax.Array, logits: Float[Array, "rows vocab"]) -> Int32[Array, " rows"]:
    """Draws `[rows]` int32 from `logits` `[rows, vocab]`, each row with its own key `[rows]`."""
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def likeliest(logits: Float[Array, "*rows vocab"]) -> Int32[Array, "*rows"]:
    """Returns `[...]` int32, the first place of the maximum of `logits` `[..., vocab]`.

    `jnp.argmax` in two reductions, each of which runs at full width: a quarter of its time on CPUs.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    highest = logits == jnp.max(logits, axis=-1, keepdims=True)
    last = logits.shape[-1] - 1  # where there is none: a NaN
    return jnp.min(jnp.where(highest, places, jnp.int32(last)), axis=-1)


def token_log_probabilities(
    logits: Float[Array, "*rows vocab"], tokens: Int32[Array, "*rows"]
) -> Float32[Array, "*rows"]:
    """Returns log softmax(logits) at `tokens`.

    Args:
      logits: `[..., vocab]`, any float dtype.
      tokens: `[...]` int32.

    Returns:
      `[...]` float32, nats.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]


def _column(value: jax.Array | float) -> jax.Array:
    """`[1, 1]` or `[rows, 1]` float32, which stands against `[rows, vocab]`."""
    return jnp.asarray(value, jnp.float32).reshape(-1, 1)


def _highest(scores: jax.Array, mass: jax.Array | float, needed: jax.Array) -> jax.Array:
    """Returns where the highest scores are, as few as together have the mass needed.

    Args:
      scores: `[rows, vocab]` float32; equal ones are in or out together.
      mass: `[rows, vocab]` float32 or one for all, at least 0.
      needed: `[rows, 1]` or `[1, 1]` float32; all scores are in if they have less.

    Returns:
      `[rows, vocab]` bool, true at least for each row's highest score.
    """
    # The lowest score that is in is found bit by bit, from the top, in the integers that order as
    # the floats do. It is exact, and 32 sums over the vocabulary take less than a tenth of the time
    # of a sort (8 x 32,128 scores on two CPU cores).
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def turn(count: jax.Array, lowest: jax.Array) -> jax.Array:
        higher = lowest ^ (jnp.int32(1) << (31 - count))
        enough = jnp.sum(jnp.where(order >= higher, mass, 0.0), axis=-1, keepdims=True) >= needed
        return jnp.where(enough, higher, lowest)

    start = jnp.full((scores.shape[0], 1), jnp.iinfo(jnp.int32).min, jnp.int32)
    lowest = jax.lax.fori_loop(0, 32, turn, start)
    return order >= jnp.minimum(lowest, jnp.max(order, axis=-1, keepdims=True))
