"""Span corruption, T5's pretraining: sentinels replace spans of a text, which are the targets.

An example, of words instead of tokens:

    text      Thank you for inviting me to your party last week .
    inputs    Thank you <extra_id_0> me to your party <extra_id_1> week . </s>
    targets   <extra_id_0> for inviting <extra_id_1> last </s>
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from t5lite.errors import InputError
from t5lite.objectives.base import Vocabulary, check_number, documents
from t5lite.objectives.inputs_to_targets import InputsToTargets
from t5lite.objectives.words import word_bounds
from t5lite.rows import Examples, Lengths, Prepared, feature_length


class SpanCounts(NamedTuple):
    """Division of a text into kept and noise spans; follows from its length alone.

    Attributes:
      noise: tokens that are removed.
      spans: runs of noise; each is one sentinel in the inputs and one in the targets.
      inputs, targets: lengths, EOS included.
    """

    noise: int
    spans: int
    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(InputsToTargets):
    """Removes random spans of text and predicts them.

    Documents (`targets` of the examples) are joined without EOS and cut into stretches of exactly
    the length that fills the inputs: 568 tokens for 512 inputs and 114 targets. The last stretch
    of a window of documents is shorter, and dropped if it is a single token. Kept spans and noise
    spans take turns, the first kept and the last noise; all ways to do so are equally likely.

    T5, by contrast, takes one random stretch of 65,536 tokens of each document and joins 128 at a
    time, with a short stretch at every seam. Here every document is used whole.

    Attributes:
      noise_density: the share of tokens, in (0, 1), that is removed.
      mean_noise_span_length: the mean length of a span in tokens, >= 1.
      whole_word: whether each span is one word of letters and digits, with a word kept on either
        side of it. The two numbers above are then upper bounds of tokens and spans.
    Source: Raffel et al. 2020, arXiv:1910.10683, §3.1.4 and §3.3.4; `t5.data.preprocessors`.
    """

    whole_texts: ClassVar[bool] = True
    joins_texts: ClassVar[bool] = True

    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    whole_word: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "noise_density", lambda x: 0 < x < 1, "a number in (0, 1)")
        check_number(
            self, "mean_noise_span_length", lambda x: 1 <= x < math.inf, "a number of tokens >= 1"
        )

    def counts(self, num_tokens: int) -> SpanCounts:
        """Returns how a text of `num_tokens` >= 2 tokens is divided."""
        # Python's halves to even in float64, as T5's length computation has it. T5's mask rounds in
        # float32 and differs by one token where both meet exactly a half (first at 190 tokens).
        noise = min(max(round(num_tokens * self.noise_density), 1), num_tokens - 1)
        rest = num_tokens - noise
        spans = min(max(round(noise / self.mean_noise_span_length), 1), rest)
        return SpanCounts(noise, spans, rest + spans + 1, noise + spans + 1)

    def raw_length(self, inputs_length: int) -> int:
        """Returns how many tokens of text fill `inputs_length` >= 3 positions, EOS included."""
        upper = int(inputs_length / (1 - self.noise_density)) + 3
        lengths = range(2, upper)
        fitting = bisect.bisect_right(lengths, inputs_length, key=lambda n: self.counts(n).inputs)
        num_tokens = lengths[fitting - 1]
        # T5's exception for half and half, so that targets are not longer than the inputs.
        counts = self.counts(num_tokens)
        if self.noise_density == 0.5 and counts.targets > counts.inputs:
            num_tokens -= 1
        return num_tokens

    def pairs(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        """Yields corrupted stretches of the examples' `targets`.

        Raises:
          InputError: if a length is missing, the targets cannot hold the noise of full inputs, or
            the vocabulary has too few sentinels.
        """
        frames = self.frames(vocabulary)
        # The counts include T5's EOS; vocabularies may have more or fewer special tokens.
        more_inputs, more_targets = (frame.size - 1 for frame in frames)
        inputs = feature_length(lengths, "inputs", at_least=more_inputs + 3)
        raw_length = self.raw_length(inputs - more_inputs)
        if self.whole_word:
            raw_length = inputs - more_inputs - 1  # a word may be a token, as long as its sentinel
        needed = self.counts(raw_length)
        if feature_length(lengths, "targets") < needed.targets + more_targets:
            raise InputError(
                f"TASK_FEATURE_LENGTHS['targets'] is {lengths['targets']}: {lengths['inputs']} "
                f"inputs at noise_density {self.noise_density} and mean_noise_span_length "
                f"{self.mean_noise_span_length} need at least {needed.targets + more_targets}"
            )
        num_sentinels = 0 if vocabulary is None else vocabulary.num_sentinels
        if vocabulary is None or num_sentinels < needed.spans:
            raise InputError(
                f"the vocabulary has {num_sentinels} sentinels and {lengths['inputs']} inputs need "
                f"{needed.spans}: use a vocabulary with more, or raise mean_noise_span_length"
            )
        sentinels = np.array([vocabulary.sentinel(i) for i in range(needed.spans)], np.int32)

        def prepared() -> Prepared:
            for tokens in _stretches(documents(examples, self, vocabulary), raw_length):
                if self.whole_word:
                    noise = self._word_mask(tokens, vocabulary, rng)
                else:
                    noise = self._noise_mask(len(tokens), rng)
                if not noise.any():
                    continue
                # What follows the last span needs no sentinel in the targets.
                end = np.flatnonzero(noise)[-1] + 1
                yield {
                    "inputs": frames.inputs(_replace_runs(tokens, noise, sentinels)),
                    "targets": frames.targets(_replace_runs(tokens[:end], ~noise[:end], sentinels)),
                }

        return prepared()

    def show_pair(
        self, inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary
    ) -> list[str]:
        """Returns the text for a person to read, with the noise «marked»."""
        return [marked_text(inputs, targets, vocabulary, left="«", right="»")]

    def _noise_mask(self, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
        """Returns `[num_tokens]` bool, True on noise; False first and True last."""
        noise, spans, _, _ = self.counts(num_tokens)
        lengths = np.empty(2 * spans, np.int64)
        lengths[1::2] = _random_lengths(noise, spans, rng)
        lengths[0::2] = _random_lengths(num_tokens - noise, spans, rng)
        return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)

    def _word_mask(
        self, tokens: np.ndarray, vocabulary: Any, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns `[num_tokens]` bool, True on the tokens of removed words."""
        noise, spans, _, _ = self.counts(len(tokens))
        firsts, ends = word_bounds(tokens, vocabulary)
        firsts, ends = firsts[firsts > 0], ends[firsts > 0]  # the first token is kept, as in T5
        rank = rng.permutation(len(firsts))
        # A word that outranks both of its neighbours: no two of them are side by side.
        peaks = np.flatnonzero((rank > np.append(-1, rank[:-1])) & (rank > np.append(rank[1:], -1)))
        peaks = peaks[np.argsort(rank[peaks])]
        fits = np.cumsum((ends - firsts)[peaks]) <= noise
        mask = np.zeros(len(tokens) + 1, np.int64)
        for edge, change in ((firsts, 1), (ends, -1)):
            np.add.at(mask, edge[peaks[fits][:spans]], change)
        return np.cumsum(mask[:-1]) > 0


