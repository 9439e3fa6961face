"""Predictions of heads: classes, numbers, tags, answers."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.data.files.templates import Template
from t5lite.data.input_format import InputFormat
from t5lite.errors import InputError, unknown
from t5lite.inference import tagging
from t5lite.inference.answer_places import likeliest
from t5lite.inference.batching import (
    Placed,
    check_count,
    check_max_length,
    padded,
    positions,
    stack_batches,
)
from t5lite.inference.finite import Source, not_finite
from t5lite.inference.predictions import (
    Answers,
    AnswerSpan,
    Classes,
    Numbers,
    Prediction,
    Tagged,
)
from t5lite.inference.requirements import require
from t5lite.inference.tagging import Place
from t5lite.models import Model
from t5lite.parallel import Layout, with_layout

HEADS = ("classification", "regression", "token_labels", "spans")
AGGREGATIONS = ("first", "simple")
_WORD = re.compile(r"\S+")
_PAIRS = {"spans": ("question", "context")}  # columns; of other heads:
_PAIR = ("text", "text_pair")
_INSTEAD = {"lm": "`generate` and `score`", "embedding": "`embed`", "pooler": "`embed`"}


class PredictRequest(NamedTuple):
    """A text as ids, and where its tokens are in the text.

    Attributes:
      text: in which offsets count.
      ids: with the special tokens around it.
      start: the first token of `offsets` among the ids.
      offsets: the characters of the tokens in the text; of tags and answers alone.
      words: the words' characters in the text, where they are tagged.
      tokens: which of `offsets` stands for each word, -1 for none.
      types: a token type for each id; None where all are 0.
      num_cut: tokens that did not fit.
    """

    text: str
    ids: list[int]
    start: int = 0
    offsets: Sequence[Place] = ()
    words: Sequence[Place] = ()
    tokens: Sequence[int] = ()
    types: Sequence[int] | None = None
    num_cut: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Makes requests of texts, and predictions of a head's outputs; see `Loaded.predict`.

    Args:
      source: a single stack with such a head and a vocabulary; no parameters are needed.
      head, top_k, max_length, template, aggregation, max_answer_length, no_answer: see there.

    Raises:
      InputError: no or several such heads, no vocabulary, or an argument out of range.
    """

    source: Any
    head: str | None = None
    top_k: int = 5
    max_length: int | None = None
    template: str | None = None
    aggregation: str = "first"
    max_answer_length: int = 30
    no_answer: bool | None = None

    def __post_init__(self) -> None:
        _ = self.kind, self._template  # refuse what they cannot be
        check_count("top_k", self.top_k)
        check_count("max_answer_length", self.max_answer_length)
        if self.aggregation not in AGGREGATIONS:
            raise unknown("aggregation", self.aggregation, AGGREGATIONS)
        special = require(self.source, to="predict").frame.size
        check_max_length(self.max_length, special=special, positions=positions(self.source.model))

    @functools.cached_property
    def kind(self) -> str:
        """The kind of the head.

        Raises:
          InputError: no such head, or several without a name.
        """
        heads, topology = self.source.model.heads, self.source.model.topology
        fitting = [kind for kind in HEADS if kind in heads and topology != "encoder_decoder"]
        if not fitting:
            uses = [
                f"its head {kind!r} is for {_INSTEAD[kind]}" for kind in _INSTEAD if kind in heads
            ]
            stacks = "an encoder-decoder" if topology == "encoder_decoder" else f"one {topology}"
            advice = "; ".join(uses) or "train one, as configs/classify_csv.gin does"
            raise InputError(
                f"{self.source.folder} holds {stacks} without a predicting head "
                f"({', '.join(HEADS)}): {advice}"
            )
        if self.head is not None and self.head not in fitting:
            raise unknown(f"head of {self.source.folder}", self.head, fitting)
        if self.head is None and len(fitting) > 1:
            raise InputError(f"head: the model has {', '.join(fitting)}; name one of them")
        return self.head or fitting[0]

    @property
    def names(self) -> Sequence[str]:
        """The names of the head's outputs, in order; empty where none were saved."""
        return self.source.labels.get("labels", ())

    @property
    def _vocabulary(self) -> Any:
        return self.source.vocabulary

    @functools.cached_property
    def _most(self) -> int | None:
        """Most tokens of a text; longer texts lose their end, as in training."""
        length = self.source.inputs.length if self.max_length is None else self.max_length
        limits = (length, positions(self.source.model))
        return min((limit for limit in limits if limit is not None), default=None)

    @functools.cached_property
    def _template(self) -> Template | None:
        return None if self.template is None else Template(self.template)

    @property
    def _knows_no_answer(self) -> bool:
        return self.source.inputs != InputFormat() if self.no_answer is None else self.no_answer

    # Reading.

    def read(self, row: str | Mapping[str, Any]) -> PredictRequest:
        """Returns the request of a text, or of a row of columns.

        Raises:
          InputError: neither, a column that is missing, or a text without a token.
        """
        if isinstance(row, str):
            if self._template is None:
                return self._read(row)
            row = {"text": row}
        if not isinstance(row, Mapping):
            raise InputError(f"{row!r} is neither a text nor a row of columns")
        inputs = self.source.inputs
        template = self._template or inputs.of_rows(row)
        if template is None:
            pair = _PAIRS.get(self.kind, _PAIR)
            pairs = hasattr(self._vocabulary, "encode_pair")
            if pairs and all(isinstance(row.get(name), str) for name in pair):
                return self._read_pair(*(row[name] for name in pair))
        elif self.kind == "token_labels" and self._template is None and inputs.kind == "words":
            return self._read_words(row[template.slots[0]])
        text = inputs.text(row, "inputs", "text", template=self._template)
        if self.kind != "spans" or template is None or not template.slots:
            return self._read(text)
        slot = template.slots[-1]
        start = template.start_of(slot, row)
        return self._read(text, within=(start, start + len(Template(f"{{{slot}}}").render(row))))

    def _read(self, text: str, *, within: Place | None = None) -> PredictRequest:
        """Returns the request of a text; offsets are those of tokens within a part of it."""
        if self.kind in ("classification", "regression"):
            return self._framed(text, self._vocabulary.encode(text))
        if self.kind == "token_labels":
            if self.source.inputs.kind == "words":
                return self._read_words(text, tagging.split_words(text))
            ids, offsets = self._vocabulary.encode_with_offsets(text)
            words = tagging.without_spaces(text, tagging.split_words(text))
            return self._with_words(self._framed(text, ids, offsets), words, words)
        begin, end = within or (0, len(text))
        ids, offsets = self._vocabulary.encode_with_offsets(text)
        inside = [at for at, (start, stop) in enumerate(offsets) if start < end and stop > begin]
        first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
        part = [(max(start, begin) - begin, min(stop, end) - begin) for start, stop in offsets]
        request = self._framed(text[begin:end], ids)
        start = request.start + first
        fits = max(len(request.ids) - len(self._vocabulary.frame.after) - start, 0)
        return request._replace(start=start, offsets=part[first:last][:fits])

    def _read_words(self, value: Any, words: Sequence[Place] | None = None) -> PredictRequest:
        """Returns the request of words, joined by spaces as in training on `Tags`."""
        if isinstance(value, str):
            text = value
            words = words or [match.span() for match in _WORD.finditer(text)]
            pieces = [text[start:end] for start, end in words]
        else:
            pieces = [Template("{word}").render({"word": word}) for word in value]
            text, words = " ".join(pieces), None
        ends = np.cumsum([len(piece) + 1 for piece in pieces], dtype=np.int64) - 1
        places = [
            (int(end) - len(piece), int(end)) for end, piece in zip(ends, pieces, strict=True)
        ]
        ids, offsets = self._vocabulary.encode_with_offsets(" ".join(pieces))
        return self._with_words(self._framed(text, ids, offsets), words or places, places)

    def _with_words(
        self, request: PredictRequest, words: Sequence[Place], places: Sequence[Place]
    ) -> PredictRequest:
        """Returns a request with the words of its text, and their places in what was encoded."""
        if self.aggregation == "simple":
            count = len(request.offsets)
            return request._replace(words=request.offsets, tokens=range(count))
        tokens = tagging.tokens_of_words(places, request.offsets)
        return request._replace(words=words, tokens=tokens)

    def _framed(
        self, text: str, ids: Sequence[int], offsets: Sequence[Place] = ()
    ) -> PredictRequest:
        frame, most = self._vocabulary.frame, self._most
        if not ids and not frame.size:
            raise InputError("the text is empty: it has no token")
        cut = 0 if most is None else max(len(ids) + frame.size - most, 0)
        framed = frame(ids, most)
        return PredictRequest(text, framed, len(frame.before), offsets, num_cut=cut)

    def _read_pair(self, first: str, second: str) -> PredictRequest:
        pair = self._vocabulary.encode_pair(first, second, self._most)
        spec, types = self.source.model.spec, None
        if spec.num_token_types is not None and spec.num_token_types > 1:
            types = pair.types
        return PredictRequest(
            second, pair.ids, pair.start, pair.offsets, types=types, num_cut=pair.num_cut
        )

    # Predicting.

    def prediction(self, request: PredictRequest, output: np.ndarray) -> Prediction:
        """Returns the prediction that a head's output for a request means.

        Args:
          request: as `read` returned it.
          output: of the head: `[size]` float32, or of tokens `[length, size]`.
        """
        return getattr(self, f"_{self.kind}")(request, output)

    def _classification(self, request: PredictRequest, logits: np.ndarray) -> Classes:
        shares, names = tagging.softmax(logits), self.names
        order = np.argsort(-shares, kind="stable")[: self.top_k].tolist()
        named = [names[label] if label < len(names) else label for label in order]
        classes = tuple(zip(named, shares[order].tolist(), strict=True))
        return Classes(classes, num_cut=request.num_cut)

    def _regression(self, request: PredictRequest, values: np.ndarray) -> Numbers:
        names = tuple(self.names) if len(self.names) == len(values) > 1 else ()
        return Numbers(tuple(values.tolist()), names, num_cut=request.num_cut)

    def _token_labels(self, request: PredictRequest, logits: np.ndarray) -> Tagged:
        inside = logits[request.start : len(logits) - len(self._vocabulary.frame.after)]
        tags = tagging.tags_at(request.words, request.tokens, inside, self.names)
        spans = tagging.joined(request.text, tags, self.names)
        return Tagged(request.text, spans, num_cut=request.num_cut)

    def _spans(self, request: PredictRequest, logits: np.ndarray) -> Answers:
        places, none = likeliest(
            logits,
            range(request.start, request.start + len(request.offsets)),
            max_length=self.max_answer_length,
            count=self.top_k,
            no_answer=self._knows_no_answer,
        )
        answers = []
        for first, last, probability in places:
            begin, end = (request.offsets[token - request.start] for token in (first, last))
            start, stop = tagging.trimmed(request.text, begin[0], end[1])
            if start < stop:  # not of white space alone
                answers.append(AnswerSpan(request.text[start:stop], start, stop, probability))
        return Answers(tuple(answers), none, num_cut=request.num_cut)


