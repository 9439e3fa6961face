"""Held-out examples one per row, and the model's greedy answer to them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.data.packing import pad, pad_with_segments
from t5lite.data.validation import filled_up
from t5lite.decoding import Settings
from t5lite.errors import InputError
from t5lite.inference import answer, prompt_batch
from t5lite.objectives import chunked_cross_entropy

_CHUNK_LENGTH = 16  # places of which the logits are in memory at once

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
      InputError: the model or the objective is of another kind, or the split is empty.
    """
    missing = {"inputs", "targets"} - set(run.objective.features)
    if missing or run.model.topology != "encoder_decoder":
        raise InputError(
            f"{asker} needs an encoder-decoder, and an objective with inputs and targets; "
            f"{type(run.objective).__name__} has {', '.join(run.objective.features)}, and the "
            f"model is of topology {run.model.topology!r}: remove {asker} from the callbacks"
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
    lengths, size = run.objective.row_lengths(run.data.lengths), run.data.batch_size
    in_rows = pad_with_segments if getattr(run.data.vocabulary(), "zero_is_token", False) else pad
    for start in range(0, len(rows), size):
        padded = in_rows(rows[start : start + size], lengths)
        yield run.objective.batch({name: filled_up(each, size) for name, each in padded.items()})


def place(run: Any, batch: dict[str, np.ndarray]) -> Any:
    """Returns the device arrays of a whole batch, of which this process places its rows."""
    return run.place({name: array[run.rows] for name, array in batch.items()})


def prompt_of(example: Example, *, prompt_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides a prepared example into what a model is given and what it should write.

    Args:
      example: with `inputs` and `targets`; or of a decoder, `targets` with `prefix`, 1 on what is
        given; or `targets` alone, a text.
      prompt_length: tokens of a text alone that are given, at most half of it.
    """
    targets = example["targets"]
    if "inputs" in example:
        return example["inputs"], targets
    if "prefix" in example:
        given = int(np.count_nonzero(example["prefix"]))
    else:
        given = min(prompt_length, len(targets) // 2)
    return targets[:given], targets[given:]


def sees_both_ways(objective: Any, example: Example) -> bool:
    """Whether a decoder sees what it is given of a prepared example in both directions."""
    return "prefix" in example and getattr(objective, "bidirectional_inputs", True)


def answer_fn(run: Any, max_new_tokens: int) -> Callable:
    """Returns what `answers` needs: greedy decoding, compiled."""
    vocabulary = run.data.vocabulary()
    settings = Settings(eos_ids=(1 if vocabulary is None else vocabulary.eos_id,))

    def written(params: Any, batch: Any) -> dict[str, Any]:
        made = answer(run.model, params, batch, max_new_tokens=max_new_tokens, settings=settings)
        found = {"answer": made.tokens, "log_probability": made.log_probabilities}
        return replicate(run, found | {"row": batch["row"]})

    return run.jit(written)


def answers(
    run: Any, answer_fn: Callable, params: Any, prompts: Sequence[np.ndarray], *, prefix: bool
) -> list[dict[str, np.ndarray]]:
    """Returns what the model writes after each prompt, in order.

    Args:
      run: with `.data`, `.model` and `.place`.
      answer_fn: see there.
      params: the model's.
      prompts: token ids.
      prefix: whether a decoder sees them in both directions.

    Returns:
      For each `answer`, `[max_new_tokens]` int32, and its `log_probability` in nats.
    """
    size, length = run.data.batch_size, max(map(len, prompts))
    found: dict[int, dict[str, np.ndarray]] = {}
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        batch = prompt_batch(
            run.model.topology,
            part,
            num_rows=size,
            length=length,
            prefix=prefix,
            start_id=run.model.start_id,
        )
        batch["row"] = np.arange(start, start + size, dtype=np.int32)
        arrays = jax.device_get(answer_fn(params, place(run, batch)))
        found |= _by_row(arrays)
    return [found[row] for row in range(len(prompts))]


def score_fn(run: Any) -> Callable:
    """Returns what `scores` needs: the log-likelihood of each row's targets, compiled."""

    def scored(params: Any, batch: Any) -> dict[str, Any]:
        hidden, _ = run.model.hidden(params, batch, train=False)
        tokens = chunked_cross_entropy(
            functools.partial(run.model.logits, params),
            hidden,
            batch["decoder_target_tokens"],
            chunk_length=_CHUNK_LENGTH,
        )
        losses = tokens.negative_log_likelihood * batch["decoder_loss_weights"]
        return replicate(run, {"score": -jnp.sum(losses, axis=1), "row": batch["row"]})

    return run.jit(scored)


def scores(run: Any, score_fn: Callable, params: Any, rows: Sequence[Example]) -> list[float]:
    """Returns the log-likelihood in nats of each example's targets, EOS included, in order.

    Args:
      run: with `.data`, `.objective` and `.place`.
      score_fn: see there.
      params: the model's.
      rows: prepared examples.
    """
    found: dict[int, dict[str, np.ndarray]] = {}
    for number, batch in enumerate(unpacked_batches(run, rows)):
        size = run.data.batch_size
        batch["row"] = np.arange(number * size, (number + 1) * size, dtype=np.int32)
        found |= _by_row(jax.device_get(score_fn(params, place(run, batch))))
    return [float(found[row]["score"]) for row in range(len(rows))]


def _by_row(arrays: dict[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    """Returns each row's values by its number: devices may hold the rows in any order."""
    numbers = arrays["row"].tolist()
    return {
        number: {name: array[place] for name, array in arrays.items()}
        for place, number in enumerate(numbers)
    }


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
