"""Complete answers: batches of requests, decoded, streamed, searched or filled."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.decoding import Constraints, DraftMemory, Generated, Sampling, Speculation
from t5lite.errors import InputError
from t5lite.inference.answer import Answer, answer_of, broken, text_of
from t5lite.inference.batching import by_size, check_count
from t5lite.inference.context import certain, without_last_bytes
from t5lite.inference.options import STATIC
from t5lite.inference.request import Request
from t5lite.inference.requirements import not_finite
from t5lite.inference.sizes import fitting, positions_of, prompts_of, sized
from t5lite.inference.steps import TO_THE_END, Steps
from t5lite.objectives.masked_lm import mask_of


class Draft(NamedTuple):
    """A smaller model of the same vocabulary that proposes tokens; `params` may be prepared."""

    engine: Steps
    params: Any

    @classmethod
    def of(cls, draft: Any) -> "Draft | str | None":
        """Returns a draft as an engine takes it: of a loaded model, "prompt" or None."""
        return cls(draft.engine, draft.decoding_params) if hasattr(draft, "engine") else draft


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """Answers requests with prepared parameters; see `Engine.generate`."""

    engine: Steps
    params: Any
    draft: Draft | str | None = None
    draft_length: int = 4

    @property
    def lookahead(self) -> int:
        """Most tokens read beyond an answer."""
        return 0 if self.draft is None else self.draft_length

    def outcomes(
        self, requests: Sequence[Request], *, batch_size: int
    ) -> list[list[Answer] | InputError]:
        """Returns the answers to each request, or its error."""
        check_count("batch_size", batch_size)
        batches: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            shared = [getattr(request.options, name) for name in STATIC]
            shape = request.bidirectional, request.options.num_log_probabilities > 0
            batches.setdefault((*shared, *shape, request.rules), []).append(index)
        model, lookahead = self.engine.model, self.lookahead
        outcomes: list[Any] = [None] * len(requests)
        for indices in batches.values():
            sizes = [len(requests[index].ids) for index in indices]
            for rows in by_size(sizes, batch_size):
                for part in fitting(model, [indices[row] for row in rows], requests, lookahead):
                    answers = self._answered([requests[index] for index in part])
                    for index, answer in zip(part, answers, strict=True):
                        outcomes[index] = answer
        return outcomes

    def _answered(self, requests: Sequence[Request]) -> list[list[Answer] | InputError]:
        if self.engine.model.topology == "encoder":
            return self._infilled(requests)
        if requests[0].options.num_beams > 1:
            return self._searched(requests)
        state, decode = self._started(requests)
        _, (generated, _) = decode(state, TO_THE_END)
        return self._read(requests, jax.device_get(generated))

    def _started(self, requests: Sequence[Request]) -> tuple[Any, Callable]:
        """Returns the state after the prompts, and a function `(state, steps) -> (state, read)`."""
        params, draft, lookahead = self.params, self.draft, self.lookahead
        num_samples, functions = requests[0].options.num_samples, self.engine.functions
        models = [draft.engine.model] if isinstance(draft, Draft) else []
        batch, sizes = sized(self.engine, requests, lookahead, models)
        settings = self.engine.settings(requests, rows=len(batch["seeds"]), repeat=num_samples)
        sizes |= {"num_samples": num_samples, "draft_length": lookahead}
        num_top = max(request.options.num_log_probabilities for request in requests)
        state = functions.prefill(params, batch, num_top=num_top, **sizes)
        if draft is None:
            return state, lambda state, steps: functions.decode(params, state, settings, steps)
        memory = references = draft_params = model = None
        if isinstance(draft, Draft):
            model = draft.engine.model.unstacked
            draft_params = draft.engine.prepare(draft.params)
            prompts = sized(draft.engine, requests, lookahead, [self.engine.model])[0]
            prefilled = draft.engine.functions.prefill(draft_params, prompts, **sizes)
            memory = DraftMemory.of(prefilled.cache)
        elif "encoder_input_tokens" in batch:
            valid = batch["encoder_segment_ids"] > 0
            references = np.where(valid, batch["encoder_input_tokens"], -1)
            references = references.repeat(num_samples, axis=0)

        def speculate(state: Any, steps: Any) -> Any:
            arguments = (params, draft_params, state, settings, references, steps)
            return functions.speculate(*arguments, draft_model=model, draft_length=lookahead)

        return Speculation.of(state, memory), speculate

    def _searched(self, requests: Sequence[Request]) -> list[list[Answer] | InputError]:
        options = requests[0].options
        batch, sizes = sized(self.engine, requests, 0)
        rows = len(batch["seeds"])
        penalties = np.ones(rows, np.float32)
        penalties[: len(requests)] = [request.options.length_penalty for request in requests]
        settings = dataclasses.replace(
            self.engine.settings(requests, rows=rows), sampling=Sampling()
        )
        beams = self.engine.functions.search(
            self.params,
            batch,
            settings,
            penalties,
            num_beams=options.num_beams,
            num_samples=options.num_samples,
            early_stopping=options.early_stopping,
            **sizes,
        )
        return self._read(requests, jax.device_get(beams))

    def _infilled(self, requests: Sequence[Request]) -> list[list[Answer] | InputError]:
        num_samples = requests[0].options.num_samples
        vocabulary: Any = self.engine.words
        repeated = [request for request in requests for _ in range(num_samples)]
        batch = prompts_of(
            self.engine, repeated, limit=positions_of([self.engine.model], "encoder")
        )
        tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        for row, request in enumerate(repeated):
            number = request.number * num_samples + row % num_samples
            batch["seeds"][row] = request.options.seed, number
        settings, mask_id = self.engine.settings(repeated, rows=len(tokens)), mask_of(vocabulary)
        rules = settings.constraints
        banned: Any = np.array(rules.banned)
        banned[mask_id] = True
        settings = dataclasses.replace(
            settings,
            limits=None,
            constraints=Constraints(banned=banned, bias_ids=rules.bias_ids, bias=rules.bias),
        )
        steps = np.ones(len(tokens), np.int32)
        steps[: len(repeated)] = [request.options.refinement_steps for request in repeated]
        masked = (tokens == mask_id) & (segments > 0)
        filled = self.engine.functions.infill(self.params, batch, masked, settings, steps)
        filled, frame, answers = jax.device_get(filled), vocabulary.frame, []
        for row, request in enumerate(repeated):
            ids = filled.tokens[row, : len(request.ids)]
            gains = filled.log_probabilities[row, : len(ids)]
            total = float(gains.sum())
            inner = ids[len(frame.before) : len(ids) - len(frame.after)]
            answers.append(Answer(vocabulary.decode(inner), ids, total, total, gains))
        samples = [answers[at : at + num_samples] for at in range(0, len(answers), num_samples)]
        return [self._checked(group, [False] * num_samples) for group in samples]

    def pieces(self, request: Request) -> Iterator[str]:
        """Yields the answer to a request as it is generated."""
        state, decode = self._started([request])
        shown, finished, vocabulary = "", False, self.engine.words
        cleans_up = getattr(vocabulary, "cleans_up", False)
        while not finished:
            state, read = decode(state, np.int32(1))
            generated, done = jax.device_get(read)
            (outcome,) = self._read([request], generated)
            if isinstance(outcome, InputError):
                raise outcome
            (answer,) = outcome
            finished, text = bool(done[0]) or answer.finish_reason == "stop", answer.text
            if not finished:
                tokens = without_last_bytes(answer.tokens, vocabulary)
                text = text_of(request, tokens, vocabulary)
                text = certain(text, request.options.stop, cleans_up=cleans_up)
            if text.startswith(shown) and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text

    def _read(self, requests: Sequence[Request], generated: Any) -> list[list[Answer] | InputError]:
        n = requests[0].options.num_samples
        # Beam search has no first answer if rules allow none.
        stuck = (generated.lengths == 0) & (np.arange(len(generated.lengths)) % n == 0)
        if isinstance(generated, Generated):
            stuck = generated.stuck
        outcomes = []
        for index, request in enumerate(requests):
            part = range(index * n, (index + 1) * n)
            answers = [answer_of(request, generated, row, self.engine.vocabulary) for row in part]
            outcomes.append(self._checked(answers, [bool(stuck[row]) for row in part]))
        return outcomes

    def _checked(self, answers: list[Answer], stuck: Sequence[bool]) -> list[Answer] | InputError:
        """Returns answers, or the error of numbers that are not finite or rules without a token."""
        if broken(answers):
            return not_finite("the model's logits", params=self.params, model=self.engine.model)
        if any(stuck):
            after = max(len(answers[stuck.index(True)].tokens) - 1, 0)
            return InputError(
                f"no token is allowed after {after}: banned, no_repeat_ngram_size, choices or "
                "logits_fn exclude all; relax one of them"
            )
        return answers
