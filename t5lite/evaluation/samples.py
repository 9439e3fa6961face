"""The model's answers to a few validation examples."""

import dataclasses
import functools
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from t5lite.errors import InputError
from t5lite.evaluation import rows
from t5lite.evaluation.text import readable, show
from t5lite.inference.batching import check_count
from t5lite.text import shorten


class Sample(NamedTuple):
    inputs: str
    target: str
    prediction: str


@dataclasses.dataclass
class Samples:
    """Answers or continues validation examples greedily, shows a few, and counts exact matches.

    The prompt of an encoder-decoder is an example's inputs; of a decoder its prefix, or the
    beginning of a text without one. Returns `prefix/exact_match`, the share in [0, 1] of answers
    whose text equals the target's.

    Args:
      every: steps between two calls.
      count: examples shown.
      num_examples: examples answered; the first of them are shown.
      prompt_length: tokens of the prompt of a text without inputs or prefix.
      seed: of the objective's randomness in preparing them.
      prefix: of the metric's name.
      batch_size: most examples answered at once.
    """

    every: int
    count: int = 4
    num_examples: int = 64
    prompt_length: int = 32
    seed: int = 0
    prefix: str = "samples"
    batch_size: int = 64
    _prepared: tuple[Any, list[rows.Example]] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("num_examples", "prompt_length", "batch_size"):
            check_count(f"Samples.{name}", getattr(self, name))

    def check(self, run: Any) -> None:
        """Raises an InputError, before the first step, unless model and objective generate text."""
        if run.model.topology == "encoder":
            raise InputError(
                "Samples: encoders generate no text; remove Samples from the callbacks"
            )
        if (run.objective.head or "lm") != "lm":
            raise InputError(
                f"Samples: {type(run.objective).__name__} does not train text generation; remove "
                "Samples from the callbacks"
            )

    def metric_names(self, run: Any) -> set[str]:
        return {f"{self.prefix}/exact_match"}

    def __call__(self, run: Any, state: Any, *, step: int) -> dict[str, float]:
        """Shows samples of `state` and returns the share of exact matches.

        Raises: InputError for an encoder or an empty split.
        """
        if self._prepared is None or self._prepared[0] is not run:
            self._prepared = run, self._prepare(run)
        held_out = self._prepared[1]
        divided = [rows.prompt_of(row, prompt_length=self.prompt_length) for row in held_out]
        answers = rows.answers(
            run,
            run.params(state),
            [prompt for prompt, _ in divided],
            max_new_tokens=max(len(target) for _, target in divided),
            bidirectional=rows.sees_both_ways(run.objective, held_out[0]),
            batch_size=self.batch_size,
        )
        text_of = functools.partial(readable, vocabulary=run.data.vocabulary())
        shown = [
            Sample(text_of(prompt), text_of(target), text_of(answer.tokens))
            for (prompt, target), answer in zip(divided, answers, strict=True)
        ]
        exact_match = sum(sample.prediction == sample.target for sample in shown) / len(shown)
        text = format_samples(step, shown[: self.count], exact_match=exact_match, total=len(shown))
        show(run, step, name=f"{self.prefix}/samples", text=text)
        return {f"{self.prefix}/exact_match": exact_match}

    def _prepare(self, run: Any) -> list[rows.Example]:
        self.check(run)
        count = max(self.num_examples, self.count)
        return rows.prepared(run, split="validation", count=count, seed=self.seed, caller="Samples")


def format_samples(
    step: int, samples: Sequence[Sample], *, exact_match: float, total: int, width: int = 100
) -> str:
    """Returns samples as lines of at most `width` (>= 40) characters; `exact_match` in [0, 1]."""
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