def _random_lengths(num_items: int, num_runs: int, rng: np.random.Generator) -> np.ndarray:
    """Divides items into non-empty runs, every way equally likely: `[num_runs]` that sum up."""
    bounds = np.empty(num_runs + 1, np.int64)
    bounds[0], bounds[-1] = 0, num_items
    cuts = rng.choice(num_items - 1, num_runs - 1, replace=False, shuffle=False)
    cuts.sort()
    bounds[1:-1] = cuts + 1
    return np.diff(bounds)


def _replace_runs(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Returns the tokens with each masked run replaced by the next sentinel."""
    starts = mask.copy()
    starts[1:] &= ~mask[:-1]
    replaced = tokens.copy()
    replaced[starts] = sentinels[: np.count_nonzero(starts)]
    return replaced[starts | ~mask]


def _stretches(documents: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Yields the joined documents in pieces of `length` tokens, then the rest if it has two."""
    parts, size = [np.empty(0, np.int32)], 0
    for document in documents:
        parts.append(document)
        size += len(document)
        if size >= length:
            joined = np.concatenate(parts)
            size %= length
            yield from joined[: len(joined) - size].reshape(-1, length)
            parts = [joined[len(joined) - size :]]
    if size >= 2:
        yield np.concatenate(parts)


class Piece(NamedTuple):
    """Tokens of a text, `[n]` int32, and the number of their span; None outside spans."""

    tokens: np.ndarray
    span: int | None


def spans(targets: np.ndarray, vocabulary: Vocabulary) -> dict[int, np.ndarray]:
    """Returns the tokens of each span in targets, true or a model's, by sentinel index from 0.

    Tokens before the first sentinel and a sentinel's second appearance are left out.

    Args:
      targets: `[n]` integers; ends at EOS or padding.
      vocabulary: has the sentinels.
    """
    tokens = _before_end(targets, vocabulary)
    marks = _sentinel_indices(tokens, vocabulary)
    starts = np.flatnonzero(marks >= 0).tolist()
    tokens_of: dict[int, np.ndarray] = {}
    for start, end in itertools.pairwise([*starts, len(tokens)]):
        tokens_of.setdefault(int(marks[start]), tokens[start + 1 : end])
    return tokens_of


def merge(inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> list[Piece]:
    """Returns the pieces of a text, its spans put back into the inputs.

    Args:
      inputs: `[n]` integers, with sentinels; ends at EOS or padding.
      targets: `[m]` integers. A span they lack becomes an empty piece.
      vocabulary: has the sentinels.
    """
    tokens = _before_end(inputs, vocabulary)
    marks = _sentinel_indices(tokens, vocabulary)
    filled = spans(targets, vocabulary)
    pieces, start = [], 0
    for at in np.flatnonzero(marks >= 0).tolist():
        index = int(marks[at])
        pieces.append(Piece(tokens[start:at], None))
        pieces.append(Piece(filled.get(index, tokens[:0]), index))
        start = at + 1
    pieces.append(Piece(tokens[start:], None))
    return [piece for piece in pieces if piece.span is not None or piece.tokens.size]


def marked_text(
    inputs: np.ndarray,
    targets: np.ndarray,
    vocabulary: Vocabulary,
    *,
    left: str = "[",
    right: str = "]",
) -> str:
    """Returns the text as one string, with each span between marks."""
    return join_pieces(merge(inputs, targets, vocabulary), vocabulary, left=left, right=right)


def join_pieces(
    pieces: Iterable[Piece], vocabulary: Vocabulary, *, left: str = "«", right: str = "»"
) -> str:
    """Returns a text's pieces as one string, with each span between marks."""
    text, shown = "", 0
    seen = np.empty(0, np.int32)
    for piece in pieces:
        # The difference of two decoded beginnings: a piece on its own may lose the space before it.
        seen = np.concatenate([seen, piece.tokens])
        whole = vocabulary.decode(seen.tolist())
        added, shown = whole[shown:], len(whole)
        if piece.span is not None:
            words = added.lstrip()
            added = added[: len(added) - len(words)] + left + words + right
        text += added
    return text


def _before_end(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    tokens = np.asarray(tokens, np.int32)
    ends = np.flatnonzero((tokens == vocabulary.eos_id) | (tokens == vocabulary.pad_id))
    return tokens[: ends[0]] if ends.size else tokens


def _sentinel_indices(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns `[n]`: the index of each token that is a sentinel, -1 for the others."""
    ids = np.array([vocabulary.sentinel(i) for i in range(vocabulary.num_sentinels)], np.int32)
    matches = tokens[:, None] == ids[None, :]
    return np.where(matches.any(axis=1), matches.argmax(axis=1), -1)
