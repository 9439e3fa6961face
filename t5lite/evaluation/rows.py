"""Held-out examples, answered and scored by a run's engine with live parameters."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.errors import InputError
from t5lite.inference.answer import Answer
from t5lite.inference.defaults import Rules
from t5lite.inference.engine import Engine
from t5lite.inference.options import Options
from t5lite.inference.request import Request
from t5lite.inference.scoring import ScoreRequest

Example = dict[str, np.ndarray]


def engine_of(run: Any) -> Engine:
    """Returns the engine of a run; equal runs share compiled functions."""
    return Engine(run.model, run.data.vocabulary(), run.layout, run.mesh)


def examples(run: Any, *, split: str, count: int, seed: int, caller: str) -> list[Example]:
    """Returns prepared examples with `inputs` and `targets`, 1-D int32 arrays with their EOS.

    Args:
      count: most examples.
      seed: of the objective's randomness; the same seed gives the same examples.
      caller: the callback's name, for the message.

    Raises: InputError if model or objective is of another kind, or the split is empty.
    """
    missing = {"inputs", "targets"} - set(run.objective.features)
    if missing or run.model.topology != "encoder_decoder":
        raise InputError(
            f"{caller} needs an encoder-decoder, and an objective with inputs and targets; "
            f"{type(run.objective).__name__} has {', '.join(run.objective.features)}, and the "
            f"model is of topology {run.model.topology!r}: remove {caller} from the callbacks"
        )
    return prepared(run, split=split, count=count, seed=seed, caller=caller)


def prepared(run: Any, *, split: str, count: int, seed: int, caller: str) -> list[Example]:
    """Returns prepared examples of any objective."""
    rows = run.data.examples(run.objective, split=split, count=count, seed=seed)
    if not rows:
        raise InputError(f"{caller}: the {split} split has no example; fill it")
    return rows  # type: ignore[no-any-return]


def prompt_of(example: Example, *, prompt_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides a prepared example into a prompt and the target after it.

    Args:
      example: with `inputs` and `targets`; of a decoder, `targets` with `prefix`, 1 on the prompt,
        or the `targets` of a text.
      prompt_length: tokens of a text that are its prompt, at most half of it.
    """
    targets = example["targets"]
    if "inputs" in example:
        return example["inputs"], targets
    if "prefix" in example:
        length = int(np.count_nonzero(example["prefix"]))
    else:
        length = min(prompt_length, len(targets) // 2)
    return targets[:length], targets[length:]


def sees_both_ways(objective: Any, example: Example) -> bool:
    """Whether a decoder sees the prompt of a prepared example in both directions."""
    return "prefix" in example and objective.bidirectional_inputs


def answers(
    run: Any,
    params: Any,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    bidirectional: bool = False,
    batch_size: int = 64,
) -> list[Answer]:
    """Returns the model's greedy answers in order; empty, of log-probability NaN, for bad logits.

    Args:
      prompts: ids with their special tokens.
      bidirectional: whether a decoder sees the prompts in both directions.
      batch_size: most prompts at once.
    """
    engine, options = engine_of(run), Options(max_new_tokens=max_new_tokens)
    rules = Rules((1 if engine.vocabulary is None else engine.vocabulary.eos_id,))
    requests = [
        Request([*map(int, ids)], options, rules=rules, bidirectional=bidirectional)
        for ids in prompts
    ]
    outcomes = engine.outcomes(params, requests, batch_size=batch_size)
    empty = Answer("", np.zeros(0, np.int32), np.nan, np.nan, np.zeros(0, np.float32))
    return [empty if isinstance(outcome, InputError) else outcome[0] for outcome in outcomes]


def target_scores(
    run: Any, params: Any, examples: Sequence[Example], *, batch_size: int = 64
) -> list[np.ndarray]:
    """Returns each target's log-probabilities `[n]` float32 in nats, EOS included, or NaN."""
    requests = []
    for example in examples:
        inputs, target = (part.tolist() for part in prompt_of(example, prompt_length=0))
        if run.model.topology == "encoder_decoder":
            requests.append(ScoreRequest(inputs, target, range(len(target))))
            continue
        scored = range(len(inputs), len(inputs) + len(target))
        both = sees_both_ways(run.objective, example)
        requests.append(ScoreRequest([], [*inputs, *target], scored, both))
    outcomes = engine_of(run).score(params, requests, batch_size=batch_size)
    return [
        np.full(len(request.tokens), np.nan, np.float32)
        if isinstance(outcome, InputError)
        else outcome.token_log_probabilities
        for request, outcome in zip(requests, outcomes, strict=True)
    ]