def predict(
    placed: Placed,
    params: Any,
    predictor: Predictor,
    requests: Sequence[PredictRequest],
    *,
    batch_size: int = 32,
) -> list[Prediction | InputError]:
    """Returns the prediction of each request; an InputError in place of one that is not finite.

    Args:
      placed: the model, its layout and mesh.
      params: of the model.
      predictor: that made the requests.
      requests: as `Predictor.read` returns them.
      batch_size: most texts at once; those of like length go together.
    """
    kind, model = predictor.kind, placed.model
    predictions: list[Any] = [None] * len(requests)
    compiled = outputs_fn(model, placed.layout, placed.mesh, kind)
    for together, batch in stack_batches(placed, [each.ids for each in requests], batch_size):
        part = [requests[row] for row in together]
        if any(request.types is not None for request in part):
            types = [request.types or [0] * len(request.ids) for request in part]
            batch["token_types"], _ = padded(types, *batch[f"{model.topology}_input_tokens"].shape)
        outputs = np.asarray(compiled(params, batch))
        for row, request, output in zip(together, part, outputs, strict=False):
            if kind in ("token_labels", "spans"):
                output = output[: len(request.ids)]
            predictions[row] = (
                predictor.prediction(request, output)
                if np.isfinite(output).all()
                else not_finite(Source(params, model), f"the numbers of the {kind} head")
            )
    return predictions


def head_outputs(model: Model, params: Any, batch: Any, head: str) -> jax.Array:
    """Computes a head's outputs, float32: `[batch, size]`, or of tokens `[batch, length, size]`."""
    hidden, _ = model.hidden(params, batch)
    return model.output(params, head, hidden, batch[f"{model.topology}_segment_ids"] > 0)


@functools.lru_cache(maxsize=16)
def outputs_fn(model: Model, layout: Layout, mesh: Mesh, head: str) -> Callable:
    """Returns `head_outputs` of a model, compiled: `(params, batch)`; equal arguments share it."""
    whole = NamedSharding(mesh, PartitionSpec())
    fn = functools.partial(head_outputs, model, head=head)
    return with_layout(fn, layout, mesh, out_shardings=whole)
