"""Held-out examples one per row, and the model's greedy answer to them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding import generate
from t5lite.errors import InputError

Example = dict[str, np.ndarray]


def examples(run: Any, *, split: str, count: int, seed: int, asker: str) -> list[Example]:
    """Returns prepared examples with `inputs` and `targets`, 1-D int32 arrays with their EOS.

    Args:
      run: with `.data` and `.objective`.
      split: "train" or "validation".
      count: at most so many.
      seed: of the objective's randomness; the same seed gives the same examples.
      asker: the callback's name, for the message.

    Raises:
      InputError: the objective has other features, or the split is empty.
    """
    missing = {"inputs", "targets"} - set(run.objective.features)
    if missing:
        raise InputError(
            f"{asker} needs an objective with inputs and targets; {type(run.objective).__name__} "
            f"has {', '.join(run.objective.features)}: remove {asker} from the callbacks"
        )
    found = run.data.examples(run.objective, split=split, count=count, seed=seed)
    if not found:
        raise InputError(f"{asker}: the {split} split has no example; fill it")
    return found


def unpacked_batches(run: Any, rows: Sequence[Example]) -> Iterator[dict[str, np.ndarray]]:
    """Yields the data's batches, whole, with one example a row in order.

    Args:
      run: with `.data` and `.objective`.
      rows: examples; the last batch is filled up with empty rows.
    """
    lengths, size = run.data.lengths, run.data.batch_size
    for start in range(0, len(rows), size):
        padded = {
            name: np.zeros((size, lengths[name]), np.int32) for name in run.objective.features
        }
        for row, example in enumerate(rows[start : start + size]):
            for name, array in padded.items():
                array[row, : len(example[name])] = example[name]
        yield run.objective.batch(padded)


def place(run: Any, batch: dict[str, np.ndarray]) -> Any:
    """Returns the device arrays of a whole batch, this process giving its own share of rows."""
    share = run.data.batch_size // jax.process_count()
    start = jax.process_index() * share
    return run.place({name: array[start : start + share] for name, array in batch.items()})


def answer(run: Any, params: Any, batch: Any, *, eos_id: int) -> jax.Array:
    """Returns the greedy answer `[batch, targets]` int32 of `run.model` to unpacked inputs."""
    length = run.data.lengths["targets"]
    start_tokens = jnp.zeros(batch["encoder_input_tokens"].shape[0], jnp.int32)
    cache = run.model.start(params, batch, max_length=length)

    def step_fn(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        return run.model.extend(params, tokens, cache)

    return generate(step_fn, cache, start_tokens, max_new_tokens=length, eos_id=eos_id).tokens


def fetch_rows(
    run: Any, rows_fn: Callable, params: Any, rows: Sequence[Example]
) -> list[dict[str, np.ndarray]]:
    """Returns one dictionary of host arrays an example.

    Args:
      run: with `.data`, `.objective` and `.place`.
      rows_fn: compiled, `(params, batch) -> {name: [batch, …]}`, replicated; it must return
        `targets`, since devices may hold the rows in any order.
      params: the model's.
      rows: the examples.
    """
    found = []
    for batch in unpacked_batches(run, rows):
        arrays = jax.device_get(rows_fn(params, place(run, batch)))
        filled = np.flatnonzero(arrays["targets"].any(axis=1))
        found += [{name: array[row] for name, array in arrays.items()} for row in filled]
    return found


def replicate(run: Any, arrays: Any) -> Any:
    """Makes a pytree's arrays whole on every device, so that any process can read them."""
    whole = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, whole), arrays)
