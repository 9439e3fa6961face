"""Texts to what a head says of them: classes, numbers, tags, answers."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.data.files.templates import Template
from t5lite.data.input_format import InputFormat
from t5lite.errors import InputError, unknown
from t5lite.inference import tagging
from t5lite.inference.answer_places import likeliest
from t5lite.inference.batching import bucket, by_size, check_count, num_rows, padded
from t5lite.inference.finite import not_finite
from t5lite.inference.predictions import (
    Answers,
    AnswerSpan,
    Classes,
    Numbers,
    Prediction,
    Tagged,
)
from t5lite.inference.tagging import Place
from t5lite.models import Model
from t5lite.parallel import Layout, with_layout

if TYPE_CHECKING:
    from t5lite.inference.loaded import Loaded

HEADS = ("classification", "regression", "token_labels", "spans")
AGGREGATIONS = ("first", "simple")
_WORD = re.compile(r"\S+")
_PAIRS = {"spans": ("question", "context")}  # columns; of other heads:
_PAIR = ("text", "text_pair")
_INSTEAD = {"lm": "`generate` and `score`", "embedding": "`embed`", "pooler": "`embed`"}


class Question(NamedTuple):
    """A text as the model reads it.

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
    """Asks a head of a model; see `Loaded.predict`, which is all of it in one call.

    Args:
      loaded: a single stack with such a head and a vocabulary.
      head, top_k, max_length, template, aggregation, max_answer_length, no_answer: see there.

    Raises:
      InputError: no or several such heads, no vocabulary, or an argument out of range.
    """

    loaded: "Loaded"
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
        if self.loaded.vocabulary is None:
            raise InputError(
                f"no vocabulary beside {self.loaded.folder}; give one: load(folder, vocabulary=...)"
            )
        if self.max_length is not None:
            check_count("max_length", self.max_length)
            around, positions = self._vocabulary.frame.size, self._positions
            if self.max_length <= around or self.max_length > (positions or self.max_length):
                most = "" if positions is None else f" and at most {positions}, the positions"
                raise InputError(
                    f"max_length = {self.max_length}: must be at least {around + 1}{most}"
                )

    @functools.cached_property
    def kind(self) -> str:
        """The kind of head that is asked.

        Raises:
          InputError: if there is none, or several and none is named.
        """
        heads, topology = self.loaded.model.heads, self.loaded.model.topology
        there = [kind for kind in HEADS if kind in heads and topology != "encoder_decoder"]
        if not there:
            uses = [
                f"its head {kind!r} is for {_INSTEAD[kind]}" for kind in _INSTEAD if kind in heads
            ]
            stacks = "an encoder-decoder" if topology == "encoder_decoder" else f"one {topology}"
            advice = "; ".join(uses) or "train one, as configs/classify_csv.gin does"
            raise InputError(
                f"{self.loaded.folder} holds {stacks} without a head that predicts "
                f"({', '.join(HEADS)}): {advice}"
            )
        if self.head is not None and self.head not in there:
            raise unknown(f"head of {self.loaded.folder}", self.head, there)
        if self.head is None and len(there) > 1:
            raise InputError(f"head: the model has {', '.join(there)}; name one of them")
        return self.head or there[0]

    @property
    def names(self) -> Sequence[str]:
        """The names of the head's outputs, in order; empty where none were saved."""
        return self.loaded.labels.get("labels", ())

    @property
    def _vocabulary(self) -> Any:
        return self.loaded.vocabulary

    @property
    def _positions(self) -> int | None:
        stack = self.loaded.spec.encoder or self.loaded.spec.decoder
        assert stack is not None
        return stack.max_length

    @functools.cached_property
    def _room(self) -> int | None:
        """Most tokens that the model is given; longer texts lose their end, as in training."""
        length = self.loaded.inputs.length if self.max_length is None else self.max_length
        sizes = [size for size in (length, self._positions) if size is not None]
        return min(sizes, default=None)

    @functools.cached_property
    def _template(self) -> Template | None:
        return None if self.template is None else Template(self.template)

    @property
    def _knows_no_answer(self) -> bool:
        return self.loaded.inputs != InputFormat() if self.no_answer is None else self.no_answer

    # Reading.

    def read(self, row: str | Mapping[str, Any]) -> Question:
        """Returns a text, or a row of columns, as the model reads it.

        Raises:
          InputError: neither, a column that is missing, or a text without a token.
        """
        if isinstance(row, str):
            if self._template is None:
                return self._read(row)
            row = {"text": row}
        if not isinstance(row, Mapping):
            raise InputError(f"{row!r} is neither a text nor a row of columns")
        inputs = self.loaded.inputs
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
        start = template.place(slot, row)
        return self._read(text, within=(start, start + len(Template(f"{{{slot}}}").render(row))))

    def _read(self, text: str, *, within: Place | None = None) -> Question:
        """Returns a text; offsets are those of tokens in a part of it, and count from there."""
        if self.kind in ("classification", "regression"):
            return self._framed(text, self._vocabulary.encode(text))
        if self.kind == "token_labels":
            if self.loaded.inputs.kind == "words":
                return self._read_words(text, tagging.split_words(text))
            ids, offsets = self._vocabulary.encode_with_offsets(text)
            words = tagging.without_spaces(text, tagging.split_words(text))
            return self._with_words(self._framed(text, ids, offsets), words, words)
        begin, end = within or (0, len(text))
        ids, offsets = self._vocabulary.encode_with_offsets(text)
        inside = [at for at, (start, stop) in enumerate(offsets) if start < end and stop > begin]
        first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
        part = [(max(start, begin) - begin, min(stop, end) - begin) for start, stop in offsets]
        question = self._framed(text[begin:end], ids)
        start = question.start + first
        fits = max(len(question.ids) - len(self._vocabulary.frame.after) - start, 0)
        return question._replace(start=start, offsets=part[first:last][:fits])

    def _read_words(self, value: Any, words: Sequence[Place] | None = None) -> Question:
        """Returns words as `Tags` reads them: one text with a space between two."""
        if isinstance(value, str):
            text = value
            words = words or [found.span() for found in _WORD.finditer(text)]
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
        self, question: Question, words: Sequence[Place], places: Sequence[Place]
    ) -> Question:
        """Returns a question with the words of its text, and their places in what was encoded."""
        if self.aggregation == "simple":
            count = len(question.offsets)
            return question._replace(words=question.offsets, tokens=range(count))
        tokens = tagging.tokens_of_words(places, question.offsets)
        return question._replace(words=words, tokens=tokens)

    def _framed(self, text: str, ids: Sequence[int], offsets: Sequence[Place] = ()) -> Question:
        frame, room = self._vocabulary.frame, self._room
        if not ids and not frame.size:
            raise InputError("the text is empty: it has no token")
        cut = 0 if room is None else max(len(ids) + frame.size - room, 0)
        framed = frame(ids, room)
        return Question(text, framed, len(frame.before), offsets, num_cut=cut)

    def _read_pair(self, first: str, second: str) -> Question:
        pair = self._vocabulary.encode_pair(first, second, self._room)
        spec, types = self.loaded.spec, None
        if spec.num_token_types is not None and spec.num_token_types > 1:
            types = pair.types
        return Question(
            second, pair.ids, pair.start, pair.offsets, types=types, num_cut=pair.num_cut
        )

    # Answering.

    def predictions(
        self, questions: Sequence[Question], *, batch_size: int = 32
    ) -> list[Prediction | InputError]:
        """Returns what the head says of each text, in order.

        Args:
          questions: as `read` returns them.
          batch_size: most texts at once; those of like length go together.

        Returns:
          Predictions; an InputError where what the head says is not finite.
        """
        check_count("batch_size", batch_size)
        say = getattr(self, f"_{self.kind}")
        found: list[Any] = [None] * len(questions)
        for row, output in self._outputs(questions, batch_size):
            finite = np.isfinite(output).all()
            what = f"the numbers of the {self.kind} head"
            found[row] = say(questions[row], output) if finite else not_finite(self.loaded, what)
        return found

    def _outputs(
        self, questions: Sequence[Question], batch_size: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields what the head says, of tokens without padding, and of which question."""
        loaded, side = self.loaded, self.loaded.model.topology
        of_tokens = self.kind in ("token_labels", "spans")
        for together in by_size([len(question.ids) for question in questions], batch_size):
            batch = [questions[row] for row in together]
            length = bucket(max(len(question.ids) for question in batch), self._positions)
            count = num_rows(len(batch), loaded.layout, loaded.mesh)
            tokens, segments = padded([question.ids for question in batch], count, length)
            arrays = {f"{side}_input_tokens": tokens, f"{side}_segment_ids": segments}
            if any(question.types is not None for question in batch):
                types = [question.types or [0] * len(question.ids) for question in batch]
                arrays["token_types"], _ = padded(types, count, length)
            outputs = np.asarray(loaded.outputs_fns[self.kind](loaded.params, arrays))
            for row, question, output in zip(together, batch, outputs, strict=False):
                yield int(row), output[: len(question.ids)] if of_tokens else output

    def _classification(self, question: Question, logits: np.ndarray) -> Classes:
        shares, names = tagging.softmax(logits), self.names
        order = np.argsort(-shares, kind="stable")[: self.top_k].tolist()
        named = [names[label] if label < len(names) else label for label in order]
        classes = tuple(zip(named, shares[order].tolist(), strict=True))
        return Classes(classes, num_cut=question.num_cut)

    def _regression(self, question: Question, values: np.ndarray) -> Numbers:
        names = tuple(self.names) if len(self.names) == len(values) > 1 else ()
        return Numbers(tuple(values.tolist()), names, num_cut=question.num_cut)

    def _token_labels(self, question: Question, logits: np.ndarray) -> Tagged:
        inside = logits[question.start : len(logits) - len(self._vocabulary.frame.after)]
        tags = tagging.tags_at(question.words, question.tokens, inside, self.names)
        spans = tagging.joined(question.text, tags, self.names)
        return Tagged(question.text, spans, num_cut=question.num_cut)

    def _spans(self, question: Question, logits: np.ndarray) -> Answers:
        places, none = likeliest(
            logits,
            range(question.start, question.start + len(question.offsets)),
            max_length=self.max_answer_length,
            count=self.top_k,
            no_answer=self._knows_no_answer,
        )
        answers = []
        for first, last, probability in places:
            begin, end = (question.offsets[token - question.start] for token in (first, last))
            start, stop = tagging.trimmed(question.text, begin[0], end[1])
            if start < stop:  # not of white space alone
                answers.append(AnswerSpan(question.text[start:stop], start, stop, probability))
        return Answers(tuple(answers), none, num_cut=question.num_cut)


def compile_outputs(model: Model, layout: Layout, mesh: Mesh, *, head: str) -> Callable:
    """Returns the compiled function `(params, batch) -> what a head says`, float32."""

    def outputs(params: Any, batch: Any) -> jax.Array:
        hidden, _ = model.hidden(params, batch)
        return model.output(params, head, hidden, batch[f"{model.topology}_segment_ids"] > 0)

    whole = NamedSharding(mesh, PartitionSpec())
    return with_layout(outputs, layout, mesh, out_shardings=whole)
