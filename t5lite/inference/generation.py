"""Texts to answers: prompts in batches of few sizes, options as arrays, and answers as text."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from t5lite.data import Vocabulary
from t5lite.decoding import Constraints, DraftMemory, Settings, Speculation
from t5lite.errors import InputError, unknown
from t5lite.framing import Frame
from t5lite.inference.answers import prompt_batch
from t5lite.inference.batching import bucket, by_size, check_count, num_rows, padded
from t5lite.inference.context import (
    certain,
    continuation,
    text_after,
    up_to_stop,
    without_last_bytes,
)
from t5lite.inference.defaults import Rules, check_defaults, ignored, options_with, rules_of
from t5lite.inference.finite import not_finite
from t5lite.inference.gaps import encode, fill_in
from t5lite.inference.options import RULES, STATIC, Options
from t5lite.inference.questions import Answer, Question, settings_of
from t5lite.objectives import PROMPTS, Prompt, start_of
from t5lite.objectives.masked_lm import mask_of

if TYPE_CHECKING:
    from t5lite.inference.loaded import Loaded

__all__ = ["Answer", "Generator", "Question"]


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
                f"no tokenizer in {folder}: neither vocabulary/ nor a Hugging Face tokenizer; "
                "copy them there, or give one: load(folder, vocabulary=...)"
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
        check_defaults(self.loaded.generation, spec=self.loaded.spec, where=folder)
        if told := self.loaded.say_once("generation", ignored(self.loaded.generation, model.spec)):
            warnings.warn(
                f"{folder} says of generation what is ignored: {', '.join(told)}", stacklevel=2
            )

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
    def _rules(self) -> Rules:
        """The tokens that the model's files end, begin and bar answers with."""
        loaded = self.loaded
        return rules_of(loaded.generation, self._vocabulary, topology=loaded.model.topology)

    @property
    def _continues(self) -> bool:
        """Whether an answer goes on where the text ends, rather than being a text of its own."""
        return self.loaded.model.topology != "encoder" and self._prompt.kind != "inputs"

    @property
    def _prompt(self) -> Prompt:
        """How a text is read."""
        return self.loaded.prompts.of(self.prompt or ("inputs" if self.fill else None))

    def _positions(self, side: str) -> int | None:
        """Returns the positions that a side of the model, and of its draft, has; None: any."""
        models = [self.loaded, *([] if isinstance(self.draft, str | None) else [self.draft])]
        lengths = [getattr(each.spec, side).max_length for each in models]
        return min((length for length in lengths if length is not None), default=None)

    def _mask_id(self) -> int:
        vocabulary: Any = self._vocabulary
        try:
            return mask_of(vocabulary)
        except InputError as error:
            raise InputError(
                f"{self.loaded.folder} holds an encoder, which fills gaps; {error}"
            ) from error

    # Reading.

    def options(self, chosen: Mapping[str, Any]) -> Options:
        """Returns options by name; those that are not chosen are as the model's files say, and
        else as in `Options`."""
        loaded, draft = self.loaded, self.draft is not None
        return options_with(loaded.generation, chosen, spec=loaded.spec, draft=draft)

    def read(self, text: str, options: Options | None = None, *, number: int = 0) -> Question:
        """Returns a text as ids, with its options; None: those of the model.

        Raises:
          InputError: no text or an empty one, one too long for the model, an unknown sentinel, or
            options that the vocabulary cannot express or that contradict each other.
        """
        if not isinstance(text, str):
            raise InputError(f"{text!r} is not a text")
        options = self.options({}) if options is None else options
        ids = encode(text, self._vocabulary)
        if not ids:
            raise InputError("the text is empty: give at least one token")
        if self.loaded.model.topology == "encoder":
            self._check_gaps(ids)
        framed = self._cut(ids, options, frame=self._frame)
        return Question(framed, options, number, *self._expected(options, text))

    def read_ids(
        self, ids: Sequence[int], options: Options | None = None, *, number: int = 0, text: str = ""
    ) -> Question:
        """Returns the question of ids with their special tokens, which are read as they are.

        Args:
          ids: `[n]`, at least one.
          options: as for `read`.
          number: as for `read`.
          text: that they stand for, as far as `forced` and `choices` go on from it.

        Raises:
          InputError: as `read` does.
        """
        if not len(ids):
            raise InputError("the example is empty: it has no token that the model reads")
        options = self.options({}) if options is None else options
        frame, body = self._frame, [*map(int, ids)]
        inside = body[len(frame.before) : len(body) - len(frame.after)]
        if frame(inside) == body:
            body = inside
        else:
            frame = Frame()
        if self.loaded.model.topology == "encoder":
            self._check_gaps(body)
        framed = self._cut(body, options, frame=frame)
        return Question(framed, options, number, *self._expected(options, text))

    def check(self, options: Options) -> None:
        """Raises the InputError that `read` raises for any text with such options, if it does."""
        self._expected(options)

    def streams(self, options: Options) -> bool:
        """Whether an answer can come in pieces."""
        several = options.num_beams > 1 or options.num_samples > 1
        return not (self.fill or several or self.loaded.model.topology == "encoder")

    def _expected(
        self, options: Options, text: str = ""
    ) -> tuple[tuple[int, ...], list[int], tuple[list[int], ...]]:
        """Returns a question's `banned`, `forced` and `choices`, as they stand behind a text."""
        if self.loaded.model.topology == "encoder":
            for name in sorted(options.changed()):
                if not RULES[name].encoder:
                    raise InputError(f"{name} is not supported by encoders, which only fill masks")
        for stop in options.stop:
            self._check_stop(stop)
        banned = tuple(self._banned(each) for each in options.banned)
        rules = self._rules
        begins = () if rules.forced_first is None else (rules.forced_first,)
        before = begins or self._prompt.targets.before
        ends = self._vocabulary.eos_id
        if ends not in rules.eos_ids:
            ends = rules.eos_ids[0]
        forced = list(begins)
        if options.forced:
            forced = self._behind("forced", text, options.forced, before)
        choices = tuple(
            [*self._behind("choices", text, choice, before), ends] for choice in options.choices
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
        for choice, ids in zip(options.choices, choices, strict=True):
            if len(ids) - 1 < least:  # without its EOS
                raise InputError(
                    f"min_new_tokens = {least}: the choice {choice!r} has {len(ids) - 1} tokens"
                )
        different = len({*map(tuple, choices)})
        if choices and options.num_beams > 1 and options.num_samples > different:
            raise InputError(
                f"num_samples = {options.num_samples}: a beam search writes each of the "
                f"{different} choices once; ask for at most so many"
            )
        self._check_some_left(banned, ends_only=least > 0)
        if options.num_beams > self.loaded.spec.vocab:
            raise InputError(
                f"num_beams = {options.num_beams}: the vocabulary has {self.loaded.spec.vocab} "
                "tokens; a beam is at most as wide"
            )
        if options.num_beams > 1 and self.draft is not None:
            raise InputError("num_beams and draft: a beam search takes no draft; leave one out")
        return banned, forced, choices

    def _check_some_left(self, banned: Sequence[int], *, ends_only: bool) -> None:
        """Raises an InputError if no token is left that could be written."""
        out, rules = {*banned, *self._rules.banned}, self._rules
        if self.loaded.model.topology == "encoder":
            out.add(self._mask_id())
        elif ends_only and self._vocabulary.size - len(out | set(rules.eos_ids)) < 1:
            raise InputError(
                "banned leaves no token but those that end an answer, which min_new_tokens forbids "
                "at first: ban fewer, or leave min_new_tokens out"
            )
        if self._vocabulary.size - len(out) < 1:
            raise InputError("banned leaves no token of the vocabulary: ban fewer")

    def _check_gaps(self, ids: Sequence[int]) -> None:
        mask_id = self._mask_id()
        if mask_id not in ids:
            piece = self._vocabulary.piece(mask_id)
            raise InputError(f"a text without a gap for the encoder to fill: write {piece} in it")

    @property
    def _frame(self) -> Frame:
        """The special tokens around a text."""
        encoder = self.loaded.model.topology == "encoder"
        return self._vocabulary.frame if encoder else self._prompt.inputs

    def _cut(self, ids: list[int], options: Options, *, frame: Frame) -> list[int]:
        """Returns the ids with the special tokens around them, cut if they must be."""
        alone = self.loaded.model.topology == "decoder"
        encoder = self.loaded.model.topology == "encoder"
        if alone:  # the start token is read anyway
            ids = start_of(self._vocabulary, self.loaded.spec.start_id).without(ids)
        room = self._positions("decoder" if alone else "encoder")
        new = options.max_new_tokens + self._ahead
        beyond = new if alone else 0
        around = frame.size
        if room is not None and len(ids) + around + beyond > room:
            most = room - beyond - around
            if beyond and most < 1:  # truncation would not help
                names = "max_new_tokens" + (" and draft_length" if self._ahead else "")
                raise InputError(
                    f"{names}: {beyond} new tokens and a text of at least {around + 1}; the model "
                    f"takes {room}: choose at most {room - around - 1} new ones"
                )
            more = f", and {beyond} new ones" if beyond else ""
            if not self.truncate or most < 1:
                raise InputError(
                    f"a text of {len(ids) + around} tokens{more}: the model takes {room}; shorten "
                    f"{'it or max_new_tokens' if beyond else 'it'}, or set truncate=True"
                )
            ids = ids[-most:] if self._continues else ids[:most]
        most_new = None if alone or encoder else self._positions("decoder")
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

    def _check_stop(self, stop: str) -> None:
        """Raises an InputError if no tokens have a stop in their text."""
        ids = encode(stop, self._vocabulary.targets)
        if self._vocabulary.unk_id not in ids and stop in self._vocabulary.decode(ids):
            return
        # It may still be part of the text of longer tokens.
        if not self.loaded.stops_of((stop,), continued=self._continues).is_possible():
            raise InputError(f"stop {stop!r}: the vocabulary cannot express it")

    def _behind(self, name: str, text: str, more: str, begins: Sequence[int]) -> list[int]:
        """Returns the ids of what is to be written behind a text, and what answers begin with.

        Raises:
          InputError: if the vocabulary has no tokens for it there.
        """
        ids = self._expressed(name, more)
        if self._continues and text:
            found = continuation(text, more, self._vocabulary)
            if found is None:
                raise InputError(
                    f"{name} {more!r}: the vocabulary cannot write it behind {text[-20:]!r}; move "
                    "the border to the end of a word"
                )
            ids = found
        return ids if ids[: len(begins)] == [*begins] else [*begins, *ids]

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

        Raises:
          InputError: numbers that are NaN or infinite, or rules that leave no token to write.
        """
        found = []
        for each in self.outcomes(questions, batch_size=batch_size):
            if isinstance(each, InputError):
                raise each
            found.append(each)
        return found

    def outcomes(
        self, questions: Sequence[Question], *, batch_size: int = 32
    ) -> list[list[Answer] | InputError]:
        """Returns what `answers` does, and in place of an answer the error that it raises."""
        check_count("batch_size", batch_size)
        kinds: dict[Any, list[int]] = {}
        for row, question in enumerate(questions):
            options = question.options
            kind = tuple(getattr(options, name) for name in STATIC)
            # Rows with and without choices, or with and without draws, cannot share a batch.
            kind += (bool(options.choices), options.temperature > 0)
            kinds.setdefault(kind, []).append(row)
        found: list[Any] = [None] * len(questions)
        for rows in kinds.values():
            sizes = [len(questions[row].ids) for row in rows]
            for places in by_size(sizes, batch_size):
                for together in self._fitting([rows[place] for place in places], questions):
                    batch = [questions[row] for row in together]
                    for row, answer in zip(together, self._batch(batch), strict=True):
                        found[row] = answer
        return found

    def _fitting(self, rows: list[int], questions: Sequence[Question]) -> Iterator[list[int]]:
        """Yields rows in groups whose longest text and longest answer fit the positions together.

        Each row fits alone; rows are in the order of their lengths.
        """
        room = self._positions("decoder") if self.loaded.model.topology == "decoder" else None
        together: list[int] = []
        most = 0
        for row in rows:
            new = max(most, questions[row].options.max_new_tokens)
            if together and room is not None and len(questions[row].ids) + new + self._ahead > room:
                yield together
                together, new = [], questions[row].options.max_new_tokens
            together, most = [*together, row], new
        yield together

    def stream(self, question: Question) -> Iterator[str]:
        """Returns the answer to one question in pieces, as they are written.

        Raises:
          InputError: at once an encoder, a beam search or several samples; and as `answers`.
        """
        options = question.options
        if self.loaded.model.topology == "encoder":
            raise InputError("an encoder fills gaps all at once: it cannot be streamed")
        for name, several in (
            ("fill = True", self.fill),
            (f"num_beams = {options.num_beams}", options.num_beams > 1),
            (f"num_samples = {options.num_samples}", options.num_samples > 1),
        ):
            if several:
                raise InputError(
                    f"{name}: what is written as a whole cannot be streamed; set "
                    f"{name.split()[0]} to {'False' if self.fill else 1}, or use generate"
                )
        return self._pieces(question)

    def _pieces(self, question: Question) -> Iterator[str]:
        state, advance = self._begin([question])
        said = ""
        while True:
            state, (generated, done) = advance(state, 1)
            (outcome,) = self._read_rows([question], jax.device_get(generated))
            if isinstance(outcome, InputError):
                raise outcome
            finished = bool(jax.device_get(done)[0])
            text = outcome[0].text
            if not finished:
                tokens = without_last_bytes(outcome[0].tokens, self._vocabulary)
                cleans_up = getattr(self._vocabulary, "cleans_up", False)
                stops = question.options.stop
                text = certain(self._text(question, tokens), stops, cleans_up=cleans_up)
            if text.startswith(said) and len(text) > len(said):
                yield text[len(said) :]
                said = text
            if finished:
                return

    def _batch(self, questions: Sequence[Question]) -> list[list[Answer] | InputError]:
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
        asked = settings.constraints.reads_prompts or draft == "prompt"
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

    def _searched(self, questions: Sequence[Question]) -> list[list[Answer] | InputError]:
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

    def _infilled(self, questions: Sequence[Question]) -> list[list[Answer] | InputError]:
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
                np.int32(options.refinement_steps),
            )
        )
        frame, answers = vocabulary.frame, []
        for row, each in enumerate(repeated):
            ids = found.tokens[row, : len(each.ids)]
            gain = float(found.log_probabilities[row].sum())
            inner = ids[len(frame.before) : len(ids) - len(frame.after)]
            answers.append(Answer(vocabulary.decode(inner), ids, gain, gain))
        n = options.num_samples
        several = [answers[row : row + n] for row in range(0, len(answers), n)]
        return [self._checked(each, [False] * n) for each in several]

    def _prompts(self, loaded: "Loaded", questions: Sequence[Question]) -> dict[str, np.ndarray]:
        """Returns prompts in few sizes, so that there are few compilations."""
        alone = loaded.spec.encoder is None
        room = getattr(loaded.spec, "decoder" if alone else "encoder").max_length
        if room is not None and alone:
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
        positions = self._positions("decoder")
        if positions is None:
            return bucket(most)
        alone = self.loaded.spec.encoder is None
        taken = max(len(each.ids) for each in questions) if alone else 0
        return bucket(most, positions - taken - self._ahead)

    def _settings(
        self, questions: Sequence[Question], rows: int, *, repeat: int | None = None
    ) -> Settings:
        """Returns the options of `rows` rows as arrays, those of each question `repeat` times."""
        options = questions[0].options
        stops = options.stop
        return settings_of(
            questions,
            rows,
            repeat=options.num_samples if repeat is None else repeat,
            rules=self._rules,
            size=self._vocabulary.size,
            vocab=self.loaded.spec.vocab,
            stops=self.loaded.stops_of(stops, continued=self._continues) if stops else None,
        )

    def _read_rows(
        self, questions: Sequence[Question], found: Any
    ) -> list[list[Answer] | InputError]:
        """Returns the answers that rows of tokens are."""
        n = questions[0].options.num_samples
        scores = getattr(found, "scores", found.log_probabilities)
        # A beam search has no first answer where rules leave none.
        stuck = getattr(found, "stuck", (found.lengths == 0) & (np.arange(len(scores)) % n == 0))
        outcomes = []
        for row, question in enumerate(questions):
            own = []
            for at in range(row * n, row * n + n):
                tokens = found.tokens[at, : found.lengths[at]]
                text = self._text(question, tokens)
                own.append(
                    Answer(text, tokens, float(found.log_probabilities[at]), float(scores[at]))
                )
            outcomes.append(self._checked(own, stuck[row * n : row * n + n].tolist()))
        return outcomes

    def _checked(self, answers: list[Answer], stuck: list[bool]) -> list[Answer] | InputError:
        """Returns a question's answers, or what is wrong with them; `stuck` says which of them
        rules left no token for."""
        if any(math.isnan(answer.log_probability) for answer in answers):
            return not_finite(self.loaded, "the model's logits")
        if any(stuck):
            after = max(len(answers[stuck.index(True)].tokens) - 1, 0)
            return InputError(
                f"no token is left to write after {after}: banned, no_repeat_ngram_size, choices "
                "or logits_fn forbid all; loosen one of them"
            )
        return answers

    def _text(self, question: Question, tokens: np.ndarray) -> str:
        if self.fill:
            return self._vocabulary.decode(fill_in(question.ids, tokens, self._vocabulary))
        if tokens.size and int(tokens[-1]) in self._rules.eos_ids:
            tokens = tokens[:-1]
        context = question.ids if self._continues else []
        return up_to_stop(text_after(context, tokens, self._vocabulary), question.options.stop)
