"""Log-likelihoods of texts and of ids, token by token."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError, unknown
from t5lite.framing import Frame
from t5lite.inference.batching import (
    Placed,
    bucket,
    by_size,
    check_count,
    compiled,
    num_rows,
    padded,
)
from t5lite.inference.context import split_pair
from t5lite.inference.gaps import encode
from t5lite.inference.requirements import Described, not_finite, require
from t5lite.models import Model
from t5lite.objectives import (
    PROMPTS,
    Prompt,
    chunked_cross_entropy,
    decoder_batch,
    encoder_decoder_batch,
    prefix_lm_batch,
    start_of,
)
from t5lite.objectives.masked_lm import mask_of

_MOST_LOGITS = 2**26  # in memory at once, in float32: 256 MiB


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """The log-likelihood of a text.

    Args:
      tokens, pieces: the scored ids, EOS included if it is scored, and their pieces.
      token_log_probabilities: `[num_tokens]` float32, nats.
      token_greedy: `[num_tokens]` bool, whether the token's logit is above all others.
    """

    tokens: list[int]
    pieces: list[str]
    token_log_probabilities: np.ndarray
    token_greedy: np.ndarray

    @property
    def num_tokens(self) -> int:
        """The number of scored tokens."""
        return len(self.tokens)

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one, given those before it."""
        return bool(self.token_greedy.all())

    @property
    def log_probability(self) -> float:
        """The sum over the tokens, in nats."""
        return float(np.sum(self.token_log_probabilities, dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of minus the mean log-probability of a token; infinite if it overflows."""
        return perplexity(self.log_probability, self.num_tokens)


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """Ids as a model reads them, and the scored ones.

    Args:
      inputs: of an encoder; empty for a decoder.
      targets: of a decoder after its start token, if any, prompt first; empty for an encoder.
      scored: positions of the scored tokens in `targets`, of an encoder in `inputs`.
      bidirectional: whether a decoder's attention over the tokens before is bidirectional.
      cut: whether tokens that would be scored were truncated.
      skipped: characters before the scored ones: a first token's, without a start token.
    """

    inputs: list[int]
    targets: list[int]
    scored: range
    bidirectional: bool = False
    cut: bool = False
    skipped: int = 0

    @property
    def tokens(self) -> list[int]:
        return (self.targets or self.inputs)[self.scored.start : self.scored.stop]


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Turns texts and ids into requests of a model with a head for tokens; see `Loaded.score`."""

    source: Described
    prompt: str | None = None
    eos: bool | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        require(self.source, head="lm", to="score text")
        if self.prompt is not None and self.prompt not in PROMPTS:
            raise unknown("prompt", self.prompt, PROMPTS)
        if self._topology == "encoder":
            if self.prompt is not None or self.eos:
                raise InputError(
                    f"{self.source.folder} holds an encoder, which scores each token given all "
                    "others: prompt and eos are not supported"
                )
            mask_of(self._vocabulary)

    def read(self, text: str, target: str | None = None) -> ScoreRequest:
        """Returns the request of a text, or of a target given a text, maybe "" for a decoder."""
        for part in (text, target):
            if not isinstance(part, str | None) or text is None:
                raise InputError(f"{part!r} is not a text")
        vocabulary, topology = self._vocabulary, self._topology
        if topology == "encoder_decoder" and target is None:
            raise InputError("no targets: an encoder-decoder scores targets, given the text")
        if topology == "encoder" and target is not None:
            raise InputError("targets are for models with a decoder: an encoder scores the text")
        ids = encode(text, vocabulary)
        if not ids and (target is None or self._needs_context):
            raise InputError("the text is empty: it has no token")
        if topology == "encoder":
            return self._masked(ids)
        if topology == "decoder":  # which reads the start token anyway
            ids = start_of(vocabulary, self._start_id).without(ids)
        if target is None:
            request = self._whole(ids)
            if self._start_id is not None:
                return request
            _, offsets = vocabulary.encode_with_offsets(text)
            return dataclasses.replace(request, skipped=offsets[0][1])
        frame = self._prompt.targets
        if self.eos is not None:
            frame = Frame(frame.before, (vocabulary.eos_id,) if self.eos else ())
        target_ids = encode(target, vocabulary.targets)
        if self._prompt.kind != "inputs" and ids:
            ids, target_ids = split_pair(text, target, vocabulary)
        return self._after(self._fitting(ids, frame(target_ids)), frame(target_ids))

    def read_ids(self, context_ids: Sequence[int], target_ids: Sequence[int]) -> ScoreRequest:
        """Returns the request of target ids given context ids, neither framed nor truncated.

        A decoder reads its start token, the context, empty only after a start token, and the
        target; an encoder-decoder's encoder reads the context.

        Raises: InputError for an encoder, no target, no context, an id outside the vocabulary, or
        more ids than the model has positions for.
        """
        context, target = [*map(int, context_ids)], [*map(int, target_ids)]
        if self._topology == "encoder":
            raise InputError("target_ids are for models with a decoder: an encoder scores the text")
        if not context and self._needs_context:
            raise InputError("context_ids are empty: this model needs at least one token there")
        if not target:
            raise InputError("the target is empty: it has no token")
        last = self.source.model.spec.vocab - 1
        for name, ids in (("context_ids", context), ("target_ids", target)):
            if ids and not 0 <= min(ids) <= max(ids) <= last:
                raise InputError(
                    f"{name}: ids must be in 0..{last}; these are in {min(ids)}..{max(ids)}",
                    field=name,
                )
        sides = {"decoder": [*context, *target]}
        if self._topology == "encoder_decoder":
            sides = {"encoder": context, "decoder": target}
        for side, ids in sides.items():
            most = self._positions(side)
            if most is not None and len(ids) > most:
                raise InputError(
                    f"context_ids and target_ids: {len(ids)} tokens for the {side}, which takes "
                    f"{most}; leave out the first ones of context_ids"
                )
        return self._after(context, target)

    @property
    def _topology(self) -> str:
        return self.source.model.topology

    @property
    def _vocabulary(self) -> Any:
        return self.source.vocabulary

    @property
    def _start_id(self) -> int | None:
        return self.source.model.start_id

    @property
    def _needs_context(self) -> bool:
        return self._topology != "decoder" or self._start_id is None

    @property
    def _prompt(self) -> Prompt:
        return self.source.prompts.of(self.prompt)

    def _positions(self, side: str) -> int | None:
        return getattr(self.source.model.spec, side).max_length

    def _masked(self, ids: list[int]) -> ScoreRequest:
        frame = self._vocabulary.frame
        fitting = frame.fit(ids, self._positions("encoder"), truncate=self.truncate)
        scored = range(len(frame.before), len(frame.before) + len(fitting))
        return ScoreRequest(frame(fitting), [], scored, cut=len(fitting) < len(ids))

    def _whole(self, ids: list[int]) -> ScoreRequest:
        if self.eos:
            ids = [*ids, self._vocabulary.eos_id]
        fitting = Frame().fit(ids, self._positions("decoder"), truncate=self.truncate)
        first = 1 if self._start_id is None else 0
        if len(fitting) <= first:
            raise InputError(
                "the text has a single token: the model reads nothing before it, and could only "
                "score a second one"
            )
        scored, bidirectional = range(first, len(fitting)), self._prompt.bidirectional
        return ScoreRequest([], fitting, scored, bidirectional, cut=len(fitting) < len(ids))

    def _fitting(self, ids: list[int], target: list[int]) -> list[int]:
        """Returns the framed ids of a text, truncated to fit beside a target."""
        if not target:
            raise InputError("the target is empty: it has no token")
        prompt, most = self._prompt, self._positions("decoder")
        frame, decoder = prompt.inputs, self._topology == "decoder"
        reserved = 1 if decoder and ids else 0  # of the prompt
        if most is not None and len(target) + reserved > most:
            raise InputError(
                f"a target of {len(target)} tokens: the model takes {most - reserved}; shorten it"
            )
        if not decoder:
            most = self._positions("encoder")
        # A text that is continued loses its beginning.
        beside, end = len(target) if decoder else 0, prompt.kind == "inputs"
        return frame(frame.fit(ids, most, beside=beside, end=end, truncate=self.truncate))

    def _after(self, inputs: list[int], target: list[int]) -> ScoreRequest:
        if self._topology == "encoder_decoder":
            return ScoreRequest(inputs, target, range(len(target)))
        scored = range(len(inputs), len(inputs) + len(target))
        return ScoreRequest([], [*inputs, *target], scored, self._prompt.bidirectional)


def score(
    placed: Placed,
    params: Any,
    requests: Sequence[ScoreRequest],
    *,
    vocabulary: Any,
    batch_size: int = 32,
) -> list[Score | InputError]:
    """Returns each request's score or InputError of NaN; without vocabulary, pieces are ids."""
    check_count("batch_size", batch_size)
    masked, model = placed.model.topology == "encoder", placed.model
    rows = [
        (index, positions)
        for index, request in enumerate(requests)
        for positions in (
            ((position,) for position in request.scored) if masked else (request.scored,)
        )
    ]
    values = [np.zeros((2, len(request.scored)), np.float32) for request in requests]
    sizes = [len(requests[index].inputs) + len(requests[index].targets) for index, _ in rows]
    kinds = [requests[index].bidirectional for index, _ in rows]
    scores = compiled(token_scores, model, placed.layout, placed.mesh)
    for bidirectional in sorted({*kinds}):
        members = np.flatnonzero(np.asarray(kinds) == bidirectional)
        for together in by_size([sizes[row] for row in members], batch_size):
            part = [rows[row] for row in members[together]]
            batch = _batch(placed, [(requests[i], positions) for i, positions in part], vocabulary)
            computed = np.stack([np.asarray(array) for array in scores(params, batch)])
            for row, (index, positions) in enumerate(part):
                at = positions[0] - requests[index].scored.start
                values[index][:, at : at + len(positions)] = computed[:, row, : len(positions)]
    piece = str if vocabulary is None else vocabulary.piece
    return [
        not_finite("the model's logits", params=params, model=model)
        if np.isnan(log_probabilities).any()
        else Score(request.tokens, [*map(piece, request.tokens)], log_probabilities, greedy > 0)
        for request, (log_probabilities, greedy) in zip(requests, values, strict=True)
    ]


def _batch(
    placed: Placed, part: Sequence[tuple[ScoreRequest, Sequence[int]]], vocabulary: Any
) -> dict[str, np.ndarray]:
    """Returns rows as in training, and `scored` `[rows, n]` int32, the scored positions."""
    model, topology = placed.model, placed.model.topology
    count = num_rows(len(part), placed.layout, placed.mesh)
    rows: dict[str, np.ndarray] = {}
    for name, side in (("inputs", "encoder"), ("targets", "decoder")):
        ids = [getattr(request, name) for request, _ in part]
        if any(ids):
            length = bucket(max(map(len, ids)), getattr(model.spec, side).max_length)
            rows[name], rows[f"{name}_segment_ids"] = padded(ids, count, length)
    most = bucket(max(len(positions) for _, positions in part)) if topology != "encoder" else 1
    scored, _ = padded([positions for _, positions in part], count, most)
    if topology == "encoder":
        tokens, inputs = rows["inputs"], rows["inputs"].copy()
        inputs[np.arange(len(part)), scored[: len(part), 0]] = mask_of(vocabulary)
        batch = {
            "encoder_input_tokens": inputs,
            "encoder_segment_ids": rows["inputs_segment_ids"],
            "encoder_target_tokens": tokens,
        }
    elif topology == "encoder_decoder":
        batch = encoder_decoder_batch(rows, start_id=model.start_id)
    elif not part[0][0].bidirectional:
        batch = decoder_batch(rows, start_id=model.start_id)
    else:
        prompts = [[1] * request.scored.start for request, _ in part]
        rows["prefix"], _ = padded(prompts, *rows["targets"].shape)
        batch = prefix_lm_batch(rows, start_id=model.start_id)
    # Without a start token each position predicts the token after it.
    shift = topology == "decoder" and model.start_id is None
    return batch | {"scored": np.maximum(scored - 1, 0) if shift else scored}


def token_scores(model: Model, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Returns log-probabilities `[batch, n]` in nats, and whether the token's logit is above all
    others; pure and traceable. The batch is one of training, and `scored` `[batch, n]` int32, the
    positions of the scored targets, whose logits are computed in chunks."""
    hidden, _ = model.hidden(params, batch)
    side, scored = model.topology.rpartition("_")[2], batch["scored"]
    losses = chunked_cross_entropy(
        functools.partial(model.logits, params),
        jnp.take_along_axis(hidden, scored[..., None], axis=1),
        jnp.take_along_axis(batch[f"{side}_target_tokens"], scored, axis=1),
        chunk_length=max(1, _MOST_LOGITS // (len(scored) * model.spec.vocab)),
    )
    return -losses.negative_log_likelihood, losses.correct


def perplexity(log_probability: float, num_tokens: int) -> float:
    """Returns exp(-log_probability / num_tokens), infinite if it overflows."""
    mean = -log_probability / num_tokens
    return math.exp(mean) if mean < 700 else math.inf
