"""Stop texts, found in the text that tokens make, wherever tokens begin and end."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding.written import Written

_NOTHING, _FOUND, _BEGIN = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stops:
    """An automaton over tokens that says which of them completes a stop; see `stop_table`.

    Args:
      table: `[states, vocab]` integer, the state after a token. State 0: no stop has begun, 1: one
        is complete, 2: the answer begins.
      span: the most tokens that a stop lies in, a byte each; one with tokens of no text among them
        may be longer, and is missed.
    """

    table: jax.Array
    span: int = dataclasses.field(metadata={"static": True})

    def is_possible(self) -> bool:
        """Whether there are tokens that complete a stop; on the host."""
        table = np.asarray(self.table)
        reached = {_BEGIN, _NOTHING}
        while (more := reached | {*np.unique(table[[*reached]]).tolist()}) != reached:
            reached = more
        return _FOUND in reached

    def found(self, written: Written) -> jax.Array:
        """Returns `[rows]` bool: whether the text of a row holds a stop that ends in its last
        token. Prompts do not count."""
        first = written.lengths - self.span

        def step(back: jax.Array, state: jax.Array) -> jax.Array:
            place = first + back
            at = jnp.maximum(place, 0)[:, None]
            token = jnp.take_along_axis(written.tokens, at, axis=1)[:, 0]
            state = jnp.where(place == 0, _BEGIN, state)
            return jnp.where(place < 0, state, self.table[state, token].astype(jnp.int32))

        start = jnp.zeros(written.lengths.shape, jnp.int32)
        return jax.lax.fori_loop(0, self.span, step, start) == _FOUND


def stop_table(
    stops: Sequence[bytes], tokens: Sequence[bytes], *, first: Sequence[bytes] | None = None
) -> Stops:
    """Returns the automaton of some stops.

    Args:
      stops: UTF-8, at least one, none empty.
      tokens: what each id adds to a text, UTF-8 or part of it; b"" for nothing.
      first: what each id is as an answer's first token; None: the same.

    Source: Aho & Corasick 1975, "Efficient string matching", with a byte a step, run over whole
    tokens in advance.
    """
    steps = _byte_steps(stops)
    num_states = 1 << (len(steps) - 1).bit_length()  # few sizes, few compilations
    table = np.zeros((num_states, len(tokens)), np.int16 if num_states < 2**15 else np.int32)
    everywhere = _as_matrix(tokens)
    for state in range(len(steps)):
        table[state] = _run(steps, state, *everywhere)
    table[_BEGIN] = _run(steps, _NOTHING, *(everywhere if first is None else _as_matrix(first)))
    longest = max(map(len, stops))
    return Stops(table, 1 << (longest - 1).bit_length())  # type: ignore[arg-type]


def _byte_steps(stops: Sequence[bytes]) -> np.ndarray:
    """Returns `[states, 256]` int32: the state after a byte, with 1 for a complete stop."""
    children: list[dict[int, int]] = [{}, {}, {}]
    for stop in stops:
        state = _NOTHING
        for at, byte in enumerate(stop):
            if at == len(stop) - 1:
                children[state][byte] = _FOUND
            elif children[state].get(byte) == _FOUND:
                break  # a shorter stop is complete before
            else:
                if byte not in children[state]:
                    children[state][byte] = len(children)
                    children.append({})
                state = children[state][byte]
    steps = np.zeros((len(children), 256), np.int32)
    steps[_FOUND] = _FOUND
    queue = [(_NOTHING, _NOTHING)]  # states, and the longest suffix of each that is a state too
    for state, suffix in queue:
        if state != _NOTHING:
            steps[state] = steps[suffix]
        for byte, child in children[state].items():
            after = _NOTHING if state == _NOTHING else int(steps[suffix, byte])
            steps[state, byte] = child if after != _FOUND else _FOUND
            if child != _FOUND:
                queue.append((child, after))
    return steps


def _as_matrix(tokens: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bytes of tokens, `[longest, vocab]` uint8, and their lengths `[vocab]`."""
    lengths = np.array([len(token) for token in tokens], np.int32)
    matrix = np.zeros((max(int(lengths.max(initial=0)), 1), len(tokens)), np.uint8)
    for column, token in enumerate(tokens):
        matrix[: len(token), column] = np.frombuffer(token, np.uint8)
    return matrix, lengths


def _run(steps: np.ndarray, state: int, matrix: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns `[vocab]` int32, the state after each token from one state."""
    states = np.full(len(lengths), state, np.int32)
    for at, row in enumerate(matrix):
        inside = np.flatnonzero(lengths > at)
        states[inside] = steps[states[inside], row[inside]]
    return states
