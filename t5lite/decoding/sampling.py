"""How the next token is chosen from its logits."""

import numbers

import jax
import jax.numpy as jnp

from t5lite.errors import InputError


def choose(
    logits: jax.Array, rng: jax.Array | None, *, temperature: float | jax.Array = 0.0
) -> jax.Array:
    """Chooses one token a row: the likeliest, or a sample from softmax(logits / temperature).

    Args:
      logits: `[batch, vocab]`, any float dtype.
      rng: key of the draw; unused, so optional, when greedy.
      temperature: a Python 0 is greedy; otherwise above 0, and it may be a traced scalar.

    Returns:
      `[batch]` int32 token ids. Greedy ties go to the lowest id.

    Raises:
      InputError: a negative temperature, or sampling without a key.
    """
    if isinstance(temperature, numbers.Real):
        if temperature < 0:
            raise InputError(f"temperature={temperature} is negative; 0 is greedy, 1 samples")
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if rng is None:
        raise InputError("sampling needs rng=jax.random.key(...); temperature=0 needs none")
    scaled = logits.astype(jnp.float32) / jnp.asarray(temperature, jnp.float32)
    return jax.random.categorical(rng, scaled).astype(jnp.int32)


def token_log_probabilities(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns log softmax(logits) at `tokens`.

    Args:
      logits: `[..., vocab]`, any float dtype.
      tokens: `[...]` int32.

    Returns:
      `[...]` float32, nats.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]
