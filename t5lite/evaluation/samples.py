"""What the model answers to a few validation examples."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from t5lite.evaluation import rows
from t5lite.evaluation.text import readable, shorten, show


class Sample(NamedTuple):
    """An example as text, and the model's answer to it."""

    inputs: str
    target: str
    prediction: str


@dataclasses.dataclass
class Samples:
    """Answers validation examples greedily, shows a few, and counts exact matches.

    Returns `prefix/exact_match`, the share in [0, 1] of answers whose text equals the target's.

    Args:
      every: steps between two calls.
      count: examples shown.
      num_examples: examples answered; the first of them are shown.
      seed: of the objective's randomness in preparing them.
      prefix: of the metric's name.
    """

    every: int
    count: int = 4
    num_examples: int = 64
    seed: int = 0
    prefix: str = "samples"
    _prepared: tuple[Any, list[rows.Example], Callable] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __call__(self, run: Any, state: Any, *, step: int) -> dict[str, float]:
        """Shows samples of `state` and returns the share of exact matches.

        Raises:
          InputError: the objective has no inputs and targets, or the split is empty.
        """
        if self._prepared is None or self._prepared[0] is not run:
            self._prepared = run, *self._prepare(run)
        _, held_out, answer_fn = self._prepared
        vocabulary = run.data.vocabulary()
        found = [
            Sample(*(readable(row[name], vocabulary) for name in ("inputs", "targets", "answer")))
            for row in rows.fetch_rows(run, answer_fn, run.params(state), held_out)
        ]
        exact_match = sum(sample.prediction == sample.target for sample in found) / len(found)
        text = format_samples(step, found[: self.count], exact_match=exact_match, total=len(found))
        show(run, step, name=f"{self.prefix}/samples", text=text)
        return {f"{self.prefix}/exact_match": exact_match}

    def _prepare(self, run: Any) -> tuple[list[rows.Example], Callable]:
        vocabulary = run.data.vocabulary()
        eos_id = 1 if vocabulary is None else vocabulary.eos_id

        def answer(params: Any, batch: Any) -> dict[str, Any]:
            found = {
                "inputs": batch["encoder_input_tokens"],
                "targets": batch["decoder_target_tokens"],
                "answer": rows.answer(run, params, batch, eos_id=eos_id),
            }
            return rows.replicate(run, found)

        held_out = rows.examples(
            run,
            split="validation",
            count=max(self.num_examples, self.count),
            seed=self.seed,
            asker="Samples",
        )
        return held_out, run.jit(answer)


def format_samples(
    step: int, samples: Sequence[Sample], *, exact_match: float, total: int, width: int = 100
) -> str:
    """Returns samples as lines of at most `width` characters.

    Args:
      step: of the state that answered.
      samples: those shown.
      exact_match: share of all answers, in [0, 1].
      total: how many were answered.
      width: of the terminal, at least 40.
    """
    lines = [f"samples at step {step:,}: {exact_match:.1%} of {total:,} answers match exactly"]
    for number, sample in enumerate(samples, start=1):
        mark = "=" if sample.prediction == sample.target else "≠"
        parts = (
            (f"{number:>3}  input   ", shorten(sample.inputs, 2 * (width - 20))),
            ("     target  ", shorten(sample.target, width - 13, keep="start")),
            (f"   {mark} model   ", shorten(sample.prediction, width - 13, keep="start")),
        )
        for label, text in parts:
            wrapped = textwrap.wrap(
                text, width, initial_indent=label, subsequent_indent=" " * len(label)
            )
            lines += wrapped or [label.rstrip()]
    return "\n".join(lines)
