"""How likely a model finds texts, token by token."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError, unknown
from t5lite.framing import Frame
from t5lite.inference.batching import (
    bucket,
    by_size,
    check_count,
    each,
    num_rows,
    padded,
    settled,
)
from t5lite.inference.context import split_pair
from t5lite.inference.finite import not_finite
from t5lite.inference.gaps import encode
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
from t5lite.parallel import Layout, with_layout

if TYPE_CHECKING:
    from t5lite.inference.loaded import Loaded

_MOST_LOGITS = 2**26  # in memory at once, in float32: 256 MiB


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """What a model says of a text's tokens.

    Args:
      tokens: the ids that were scored.
      pieces: the same, in readable form.
      token_log_probabilities: `[num_tokens]` float32, nats.
    """

    tokens: list[int]
    pieces: list[str]
    token_log_probabilities: np.ndarray

    @property
    def num_tokens(self) -> int:
        """How many tokens were scored, EOS included where it was."""
        return len(self.tokens)

    @property
    def log_probability(self) -> float:
        """Of all the tokens, in nats."""
        return float(np.sum(self.token_log_probabilities, dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of minus the mean log-probability of a token; infinite where that overflows."""
        return perplexity(self.log_probability, self.num_tokens)


@dataclasses.dataclass(frozen=True)
class Question:
    """A text as the model reads it, and which of its tokens are scored.

    Args:
      inputs: what an encoder reads; empty for a decoder.
      targets: what a decoder says behind its start token, if any, prompt first; empty for an
        encoder.
      asked: the places in `targets`, or of an encoder in `inputs`, of the tokens that are scored.
      cut: whether some of what was to be scored is missing.
      skipped: characters of a text in front of those that are scored: the first token's, of a model
        that reads nothing in front of it.
    """

    inputs: list[int]
    targets: list[int]
    asked: range
    cut: bool = False
    skipped: int = 0

    @property
    def tokens(self) -> list[int]:
        """The ids that are scored."""
        return (self.targets or self.inputs)[self.asked.start : self.asked.stop]


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Scores texts; see `Loaded.score`, which is all of it in one call.

    Args:
      loaded: a model with a head for tokens, and a vocabulary.
      prompt, eos, truncate: see `Loaded.score`.

    Raises:
      InputError: no such head, no vocabulary, no mask token for an encoder, or an unknown option.
    """

    loaded: "Loaded"
    prompt: str | None = None
    eos: bool | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        model, folder = self.loaded.model, self.loaded.folder
        if "lm" not in model.heads:
            raise InputError(
                f"{folder} holds a model without a head for tokens, which cannot score text; it "
                f"has {', '.join(model.heads) or 'none'}"
            )
        if self.loaded.vocabulary is None:
            raise InputError(
                f"no vocabulary beside {folder}; give one: load(folder, vocabulary=...)"
            )
        if self.prompt is not None and self.prompt not in PROMPTS:
            raise unknown("prompt", self.prompt, PROMPTS)
        if model.topology == "encoder":
            if self.prompt is not None or self.eos:
                raise InputError(
                    f"{folder} holds an encoder, which scores the tokens between others: prompt "
                    "and eos are for models with a decoder"
                )
            mask_of(self._vocabulary)

    def score(
        self,
        texts: Sequence[str],
        *,
        targets: Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> list[Score]:
        """Returns a score for each text; see `Loaded.score`."""
        for name, given in (("texts", texts), ("targets", targets or texts)):
            if isinstance(given, str) or not given:
                raise InputError(f"{name} must be a list of at least one text")
        if targets is not None and len(targets) != len(texts):
            raise InputError(f"{len(texts)} texts and {len(targets)} targets: give each text one")
        check_count("batch_size", batch_size)
        columns = (texts,) if targets is None else (texts, targets)
        questions = each("texts", self.read, *columns)
        return settled("texts", self.outcomes(questions, batch_size=batch_size))

    def read(self, text: str, target: str | None = None) -> Question:
        """Returns a text as the model reads it.

        Raises:
          InputError: no text, nothing in it to score, too long a one, or a target that is missing
            or not for this model.
        """
        for each_text in (text, target):
            if not isinstance(each_text, str | None) or text is None:
                raise InputError(f"{each_text!r} is not a text")
        topology, vocabulary = self.loaded.model.topology, self._vocabulary
        if topology == "encoder_decoder" and target is None:
            raise InputError("no targets: an encoder-decoder scores targets, given the text")
        if topology == "encoder" and target is not None:
            raise InputError("targets are for models with a decoder: an encoder scores the text")
        ids = encode(text, vocabulary)
        if not ids:
            raise InputError("the text is empty: it has no token")
        if topology == "encoder":
            return self._between(ids)
        if topology == "decoder":  # the start token is read anyway
            ids = start_of(vocabulary, self.loaded.spec.start_id).without(ids)
        if target is None:
            question = self._whole(ids)
            if not self._startless:
                return question
            _, offsets = vocabulary.encode_with_offsets(text)
            return dataclasses.replace(question, skipped=offsets[0][1])
        prompt, frame = self._prompt, self._prompt.targets
        if self.eos is not None:
            frame = Frame(frame.before, (vocabulary.eos_id,) if self.eos else ())
        said = encode(target, vocabulary.targets)
        if prompt.kind != "inputs":
            ids, said = split_pair(text, target, vocabulary)
        if not frame(said):
            raise InputError("the target is empty: it has no token")
        return self._behind(ids, frame(said))

    @property
    def _vocabulary(self) -> Any:
        return self.loaded.vocabulary

    @property
    def _startless(self) -> bool:
        """Whether a decoder reads nothing in front of a text, whose first token it cannot score."""
        return self.loaded.spec.start_id is None

    @property
    def _prompt(self) -> Prompt:
        """How a text with a target is read."""
        return self.loaded.prompts.of(self.prompt)

    def _between(self, ids: list[int]) -> Question:
        """Returns the question about every token of a text, given all the others."""
        frame = self._vocabulary.frame
        kept, first = self._cut(ids, self._room("encoder"), frame.size), len(frame.before)
        asked = range(first, first + len(kept))
        return Question(frame(kept), [], asked, len(kept) < len(ids))

    def _whole(self, ids: list[int]) -> Question:
        """Returns the question about every token of a text, given those before it."""
        if self.eos:
            ids = [*ids, self._vocabulary.eos_id]
        kept = self._cut(ids, self._room("decoder"))
        first = 1 if self._startless else 0
        if len(kept) <= first:
            raise InputError(
                "the text has a single token: the model reads nothing in front of it, and could "
                "only score a second one"
            )
        return Question([], kept, range(first, len(kept)), len(kept) < len(ids))

    def _behind(self, ids: list[int], said: list[int]) -> Question:
        """Returns the question about a target, given a text."""
        prompt, room = self._prompt, self._room("decoder")
        frame = prompt.inputs
        end = prompt.kind == "inputs"  # what is continued goes on from its end instead
        decoder = self.loaded.model.topology == "decoder"
        if room is not None and len(said) + decoder > room:  # a decoder's prompt is not empty
            raise InputError(
                f"a target of {len(said)} tokens: there is room for {room - decoder}; shorten it"
            )
        if not decoder:
            ids = self._cut(ids, self._room("encoder"), frame.size, end=end)
            return Question(frame(ids), said, range(len(said)))
        ids = self._cut(ids, room, frame.size + len(said), end=end)
        inputs = frame(ids)
        return Question([], [*inputs, *said], range(len(inputs), len(inputs) + len(said)))

    def _room(self, side: str) -> int | None:
        return getattr(self.loaded.spec, side).max_length

    def _cut(
        self, ids: list[int], room: int | None, others: int = 0, *, end: bool = True
    ) -> list[int]:
        """Returns the ids of a text that there is room for beside `others`."""
        if room is None or len(ids) + others <= room:
            return ids
        if not self.truncate or room <= others:
            raise InputError(
                f"a text of {len(ids) + others} tokens: there is room for {room}; shorten it"
                + (", or set truncate=True" if not self.truncate and room > others else "")
            )
        return ids[: room - others] if end else ids[others - room :]

    def outcomes(
        self, questions: Sequence[Question], *, batch_size: int = 32
    ) -> list[Score | InputError]:
        """Returns the score of each question; an InputError in place of one that is NaN.

        Args:
          questions: as `read` returns them.
          batch_size: most rows at once, of which an encoder needs one for every token.
        """
        loaded, piece = self.loaded, self._vocabulary.piece
        masked = loaded.model.topology == "encoder"
        rows = [
            (index, places)
            for index, question in enumerate(questions)
            for places in (((place,) for place in question.asked) if masked else (question.asked,))
        ]
        found = [np.zeros(len(question.asked), np.float32) for question in questions]
        sizes = [len(questions[index].inputs) + len(questions[index].targets) for index, _ in rows]
        for together in by_size(sizes, batch_size):
            asked = [rows[row] for row in together]
            batch = self._batch([(questions[index], places) for index, places in asked])
            said = np.asarray(loaded.scores_fn(loaded.params, batch))
            for (index, places), values in zip(asked, said, strict=False):
                at = places[0] - questions[index].asked.start
                found[index][at : at + len(places)] = values[: len(places)]
        return [
            not_finite(loaded, "the model's logits")
            if np.isnan(values).any()
            else Score(tokens, [piece(token) for token in tokens], values)
            for tokens, values in zip((q.tokens for q in questions), found, strict=True)
        ]

    def _batch(self, asked: Sequence[tuple[Question, Sequence[int]]]) -> dict[str, np.ndarray]:
        """Returns rows as in training, and `asked` `[rows, n]`, the places that are scored."""
        topology = self.loaded.model.topology
        count = num_rows(len(asked), self.loaded.layout, self.loaded.mesh)
        rows: dict[str, np.ndarray] = {}
        for name in ("inputs", "targets"):
            ids = [getattr(question, name) for question, _ in asked]
            if any(ids):
                side = "decoder" if name == "targets" else "encoder"
                length = bucket(max(map(len, ids)), self._room(side))
                rows[name], rows[f"{name}_segment_ids"] = padded(ids, count, length)
        most = bucket(max(len(places) for _, places in asked)) if topology != "encoder" else 1
        places, _ = padded([places for _, places in asked], count, most)
        if topology == "encoder":
            tokens, rows["inputs"] = rows["inputs"], rows["inputs"].copy()
            hidden = np.arange(len(asked)), places[: len(asked), 0]
            rows["inputs"][hidden] = mask_of(self._vocabulary)
            batch = {
                "encoder_input_tokens": rows["inputs"],
                "encoder_segment_ids": rows["inputs_segment_ids"],
                "encoder_target_tokens": tokens,
            }
        elif topology == "encoder_decoder":
            batch = encoder_decoder_batch(rows, start_id=self.loaded.spec.start_id)
        elif not self._prompt.bidirectional:
            batch = decoder_batch(rows, start_id=self.loaded.spec.start_id)
        else:
            prompts = [[1] * question.asked.start for question, _ in asked]
            rows["prefix"], _ = padded(prompts, *rows["targets"].shape)
            batch = prefix_lm_batch(rows, start_id=self.loaded.spec.start_id)
        # Without a start token each place predicts the token after it.
        return batch | {"asked": np.maximum(places - 1, 0) if self._startless else places}


def compile_scores(model: Model, layout: Layout, mesh: Mesh) -> Callable:
    """Returns the compiled function `(params, batch) -> [batch, n]` float32.

    A batch is one of training, and `asked` `[batch, n]` int32, the places of the targets that are
    scored; only their logits are computed, some at a time.
    """
    side = model.topology.rpartition("_")[2]

    def scores(params: Any, batch: Any) -> jax.Array:
        hidden, _ = model.hidden(params, batch)
        asked = batch["asked"]
        return -chunked_cross_entropy(
            functools.partial(model.logits, params),
            jnp.take_along_axis(hidden, asked[..., None], axis=1),
            jnp.take_along_axis(batch[f"{side}_target_tokens"], asked, axis=1),
            chunk_length=max(1, _MOST_LOGITS // (len(asked) * model.spec.vocab)),
        ).negative_log_likelihood

    whole = NamedSharding(mesh, PartitionSpec())  # so that any process can read it
    return with_layout(scores, layout, mesh, out_shardings=whole)


def perplexity(log_probability: float, num_tokens: int) -> float:
    """Returns exp(-log_probability / num_tokens), infinite where that overflows."""
    mean = -log_probability / num_tokens
    return math.exp(mean) if mean < 700 else math.inf
