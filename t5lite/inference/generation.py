"""Texts to answers: prompts in batches of few sizes, options as arrays, and answers as text."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np

from t5lite.data import Vocabulary
from t5lite.decoding import (
    Constraints,
    DraftMemory,
    Sampling,
    Settings,
    Speculation,
    pack_sequences,
)
from t5lite.errors import InputError, unknown
from t5lite.inference.answers import prompt_batch
from t5lite.inference.batching import bucket, by_size, check_count, num_rows, padded, power_of_two
from t5lite.inference.gaps import encode, fill_in
from t5lite.inference.options import Options
from t5lite.objectives import PROMPTS, Prompt
from t5lite.objectives.masked_lm import mask_of

if TYPE_CHECKING:
    from t5lite.inference.loaded import Loaded

# Options that decide which function is compiled; rows of a batch have them in common.
_STATIC = ("num_samples", "num_beams", "early_stopping", "logits_fn", "turns")
# Those that a row may lack, and what then stands for none.
_OFF = {
    "min_new_tokens": 0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
}


class Answer(NamedTuple):
    """What a model wrote.

    Args:
      text: up to its end or the first stop.
      tokens: ids, the EOS or what stopped it included.
      log_probability: their sum in nats, under the model alone: before penalties, temperature and
        filters.
      score: of a beam search, what answers are ranked by; otherwise the log-probability.
    """

    text: str
    tokens: np.ndarray
    log_probability: float
    score: float


class Question(NamedTuple):
    """A text as ids, and how it is to be answered.

    Args:
      ids: as the model reads them.
      options: of the text, and those of its texts as ids, below.
      number: which the text is among all, which its draws depend on.
    """

    ids: list[int]
    options: Options
    number: int
    stops: tuple[list[int], ...]
    banned: tuple[int, ...]
    forced: list[int]
    choices: tuple[list[int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Answers texts; see `Loaded.generate`, which is all of it in one call.

    Args:
      loaded: the model, with a vocabulary.
      prompt: what a text is to it, one of `PROMPTS`; None: what it was in training.
      fill: whether to answer with the text, its gaps filled in.
      truncate: whether longer prompts are cut: whole texts lose their end, those to be continued
        their beginning. Otherwise they are refused.
      draft: a smaller model of the same vocabulary that proposes tokens, or "prompt": tokens are
        looked up in the prompt and the answer; None for neither.
      draft_length: tokens proposed at a time.

    Raises:
      InputError: a model that cannot write, no vocabulary, or an option out of range.
    """

    loaded: "Loaded"
    prompt: str | None = None
    fill: bool = False
    truncate: bool = False
    draft: "Loaded | str | None" = None
    draft_length: int = 4

    def __post_init__(self) -> None:
        folder, model = self.loaded.folder, self.loaded.model
        if "lm" not in model.heads:
            raise InputError(
                f"{folder} holds a model without a head for tokens, which cannot write text; "
                f"it has {', '.join(model.heads) or 'none'}"
            )
        if self.loaded.vocabulary is None:
            raise InputError(
                f"no vocabulary/ beside {folder}; give one: load(folder, vocabulary=...)"
            )
        if self.prompt is not None and self.prompt not in PROMPTS:
            raise unknown("prompt", self.prompt, PROMPTS)
        if model.topology == "encoder":
            self._mask_id()
            for name in ("prompt", "fill", "draft"):
                if getattr(self, name):
                    raise InputError(f"{name}: an encoder fills gaps, and needs no {name}")
        if self.fill and not self._vocabulary.num_sentinels:
            raise InputError("fill needs sentinels, and the model's vocabulary has none")
        check_count("draft_length", self.draft_length)
        self._check_draft()

    def _check_draft(self) -> None:
        draft = self.draft
        if draft is None or draft == "prompt":
            return
        if isinstance(draft, str):
            raise InputError(f"draft = {draft!r}: must be a loaded model, or 'prompt'")
        if draft.model.topology != self.loaded.model.topology:
            raise InputError(
                f"the draft is {draft.model.topology}, the model {self.loaded.model.topology}: "
                "both must be of one topology"
            )
        theirs, ours = draft.vocabulary, self._vocabulary
        alike = theirs is not None and theirs.fingerprint == ours.fingerprint
        if not alike or draft.spec.vocab != self.loaded.spec.vocab:
            raise InputError("the draft has another vocabulary than the model")

    @property
    def _vocabulary(self) -> Vocabulary:
        assert self.loaded.vocabulary is not None
        return self.loaded.vocabulary

    @property
    def _ahead(self) -> int:
        """Tokens that may be read beyond an answer: a draft's."""
        return 0 if self.draft is None else self.draft_length

    @property
    def _prompt(self) -> Prompt:
        """How a text is read."""
        return self.loaded.prompts.of(self.prompt or ("inputs" if self.fill else None))

    def _mask_id(self) -> int:
        vocabulary: Any = self._vocabulary
        try:
            return mask_of(vocabulary)
        except InputError as error:
            raise InputError(
                f"{self.loaded.folder} holds an encoder, which fills gaps; {error}"
            ) from error

    # Reading.

    def read(self, text: str, options: Options = Options(), *, number: int = 0) -> Question:
        """Returns a text as ids, with its options.

        Raises:
          InputError: no text or an empty one, one too long for the model, an unknown sentinel, or
            options that the vocabulary cannot express or that contradict each other.
        """
        if not isinstance(text, str):
            raise InputError(f"{text!r} is not a text")
        ids = encode(text, self._vocabulary)
        if not ids:
            raise InputError("the text is empty: give at least one token")
        topology = self.loaded.model.topology
        if topology == "encoder":
            self._check_gaps(ids)
        return Question(self._cut(ids, options), options, number, *self._expected(options))

    def check(self, options: Options) -> None:
        """Raises the InputError that `read` raises for any text with such options, if it does."""
        self._expected(options)

    def streams(self, options: Options) -> bool:
        """Whether an answer can come in pieces."""
        several = options.num_beams > 1 or options.num_samples > 1
        return not (self.fill or several or self.loaded.model.topology == "encoder")

    def _expected(self, options: Options) -> tuple[Any, Any, Any, Any]:
        """Returns a question's `stops`, `banned`, `forced` and `choices`."""
        if self.loaded.model.topology == "encoder":
            meant = {"temperature", "top_k", "top_p", "min_p", "typical_p", "banned", "turns"}
            meant |= {"max_new_tokens", "num_samples", "seed"}
            for name in sorted(options.given() - meant):
                raise InputError(
                    f"{name} is for models that write from left to right: leave it out"
                )
        stops = tuple(self._stop(stop) for stop in options.stop)
        banned = tuple(self._banned(each) for each in options.banned)
        frame, eos_id = self._prompt.targets, self._vocabulary.eos_id
        forced = []
        if options.forced:
            forced = [*frame.before, *self._expressed("forced", options.forced)]
        choices = tuple(
            [*frame.before, *self._expressed("choices", choice), eos_id]
            for choice in options.choices
        )
        for name, wanted in (("forced", [forced]), ("choices", choices)):
            longest = max(map(len, wanted), default=0)
            if longest > options.max_new_tokens:
                raise InputError(
                    f"{name} is {longest} tokens long, max_new_tokens = {options.max_new_tokens}"
                )
            both = {*banned} & {token for each in wanted for token in each}
            if both:
                piece = self._vocabulary.piece(min(both))
                raise InputError(f"banned and {name} both have {piece!r}: leave one out")
        least = options.min_new_tokens or 0
        if choices and min(map(len, choices)) < least:
            raise InputError(f"min_new_tokens = {least}: a choice is shorter")
        if options.num_beams > self.loaded.spec.vocab:
            raise InputError(
                f"num_beams = {options.num_beams}: the vocabulary has {self.loaded.spec.vocab} "
                "tokens; a beam is at most as wide"
            )
        if options.num_beams > 1 and self.draft is not None:
            raise InputError("num_beams and draft: a beam search takes no draft; leave one out")
        return stops, banned, forced, choices

    def _check_gaps(self, ids: Sequence[int]) -> None:
        mask_id = self._mask_id()
        if mask_id not in ids:
            piece = self._vocabulary.piece(mask_id)
            raise InputError(f"a text without a gap for the encoder to fill: write {piece} in it")

    def _cut(self, ids: list[int], options: Options) -> list[int]:
        """Returns the ids with the special tokens around them, cut if they must be."""
        loaded, prompt = self.loaded, self._prompt
        alone = loaded.model.topology == "decoder"
        encoder = loaded.model.topology == "encoder"
        frame = self._vocabulary.frame if encoder else prompt.inputs
        stack = loaded.spec.decoder if alone else loaded.spec.encoder
        assert stack is not None
        room = stack.max_length
        new = options.max_new_tokens + self._ahead
        beyond = new if alone else 0
        around = frame.size
        if room is not None and len(ids) + around + beyond > room:
            most = room - beyond - around
            more = f", and {beyond} new ones" if beyond else ""
            if not self.truncate or most < 1:
                raise InputError(
                    f"a text of {len(ids) + around} tokens{more}: the model takes {room}; shorten "
                    f"{'it or max_new_tokens' if beyond else 'it'}, or set truncate=True"
                )
            continued = alone and prompt.kind != "inputs"
            ids = ids[-most:] if continued else ids[:most]
        writer = loaded.spec.decoder
        most_new = writer.max_length if writer is not None and not alone else None
        if most_new is not None and new > most_new:
            raise InputError(
                f"max_new_tokens = {options.max_new_tokens}: the model writes at most "
                f"{most_new - self._ahead}"
            )
        return frame(ids)

    def _expressed(self, name: str, text: str) -> list[int]:
        """Returns the ids of a text that is to be written.

        Raises:
          InputError: if the vocabulary has no tokens for it.
        """
        ids = encode(text, self._vocabulary.targets)
        if not ids or self._vocabulary.unk_id in ids:
            raise InputError(f"{name} {text!r}: the vocabulary cannot express it")
        return ids

    def _stop(self, text: str) -> list[int]:
        """Returns the tokens that say most often that a stop has been written."""
        ids = self._expressed("stop", text)
        # At the beginning of a text SentencePiece puts a space, which a stop need not have.
        spare = len(ids) > 1 and self._vocabulary.decode(ids[1:]).endswith(text)
        return ids[1:] if spare else ids

    def _banned(self, each: str | int) -> int:
        size = self._vocabulary.size
        if isinstance(each, str):
            ids = self._expressed("banned", each)
            if len(ids) > 1:
                pieces = " ".join(map(self._vocabulary.piece, ids))
                raise InputError(
                    f"banned {each!r} is {len(ids)} tokens, {pieces}: only single tokens can be "
                    "banned, also by their ids"
                )
            return ids[0]
        if not 0 <= each < size:
            raise InputError(f"banned {each}: ids are 0..{size - 1}")
        return each

    # Answering.

    def answers(self, questions: Sequence[Question], *, batch_size: int = 32) -> list[list[Answer]]:
        """Returns `num_samples` answers to each question, in order, the best or first drawn first.

        Args:
          questions: as `read` returns them.
          batch_size: most questions at once. Those of like length, and of options that need the
            same compiled function, are answered together.
        """
        check_count("batch_size", batch_size)
        kinds: dict[Any, list[int]] = {}
        for row, question in enumerate(questions):
            options = question.options
            kind = tuple(getattr(options, name) for name in _STATIC)
            # Choices leave no freedom to rows that have none; and greedy rows need no keys.
            kind += (bool(options.choices), options.temperature > 0)
            kinds.setdefault(kind, []).append(row)
        found: list[Any] = [None] * len(questions)
        for rows in kinds.values():
            sizes = [len(questions[row].ids) for row in rows]
            for places in by_size(sizes, batch_size):
                together = [rows[place] for place in places]
                batch = [questions[row] for row in together]
                for row, answer in zip(together, self._batch(batch), strict=True):
                    found[row] = answer
        return found

    def stream(self, question: Question) -> Iterator[str]:
        """Yields the answer to one question in pieces, as they are written.

        Raises:
          InputError: an encoder, a beam search or several samples.
        """
        options = question.options
        if self.loaded.model.topology == "encoder":
            raise InputError("an encoder fills gaps all at once: it cannot be streamed")
        if not self.streams(options):
            raise InputError("fill, beams and several samples cannot be streamed: leave them out")
        state, advance = self._begin([question])
        said = ""
        while True:
            state, (generated, done) = advance(state, 1)
            (answer,) = self._read_rows([question], jax.device_get(generated))[0]
            finished = bool(jax.device_get(done)[0])
            text = answer.text if finished else _certain(answer.text, options.stop)
            if text.startswith(said) and len(text) > len(said):
                yield text[len(said) :]
                said = text
            if finished:
                return

    def _batch(self, questions: Sequence[Question]) -> list[list[Answer]]:
        if self.loaded.model.topology == "encoder":
            return self._infilled(questions)
        if questions[0].options.num_beams > 1:
            return self._searched(questions)
        state, advance = self._begin(questions)
        _, (generated, _) = advance(state, np.iinfo(np.int32).max)
        return self._read_rows(questions, jax.device_get(generated))

    def _begin(self, questions: Sequence[Question]) -> tuple[Any, Callable[[Any, int], Any]]:
        """Reads the prompts, and returns what takes so many steps from there."""
        loaded, draft, n = self.loaded, self.draft, questions[0].options.num_samples
        batch, room = self._prompts(loaded, questions), self._room(questions)
        rows = len(next(iter(batch.values())))
        settings = self._settings(questions, rows)
        asked = settings.constraints.repetition_penalty is not None or draft == "prompt"
        seeds = None
        if questions[0].options.temperature:
            seeds = np.zeros((rows, 2), np.uint32)
            seeds[: len(questions)] = [(each.options.seed, each.number) for each in questions]
        params, functions = loaded.decoding_params, loaded.functions
        state = functions.begin(params, batch, seeds, room, n, self._ahead, asked)
        if draft is None:
            return state, lambda state, steps: functions.advance(
                params, state, settings, np.int32(steps)
            )
        memory = references = draft_params = draft_model = None
        if isinstance(draft, str):
            if "encoder_input_tokens" in batch:
                inside = batch["encoder_segment_ids"] > 0
                references = np.where(inside, batch["encoder_input_tokens"], -1).repeat(n, axis=0)
        else:
            draft_params, draft_model = draft.decoding_params, draft.model.unstacked
            prompts = self._prompts(draft, questions)
            theirs = draft.functions.begin(draft_params, prompts, None, room, n, self._ahead, False)
            memory = DraftMemory.begin(theirs.cache)
        state = Speculation.begin(state, memory)
        return state, lambda state, steps: functions.speculate(
            params,
            draft_params,
            state,
            settings,
            np.int32(steps),
            references,
            draft_model,
            self.draft_length,
        )

    def _searched(self, questions: Sequence[Question]) -> list[list[Answer]]:
        options, loaded = questions[0].options, self.loaded
        batch = self._prompts(loaded, questions)
        rows = len(next(iter(batch.values())))
        penalties = np.ones(rows, np.float32)
        penalties[: len(questions)] = [each.options.length_penalty for each in questions]
        found = loaded.functions.search(
            loaded.decoding_params,
            batch,
            self._settings(questions, rows, repeat=1),
            penalties,
            self._room(questions),
            options.num_beams,
            options.num_samples,
            options.early_stopping,
        )
        return self._read_rows(questions, jax.device_get(found))

    def _infilled(self, questions: Sequence[Question]) -> list[list[Answer]]:
        loaded, vocabulary = self.loaded, self._vocabulary
        options = questions[0].options
        repeated = [each for each in questions for _ in range(options.num_samples)]
        assert loaded.spec.encoder is not None
        length = bucket(max(len(each.ids) for each in questions), loaded.spec.encoder.max_length)
        rows = num_rows(len(repeated), loaded.layout, loaded.mesh)
        tokens, segments = padded([each.ids for each in repeated], rows, length)
        seeds = np.zeros((rows, 2), np.uint32)
        for row, each in enumerate(repeated):
            sample = row % options.num_samples
            seeds[row] = each.options.seed, each.number * options.num_samples + sample
        batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": segments}
        settings = dataclasses.replace(self._settings(repeated, rows, repeat=1), limits=None)
        mask_id = self._mask_id()
        banned: Any = np.array(settings.constraints.banned)
        banned[..., mask_id] = True
        settings = dataclasses.replace(settings, constraints=Constraints(banned=banned))
        found = jax.device_get(
            loaded.functions.infill(
                loaded.params,
                batch,
                (tokens == mask_id) & (segments > 0),
                settings,
                seeds if options.temperature else None,
                np.int32(options.turns),
            )
        )
        frame, answers = vocabulary.frame, []
        for row, each in enumerate(repeated):
            ids = found.tokens[row, : len(each.ids)]
            gain = float(found.log_probabilities[row].sum())
            inner = ids[len(frame.before) : len(ids) - len(frame.after)]
            answers.append(Answer(vocabulary.decode(inner), ids, gain, gain))
        n = options.num_samples
        return [answers[row : row + n] for row in range(0, len(answers), n)]

    def _prompts(self, loaded: "Loaded", questions: Sequence[Question]) -> dict[str, np.ndarray]:
        """Returns prompts in few sizes, so that there are few compilations."""
        stack = loaded.spec.encoder or loaded.spec.decoder
        assert stack is not None
        room = stack.max_length
        if room is not None and loaded.spec.encoder is None:
            # The start token is before them, and the answers behind.
            taken = self._room(questions) + self._ahead
            room = max(room - taken, *(len(each.ids) for each in questions))
        return prompt_batch(
            loaded.model.topology,
            [each.ids for each in questions],
            num_rows=num_rows(len(questions), loaded.layout, loaded.mesh),
            length=bucket(max(len(each.ids) for each in questions), room),
            prefix=self._prompt.bidirectional,
            start_id=loaded.spec.start_id,
        )

    def _room(self, questions: Sequence[Question]) -> int:
        """Returns the room for answers, one of few; no more than the decoder has positions for."""
        most = max(each.options.max_new_tokens for each in questions)
        stack = self.loaded.spec.decoder
        assert stack is not None
        if stack.max_length is None:
            return bucket(most)
        alone = self.loaded.spec.encoder is None
        taken = max(len(each.ids) for each in questions) if alone else 0
        return bucket(most, stack.max_length - taken - self._ahead)

    def _settings(
        self, questions: Sequence[Question], rows: int, *, repeat: int | None = None
    ) -> Settings:
        """Returns the options of `rows` rows as arrays, those of each question `repeat` times."""
        every = [each.options for each in questions]
        given = frozenset[str]().union(*(options.given() for options in every))
        repeat = every[0].num_samples if repeat is None else repeat
        row_of = np.repeat(np.minimum(np.arange(rows), len(questions) - 1), repeat)

        def numbers(name: str, dtype: Any) -> Any:
            if name not in given:
                return None
            values = [getattr(options, name) for options in every]
            return np.asarray([_OFF.get(name) if v is None else v for v in values], dtype)[row_of]

        def sequences(name: str, align: Literal["left", "right"] = "left") -> Any:
            """Returns `[rows, n, longest]` int32, -1 where there is nothing, in few sizes."""
            lists = [getattr(each, name) for each in questions]
            if not any(lists):
                return None
            count = power_of_two(max(map(len, lists)))
            longest = power_of_two(max(len(ids) for each in lists for ids in each))
            found = np.full((len(lists), count, longest), -1, np.int32)
            for row, each in enumerate(lists):
                if each:
                    packed = pack_sequences(each, align=align)
                    part = (
                        slice(-packed.shape[1], None)
                        if align == "right"
                        else slice(packed.shape[1])
                    )
                    found[row, : len(each), part] = packed
            return found[row_of]

        vocab, size = self.loaded.spec.vocab, self._vocabulary.size
        never: Any = np.arange(vocab) >= size  # the embedding may be padded
        if any(each.banned for each in questions):
            never = np.tile(never, (len(questions), 1))
            for row, each in enumerate(questions):
                never[row, list(each.banned)] = True
            never = never[row_of]
        forced: Any = None
        if any(each.forced for each in questions):
            longest = power_of_two(max(len(each.forced) for each in questions))
            forced = np.full((len(questions), longest), -1, np.int32)
            for row, each in enumerate(questions):
                forced[row, : len(each.forced)] = each.forced
            forced = forced[row_of]
        limits = np.asarray([options.max_new_tokens for options in every], np.int32)[row_of]
        limits[len(questions) * repeat :] = 1  # rows that ask nothing
        drawn = every[0].temperature > 0
        return Settings(
            eos_id=self._vocabulary.eos_id,
            limits=limits,
            sampling=Sampling(
                temperature=numbers("temperature", np.float32) if drawn else None,
                top_k=numbers("top_k", np.int32),
                top_p=numbers("top_p", np.float32),
                min_p=numbers("min_p", np.float32),
                typical_p=numbers("typical_p", np.float32),
            ),
            constraints=Constraints(
                repetition_penalty=numbers("repetition_penalty", np.float32),
                presence_penalty=numbers("presence_penalty", np.float32),
                min_new_tokens=numbers("min_new_tokens", np.int32),
                banned=never,
                forced=forced,
                choices=sequences("choices"),
                stops=sequences("stops", "right"),
            ),
            logits_fn=every[0].logits_fn,
        )

    def _read_rows(self, questions: Sequence[Question], found: Any) -> list[list[Answer]]:
        """Returns the answers that rows of tokens are."""
        n = questions[0].options.num_samples
        scores = getattr(found, "scores", found.log_probabilities)
        answers = []
        for row, question in enumerate(questions):
            own = []
            for at in range(row * n, row * n + n):
                tokens = found.tokens[at, : found.lengths[at]]
                text = self._text(question, tokens)
                own.append(
                    Answer(text, tokens, float(found.log_probabilities[at]), float(scores[at]))
                )
            answers.append(own)
        return answers

    def _text(self, question: Question, tokens: np.ndarray) -> str:
        if self.fill:
            return self._vocabulary.decode(fill_in(question.ids, tokens, self._vocabulary))
        text = self._vocabulary.decode(tokens)
        return text[
            : min(
                (at for stop in question.options.stop if (at := text.find(stop)) >= 0),
                default=len(text),
            )
        ]


def _certain(text: str, stops: Sequence[str]) -> str:
    """Returns what further tokens will not change: no half of a character, and of no stop."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    for stop in stops:
        for size in range(min(len(stop), len(text)), 0, -1):
            if text.endswith(stop[:size]):
                text = text[:-size]
                break
    return text
