"""Beam search: the best answers among the continuations of several hypotheses a row."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Shaped

from t5lite.decoding.constraints import Flags
from t5lite.decoding.generate import StepFn
from t5lite.decoding.output import Output
from t5lite.decoding.settings import Settings
from t5lite.errors import InputError

CHUNK = 128


class Beams(NamedTuple):
    """Finished answers, without prompts.

    Attributes:
      tokens: `[rows, capacity]` int32, the EOS included and `pad_id` after it.
      lengths: `[rows]` int32, tokens generated, the EOS included.
      token_log_probabilities: `[rows, capacity]` float32 in nats, as in `Generated`; one NaN or
        infinite logit ends an input's search and makes them NaN.
      scores: `[rows]` float32, the ranking: the sum of log-probabilities after `settings.adjusted`,
        divided by `lengths ** length_penalty`.
    """

    tokens: jax.Array
    lengths: jax.Array
    token_log_probabilities: jax.Array
    scores: jax.Array

    @property
    def log_probabilities(self) -> Any:
        """`[rows]` float32, the sums of `token_log_probabilities`."""
        return self.token_log_probabilities.sum(axis=-1)


class _State(NamedTuple):
    """A running search; beams are `[batch, num_beams, …]`, best first, -inf scores being empty."""

    running: Beams  # scores are sums, as all lengths are equal
    finished: Beams
    done: jax.Array  # [batch] bool
    broken: jax.Array  # [batch] bool: logits were not finite
    last: jax.Array  # [batch * num_beams] int32, the token to feed next
    cache: Any


def beam_search(
    step_fn: StepFn,
    cache: Any,
    first: Shaped[Array, " batch"],
    settings: Settings,
    *,
    num_beams: int,
    capacity: int,
    length_penalty: jax.Array | float = 1.0,
    early_stopping: bool | None = False,
    num_samples: int = 1,
    prompts: jax.Array | None = None,
) -> Beams:
    """Returns the answers with the best scores of a beam search.

    Each step ranks an input's best continuations, `num_beams` and as many more for each EOS. Ends
    among the best `num_beams` are finished; the best of the rest run on. Ends, stopping and ties,
    and so tokens, are as in transformers. Inputs are independent. Pure, traceable; jit the caller.

    Args:
      step_fn: see `decode`.
      cache, first, capacity, prompts: see `start`, of `batch` rows. `cache.repeat(n)` puts n copies
        of each row side by side, and `cache.reorder(rows)` moves row `rows[i]` to row i.
      settings: greedy; values by row are `[batch]`.
      num_beams: hypotheses of an input, at most the vocabulary; 1 is greedy, unless
        `early_stopping` is None.
      length_penalty: a scalar or `[batch]`, the power of the length that divides a finished
        answer's sum: above 0 favours longer answers, below 0 shorter ones.
      early_stopping: True stops at `num_beams` finished answers; False continues while the best
        running beam, at its current length, would rank among them; None ("never" in transformers)
        while it would if it grew to its limit without cost.
      num_samples: answers returned for each input, at most `num_beams`.
    Returns: `batch * num_samples` rows, an input's answers together and best first; if rules leave
    fewer answers, the remaining ones have length 0 and score -inf.
    Raises: InputError if a number is out of range or settings draw tokens.
    Source: Wu et al. 2016, arXiv:1609.08144, §7; stopping: `_beam_search` of transformers 5.
    """
    _check(settings, num_beams, num_samples, capacity, early_stopping)
    batch = first.shape[0]
    limits = jnp.minimum(capacity if settings.limits is None else settings.limits, capacity)
    search = _Search(
        step_fn,
        dataclasses.replace(settings, limits=limits),
        num_beams,
        early_stopping,
        _column(limits, batch),
        _column(length_penalty, batch),
        prompts,
        settings.flags(),
    )
    state = search.start(cache, first, capacity)
    state = jax.lax.while_loop(lambda state: ~jnp.all(state.done), search.step, state)
    best = jax.tree.map(lambda array: array[:, :num_samples], state.finished)
    gains = jnp.where(state.broken[:, None, None], jnp.nan, best.token_log_probabilities)
    best = best._replace(token_log_probabilities=gains)
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), best)


def _check(
    settings: Settings, num_beams: int, num_samples: int, capacity: int, early_stopping: bool | None
) -> None:
    if settings.sampling.temperature is not None:
        raise InputError("beam search draws nothing: leave temperature out, or set num_beams=1")
    stopping = early_stopping in (False, True, None)
    for name, value, valid, allowed in (
        ("num_beams", num_beams, num_beams >= 1, "at least 1"),
        (
            "num_samples",
            num_samples,
            1 <= num_samples <= num_beams,
            f"in 1..{num_beams} (num_beams)",
        ),
        ("capacity", capacity, capacity >= 1, "at least 1"),
        ("early_stopping", early_stopping, stopping, "False, True or None (never)"),
    ):
        if not valid:
            raise InputError(f"{name}={value!r} must be {allowed}", field=name)


@dataclasses.dataclass(frozen=True, eq=False)
class _Search:
    """The step of a search; `limits` and `penalty` are `[batch, 1]` float32."""

    step_fn: StepFn
    settings: Settings
    num_beams: int
    early_stopping: bool | None
    limits: jax.Array
    penalty: jax.Array
    prompts: jax.Array | None
    flags: Flags

    def start(self, cache: Any, first: jax.Array, capacity: int) -> _State:
        shape = (len(first), self.num_beams)
        empty = Beams(
            tokens=jnp.full((*shape, capacity), self.settings.pad_id, jnp.int32),
            lengths=jnp.zeros(shape, jnp.int32),
            token_log_probabilities=jnp.zeros((*shape, capacity), jnp.float32),
            scores=jnp.full(shape, -jnp.inf, jnp.float32),
        )
        return _State(
            running=empty._replace(scores=empty.scores.at[:, 0].set(0.0)),  # all are equal: one
            finished=empty,
            done=jnp.zeros(shape[0], bool),
            broken=jnp.zeros(shape[0], bool),
            last=jnp.repeat(first.astype(jnp.int32), self.num_beams),
            cache=cache.repeat(self.num_beams),
        )

    def step(self, state: _State) -> _State:
        """Extends each running beam by one token."""
        running, num_beams = state.running, self.num_beams
        batch = len(state.done)
        logits, cache = self.step_fn(state.last[:, None], state.cache)
        vocab = logits.shape[-1]
        if num_beams > vocab:
            raise InputError(
                f"num_beams={num_beams} is more than the vocabulary's {vocab} tokens",
                field="num_beams",
            )
        log_probabilities = jax.nn.log_softmax(logits[:, 0].astype(jnp.float32))
        log_probabilities = log_probabilities.reshape(batch, num_beams, vocab)
        # One NaN or infinity makes a whole softmax NaN.
        nan = jnp.isnan(log_probabilities[:, :, 0]) & (running.scores > -jnp.inf)
        broken = state.broken | (jnp.any(nan, axis=1) & ~state.done)
        sums = self._by_beam(self.settings.adjusted, running, log_probabilities)
        sums += running.scores[:, :, None]
        # Enough that num_beams of them run on, even if each EOS ends some.
        count = min(1 + max(1, self.settings.ends.shape[1]), vocab) * num_beams
        longer, parents, tokens = _continued(running, log_probabilities, sums, count)
        ended = self._by_beam(self.settings.ended, longer)

        enters = ended & (jnp.arange(count)[None] < num_beams) & ~state.done[:, None]
        finished = _joined(state.finished, longer, enters, self.penalty)
        going = longer._replace(scores=jnp.where(ended, -jnp.inf, longer.scores))
        order = jax.lax.top_k(going.scores, num_beams)[1]
        running, parents, tokens = _take((going, parents, tokens), order)

        reach = running.lengths[:, :1].astype(jnp.float32)
        if self.early_stopping is None:
            reach = jnp.where(self.penalty > 0, self.limits, reach)
        hope = (running.scores[:, :1] / reach**self.penalty)[:, 0]
        worst = finished.scores[:, -1]  # -inf while there are fewer than num_beams
        done = state.done | broken | ~(hope > worst)
        if self.early_stopping:
            done |= worst > -jnp.inf
        roots = jnp.arange(batch, dtype=jnp.int32)[:, None] * num_beams
        cache = cache.reorder((roots + parents).reshape(-1))
        return _State(running, finished, done, broken, tokens.reshape(-1), cache)

    def _by_beam(
        self, rule: Callable[..., jax.Array], beams: Beams, *logits: jax.Array
    ) -> jax.Array:
        """Applies a rule about `batch` rows to one beam of each input at a time."""

        def apply(beams: Beams, *logits: jax.Array) -> jax.Array:
            return rule(*logits, Output(beams.tokens, beams.lengths, self.prompts), self.flags)

        return jax.vmap(apply, in_axes=1, out_axes=1)(beams, *logits)


def top_k(
    scores: Float32[Array, "rows n"], k: int
) -> tuple[Float32[Array, "rows k"], Int32[Array, "rows k"]]:
    """`jax.lax.top_k`, on two CPU cores 5 to 12 times as fast for vocabularies of 32k to 256k: the
    k best are in the k chunks with the highest maxima, so few elements are sorted."""
    rows, n = scores.shape
    if n <= k * CHUNK:
        values, indices = jax.lax.top_k(scores, k)
        return values, indices
    padding = ((0, 0), (0, -n % CHUNK))
    chunks = jnp.pad(scores, padding, constant_values=-jnp.inf).reshape(rows, -1, CHUNK)
    best = jnp.sort(jax.lax.top_k(chunks.max(axis=-1), k)[1], axis=-1)  # ties: the lowest index
    chunks = jnp.take_along_axis(chunks, best[:, :, None], axis=1)
    values, indices = jax.lax.top_k(chunks.reshape(rows, -1), k)
    return values, jnp.take_along_axis(best, indices // CHUNK, axis=1) * CHUNK + indices % CHUNK


def _continued(
    running: Beams, log_probabilities: jax.Array, sums: jax.Array, k: int
) -> tuple[Beams, jax.Array, jax.Array]:
    """Returns the `k` best continuations of beams of equal length, their parents and tokens.

    Args:
      log_probabilities: `[batch, num_beams, vocab]` float32, of the model.
      sums: likewise, the scores of continuations.
    """
    batch, _, vocab = sums.shape
    sums, indices = top_k(sums.reshape(batch, -1), k)
    gains = jnp.take_along_axis(log_probabilities.reshape(batch, -1), indices, axis=1)
    parents, tokens = indices // vocab, indices % vocab
    old = _take(running, parents)
    at = running.lengths[0, 0]
    longer = Beams(
        tokens=old.tokens.at[:, :, at].set(tokens),
        lengths=old.lengths + 1,
        token_log_probabilities=old.token_log_probabilities.at[:, :, at].set(gains),
        scores=sums,
    )
    return longer, parents, tokens


def _joined(finished: Beams, beams: Beams, enters: jax.Array, penalty: jax.Array) -> Beams:
    ranked = beams.scores / beams.lengths.astype(jnp.float32) ** penalty
    beams = beams._replace(scores=jnp.where(enters, ranked, -jnp.inf))
    union = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), finished, beams)
    return _take(union, jax.lax.top_k(union.scores, finished.scores.shape[1])[1])


def _take(tree: Any, indices: jax.Array) -> Any:
    take = jax.vmap(lambda tree, indices: jax.tree.map(lambda array: array[indices], tree))
    return take(tree, indices)


def _column(values: jax.Array | float, batch: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(values).astype(jnp.float32), (batch,))[:, None]
