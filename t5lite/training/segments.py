"""Differentiates scans over layers in segments, where some layers are frozen."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, jaxpr_as_fun
from jax.extend.core.primitives import scan_p

Tree = Any


class Segments(NamedTuple):
    """An array in consecutive parts of its first axis."""

    parts: tuple[jax.Array, ...]

    def whole(self) -> jax.Array:
        return jnp.concatenate(self.parts)

    @property
    def ends(self) -> list[int]:
        return list(itertools.accumulate(len(part) for part in self.parts))

    def between(self, start: int, stop: int) -> jax.Array:
        """Returns `[start:stop]`, which lies within one part."""
        index = next(index for index, end in enumerate(self.ends) if stop <= end)
        first = self.ends[index] - len(self.parts[index])
        return self.parts[index][start - first : stop - first]


def evaluate(fn: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """Returns `fn(tree)`, where leaves of `tree` may be `Segments` of the arrays that `fn` takes.

    A scan over such an array becomes one scan for each segment. A segment of constants then has no
    gradient: none is computed for its slice of the scan, nor before the first segment that needs
    one. JAX and XLA alone compute the gradient of the whole stack, and drop most of it. Values,
    random streams included, are those of `fn`.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda leaf: isinstance(leaf, Segments))
    shapes = [jax.eval_shape(_whole, leaf) for leaf in leaves]
    closed, outputs = jax.make_jaxpr(fn, return_shape=True)(jax.tree.unflatten(structure, shapes))
    return jax.tree.unflatten(jax.tree.structure(outputs), _run(closed, leaves))


def _run(closed: ClosedJaxpr, leaves: Sequence[Any]) -> list[jax.Array]:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= zip(jaxpr.invars, leaves, strict=True)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        segmented = any(isinstance(value, Segments) for value in inputs)
        if equation.primitive is scan_p and segmented and not equation.params["reverse"]:
            with equation.ctx.manager:
                outputs = _scan(inputs, **equation.params)
        else:
            variables = list(
                dict.fromkeys(x for x in equation.invars if not isinstance(x, Literal))
            )
            info = DebugInfo("", "segments", None, None)
            part = Jaxpr((), variables, equation.outvars, [equation], equation.effects, info)
            outputs = jaxpr_as_fun(ClosedJaxpr(part, ()))(*(_whole(values[x]) for x in variables))
        values |= zip(equation.outvars, outputs, strict=True)
    return [_whole(read(atom)) for atom in jaxpr.outvars]


def _scan(inputs: Sequence[Any], *, num_consts: int, num_carry: int, unroll: int, **params: Any):
    """Returns the outputs of a scan, run once for each segment of its arrays."""
    first = num_consts + num_carry
    fixed, arrays = [_whole(value) for value in inputs[:first]], inputs[first:]
    consts, carry = fixed[:num_consts], fixed[num_consts:]
    ends = {end for array in arrays if isinstance(array, Segments) for end in array.ends}
    rows = []
    for start, stop in itertools.pairwise([0, *sorted(ends)]):
        slices = [
            array.between(start, stop) if isinstance(array, Segments) else array[start:stop]
            for array in arrays
        ]
        sizes = {"length": stop - start, "unroll": min(unroll, stop - start)}
        outputs = scan_p.bind(
            *consts, *carry, *slices, num_consts=num_consts, num_carry=num_carry, **params | sizes
        )
        carry = outputs[:num_carry]
        rows.append(outputs[num_carry:])
    return [*carry, *map(jnp.concatenate, zip(*rows, strict=True))]


def _whole(value: Any) -> Any:
    return value.whole() if isinstance(value, Segments) else value
