"""Predictions of heads: classes, numbers, tags, answers."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.data.files.templates import Template
from t5lite.data.input_format import InputFormat
from t5lite.errors import InputError, unknown
from t5lite.inference import text_spans
from t5lite.inference.batching import (
    Placed,
    check_count,
    check_max_length,
    compiled,
    padded,
    positions,
    stack_outcomes,
)
from t5lite.inference.predictions import (
    Answers,
    AnswerSpan,
    Classes,
    Numbers,
    Prediction,
    Tagged,
)
from t5lite.inference.requirements import not_finite, require
from t5lite.inference.text_spans import Span
from t5lite.models import Model

HEADS = ("classification", "regression", "token_labels", "spans")
AGGREGATIONS = ("first", "simple")
_WORD = re.compile(r"\S+")
_PAIRS = {"spans": ("question", "context")}  # columns; of other heads:
_PAIR = ("text", "text_pair")
_VERBS = {"lm": "`generate` and `score`", "embedding": "`embed`", "pooler": "`embed`"}


class PredictRequest(NamedTuple):
    """A text as ids, with the spans of its tokens.

    Attributes:
      text: in which spans count.
      ids: special tokens included.
      start: the index of the first of `offsets` in `ids`.
      offsets: the spans of the tokens; for tags and answers.
      words: the spans of the words, for tags.
      tokens: the index in `offsets` of each word's token, -1 for none.
      types: a token type for each id; None if all are 0.
    """

    text: str
    ids: list[int]
    start: int = 0
    offsets: Sequence[Span] = ()
    words: Sequence[Span] = ()
    tokens: Sequence[int] = ()
    types: Sequence[int] | None = None
    num_cut: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Turns texts into requests of a single stack with such a head and a vocabulary, and outputs
    into predictions; see `Loaded.predict`."""

    source: Any
    head: str | None = None
    top_k: int = 5
    max_length: int | None = None
    template: str | None = None
    aggregation: str = "first"
    max_answer_length: int = 30
    no_answer: bool | None = None

    def __post_init__(self) -> None:
        _ = self.kind, self._template  # raise their errors now
        check_count("top_k", self.top_k)
        check_count("max_answer_length", self.max_answer_length)
        if self.aggregation not in AGGREGATIONS:
            raise unknown("aggregation", self.aggregation, AGGREGATIONS)
        special = require(self.source, to="predict").frame.size
        check_max_length(self.max_length, special=special, positions=positions(self.source.model))

    @functools.cached_property
    def kind(self) -> str:
        heads, topology = self.source.model.heads, self.source.model.topology
        fitting = [kind for kind in HEADS if kind in heads and topology != "encoder_decoder"]
        if not fitting:
            uses = [f"its head {kind!r} is for {_VERBS[kind]}" for kind in _VERBS if kind in heads]
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
        return self.source.labels.get("labels", ())

    @property
    def _vocabulary(self) -> Any:
        return self.source.vocabulary

    @functools.cached_property
    def _most(self) -> int | None:
        length = self.source.inputs.length if self.max_length is None else self.max_length
        limits = (length, positions(self.source.model))
        return min((limit for limit in limits if limit is not None), default=None)

    @functools.cached_property
    def _template(self) -> Template | None:
        return None if self.template is None else Template(self.template)

    # Requests.

    def read(self, row: str | Mapping[str, Any]) -> PredictRequest:
        """Returns the request of a text or a row; an InputError without a column or any token."""
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

    def _read(self, text: str, *, within: Span | None = None) -> PredictRequest:
        """Returns the request of a text, with the offsets of tokens within a part of it."""
        if self.kind in ("classification", "regression"):
            return self._framed(text, self._vocabulary.encode(text))
        if self.kind == "token_labels":
            if self.source.inputs.kind == "words":
                return self._read_words(text, text_spans.split_words(text))
            ids, offsets = self._vocabulary.encode_with_offsets(text)
            words = text_spans.without_spaces(text, text_spans.split_words(text))
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

    def _read_words(self, value: Any, words: Sequence[Span] | None = None) -> PredictRequest:
        """Returns the request of words, joined by spaces as in training on `Tags`."""
        if isinstance(value, str):
            text = value
            words = words or [match.span() for match in _WORD.finditer(text)]
            pieces = [text[start:end] for start, end in words]
        else:
            pieces = [Template("{word}").render({"word": word}) for word in value]
            text, words = " ".join(pieces), None
        ends = np.cumsum([len(piece) + 1 for piece in pieces], dtype=np.int64) - 1
        encoded = [(int(end) - len(word), int(end)) for end, word in zip(ends, pieces, strict=True)]
        ids, offsets = self._vocabulary.encode_with_offsets(" ".join(pieces))
        return self._with_words(self._framed(text, ids, offsets), words or encoded, encoded)

    def _with_words(
        self, request: PredictRequest, words: Sequence[Span], encoded: Sequence[Span]
    ) -> PredictRequest:
        """Returns a request with the spans of its words, in its text and in the encoded text."""
        if self.aggregation == "simple":
            count = len(request.offsets)
            return request._replace(words=request.offsets, tokens=range(count))
        tokens = text_spans.tokens_of_words(encoded, request.offsets)
        return request._replace(words=words, tokens=tokens)

    def _framed(self, text: str, ids: list[int], offsets: Sequence[Span] = ()) -> PredictRequest:
        frame = self._vocabulary.frame
        if not ids and not frame.size:
            raise InputError("the text is empty: it has no token")
        fitting = frame.fit(ids, self._most, truncate=True)  # as in training
        num_cut = len(ids) - len(fitting)
        return PredictRequest(text, frame(fitting), len(frame.before), offsets, num_cut=num_cut)

    def _read_pair(self, first: str, second: str) -> PredictRequest:
        pair = self._vocabulary.encode_pair(first, second, self._most)
        spec, types = self.source.model.spec, None
        if spec.num_token_types is not None and spec.num_token_types > 1:
            types = pair.types
        return PredictRequest(
            second, pair.ids, pair.start, pair.offsets, types=types, num_cut=pair.num_cut
        )

    # Predictions.

    def prediction(self, request: PredictRequest, output: np.ndarray) -> Prediction:
        """Returns the prediction of an output: `[size]` float32, or of tokens `[length, size]`."""
        return getattr(self, f"_{self.kind}")(request, output)

    def _classification(self, request: PredictRequest, logits: np.ndarray) -> Classes:
        probabilities, names = text_spans.softmax(logits), self.names
        order = np.argsort(-probabilities, kind="stable")[: self.top_k].tolist()
        labels = [names[label] if label < len(names) else label for label in order]
        classes = tuple(zip(labels, probabilities[order].tolist(), strict=True))
        return Classes(classes, num_cut=request.num_cut)

    def _regression(self, request: PredictRequest, values: np.ndarray) -> Numbers:
        names = tuple(self.names) if len(self.names) == len(values) > 1 else ()
        return Numbers(tuple(values.tolist()), names, num_cut=request.num_cut)

    def _token_labels(self, request: PredictRequest, logits: np.ndarray) -> Tagged:
        inside = logits[request.start : len(logits) - len(self._vocabulary.frame.after)]
        tags = text_spans.tags_at(request.words, request.tokens, inside, self.names)
        spans = text_spans.joined(request.text, tags, self.names)
        return Tagged(request.text, spans, num_cut=request.num_cut)

    def _spans(self, request: PredictRequest, logits: np.ndarray) -> Answers:
        no_answer = (
            self.source.inputs != InputFormat() if self.no_answer is None else self.no_answer
        )
        candidates, none = text_spans.likeliest(
            logits,
            range(request.start, request.start + len(request.offsets)),
            max_length=self.max_answer_length,
            count=self.top_k,
            no_answer=no_answer,
        )
        answers = []
        for first, last, probability in candidates:
            begin, end = (request.offsets[token - request.start] for token in (first, last))
            start, stop = text_spans.trimmed(request.text, begin[0], end[1])
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
    """Returns the prediction of each request, or the InputError of NaN or infinity."""
    kind, model = predictor.kind, placed.model
    outputs = compiled(head_outputs, model, placed.layout, placed.mesh, head=kind)

    def compute(rows: np.ndarray, batch: dict[str, np.ndarray]) -> jax.Array:
        part = [requests[row] for row in rows]
        if any(request.types is not None for request in part):
            types = [request.types or [0] * len(request.ids) for request in part]
            batch["token_types"], _ = padded(types, *batch[f"{model.topology}_input_tokens"].shape)
        return outputs(params, batch)

    def read(row: int, output: np.ndarray) -> Prediction | InputError:
        if kind in ("token_labels", "spans"):
            output = output[: len(requests[row].ids)]
        if np.isfinite(output).all():
            return predictor.prediction(requests[row], output)
        return not_finite(f"the numbers of the {kind} head", params=params, model=model)

    ids = [request.ids for request in requests]
    return stack_outcomes(placed, ids, batch_size, compute, read)


def head_outputs(model: Model, params: Any, batch: Any, head: str) -> jax.Array:
    """Computes a head's outputs, float32: `[batch, size]`, or of tokens `[batch, length, size]`."""
    hidden, _ = model.hidden(params, batch)
    return model.output(params, head, hidden, batch[f"{model.topology}_segment_ids"] > 0)
