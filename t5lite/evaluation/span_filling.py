"""Accuracy and loss of filled gaps, with an example's own inputs and with another's."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.errors import InputError
from t5lite.evaluation import rows
from t5lite.evaluation.spans import (
    Filled,
    Sentence,
    Span,
    format_filled,
    format_sentences,
    text_of,
)
from t5lite.evaluation.text import show
from t5lite.inference.batching import check_count
from t5lite.objectives import merge, spans


@dataclasses.dataclass(frozen=True)
class _Prepared:
    run: Any
    held_out: list[rows.Example]
    unigram: float


@dataclasses.dataclass
class SpanFilling:
    """Fills in the gaps of held-out texts greedily, shows some, and counts the exact ones.

    Everything is measured twice: with an example's own inputs, and with another's, which separates
    reading the inputs from guessing by frequency. Returns

    - `prefix/exact_match`, the share in [0, 1] of gaps filled in exactly, and
      `prefix/exact_match_shuffled`, that with another's inputs;
    - `prefix/loss`, the cross-entropy in nats a token of the gaps (no sentinels, no EOS), without
      dropout; `prefix/shuffled_inputs`, that with another's inputs; `prefix/unigram`, that of the
      training text's unigram distribution (ordinary tokens of the training examples' inputs and
      targets, add-one smoothed); and `prefix/margin`, `prefix/unigram` less `prefix/loss`.

    Args:
      every: steps between two calls.
      num_sentences: held-out examples shown with their gaps filled in.
      max_spans: gaps shown of each.
      num_examples: held-out examples measured, at least 2.
      num_train_examples: training examples whose tokens are counted, once.
      seed: of the corruption.
      prefix: of the metrics' names.
      batch_size: most examples answered or measured at once.
    """

    every: int
    num_sentences: int = 3
    max_spans: int = 4
    num_examples: int = 256
    num_train_examples: int = 4096
    seed: int = 0
    prefix: str = "span_filling"
    batch_size: int = 64
    _prepared: _Prepared | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("max_spans", "num_examples", "num_train_examples", "batch_size"):
            check_count(f"SpanFilling.{name}", getattr(self, name))

    def check(self, run: Any) -> None:
        """Reads the examples."""
        self._prepared = self._prepare(run)

    def metric_names(self, run: Any) -> set[str]:
        return {f"{self.prefix}/{name}" for name in Filled(1, 0, 0, 0.0, 0.0, 0.0).metrics()}

    def __call__(self, run: Any, state: Any, *, step: int) -> dict[str, float]:
        """Measures `state`, prints filled-in texts and the number of exact gaps.

        Raises:
          InputError: for a vocabulary without sentinels, an objective without inputs and targets,
            or too few examples.
        """
        if self._prepared is None or self._prepared.run is not run:
            self._prepared = self._prepare(run)
        ready, params, vocabulary = self._prepared, run.params(state), run.data.vocabulary()

        def measure(examples: list[rows.Example]) -> tuple[list[rows.Example], float]:
            scores = rows.target_scores(run, params, examples, batch_size=self.batch_size)
            words = [ordinary(example["targets"], vocabulary) for example in examples]
            pairs = zip(scores, words, strict=True)
            nats = -sum(float(score[is_word].sum(dtype=float)) for score, is_word in pairs)
            answers = rows.answers(
                run,
                params,
                [example["inputs"] for example in examples],
                max_new_tokens=run.data.lengths["targets"],
                batch_size=self.batch_size,
            )
            answered = [
                {**example, "answer": answer.tokens}
                for example, answer in zip(examples, answers, strict=True)
            ]
            return answered, nats / sum(int(is_word.sum()) for is_word in words)

        own, loss = measure(ready.held_out)
        exchanged, shuffled = measure(exchange_inputs(ready.held_out))
        filled = Filled(
            num_gaps=sum(len(spans(row["targets"], vocabulary)) for row in own),
            exact=num_exact(own, vocabulary),
            exact_shuffled=num_exact(exchanged, vocabulary),
            loss=loss,
            unigram=ready.unigram,
            shuffled=shuffled,
        )
        # Neighbours may come from one document, so the sample is taken at equal distances.
        stride = max(1, len(own) // max(1, self.num_sentences))
        shown = own[::stride][: self.num_sentences]
        text = format_filled(filled)
        if sentences := [sentence_of(row, vocabulary) for row in shown]:
            text = format_sentences(sentences, max_spans=self.max_spans) + "\n\n" + text
        show(run, step, name=f"{self.prefix}/sentences", text=text)
        return {f"{self.prefix}/{name}": value for name, value in filled.metrics().items()}

    def _prepare(self, run: Any) -> _Prepared:
        vocabulary = run.data.vocabulary()
        if vocabulary is None or not vocabulary.num_sentinels:
            raise InputError(
                "SpanFilling needs a vocabulary with sentinels, which this data has not: set "
                "num_sentinels, or remove SpanFilling from the callbacks"
            )
        prepared = functools.partial(rows.examples, run, seed=self.seed, caller="SpanFilling")
        held_out = prepared(split="validation", count=self.num_examples)
        if len(held_out) < 2:
            raise InputError("SpanFilling needs at least 2 held-out examples to exchange inputs")
        train = prepared(split="train", count=self.num_train_examples)
        return _Prepared(run, held_out, unigram_cross_entropy(train, held_out, vocabulary))


def ordinary(tokens: np.ndarray, vocabulary: Any) -> np.ndarray:
    """Returns a bool array: neither padding, EOS nor sentinel."""
    return ~np.isin(tokens, _special(vocabulary))


def unigram_cross_entropy(
    train: Sequence[rows.Example], held_out: Sequence[rows.Example], vocabulary: Any
) -> float:
    """Returns the cross-entropy, in nats a token, of held-out targets under a unigram distribution.

    Ordinary tokens of training inputs and targets are counted, add-one smoothed.
    """

    def counts(arrays: list[np.ndarray]) -> np.ndarray:
        tokens = np.concatenate(arrays)
        return np.bincount(tokens[ordinary(tokens, vocabulary)], minlength=vocabulary.size)

    smoothed = counts([example[name] for example in train for name in ("inputs", "targets")]) + 1
    measured = counts([example["targets"] for example in held_out])
    support = ordinary(np.arange(len(smoothed)), vocabulary)
    log_probabilities = np.log(smoothed) - np.log(smoothed[support].sum())
    return float(-(measured * log_probabilities).sum() / measured.sum())


def exchange_inputs(examples: Sequence[rows.Example]) -> list[rows.Example]:
    """Gives each example the inputs of the one half the list away, so that none keeps its own."""
    half = len(examples) // 2
    pairs = zip(examples, [*examples[half:], *examples[:half]], strict=True)
    return [{**example, "inputs": source["inputs"]} for example, source in pairs]


def sentence_of(row: dict[str, np.ndarray], vocabulary: Any) -> Sentence:
    """Returns the text of a row (`inputs`, `targets`, `answer`: 1-D ids) with the model's words."""
    answer = spans(row["answer"], vocabulary)
    texts, gaps = [""], []
    for piece in merge(row["inputs"], row["targets"], vocabulary):
        text = text_of(piece.tokens, vocabulary)
        if piece.span is None:
            texts[-1] = text
            continue
        texts.append("")
        filled = answer.get(piece.span)
        gaps.append(Span(text, None if filled is None else text_of(filled, vocabulary)))
    return Sentence(texts, gaps)


def num_exact(answered: Sequence[dict[str, np.ndarray]], vocabulary: Any) -> int:
    """Returns the number of exactly filled gaps; rows: `targets` and the model's `answer`, ids."""
    count = 0
    for row in answered:
        filled = spans(row["answer"], vocabulary)
        for index, truth in spans(row["targets"], vocabulary).items():
            right = index in filled and text_of(filled[index], vocabulary) == text_of(
                truth, vocabulary
            )
            count += right
    return count


def _special(vocabulary: Any) -> list[int]:
    sentinels = [vocabulary.sentinel(index) for index in range(vocabulary.num_sentinels)]
    return [vocabulary.pad_id, *vocabulary.frame(vocabulary.target_frame([])), *sentinels]
