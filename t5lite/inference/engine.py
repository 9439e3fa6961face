"""The engine: a model's compiled functions, which take parameters as an argument."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from t5lite.data import Vocabulary
from t5lite.decoding import (
    Constraints,
    DraftMemory,
    Generated,
    Sampling,
    Settings,
    Speculation,
    State,
)
from t5lite.errors import InputError
from t5lite.inference.answer import Answer, answer_of, broken, text_of
from t5lite.inference.batching import bucket, by_size, check_count, num_rows, prompt_batch
from t5lite.inference.context import certain, without_last_bytes
from t5lite.inference.embedding import EmbedRequest, embed
from t5lite.inference.finite import Source, not_finite
from t5lite.inference.functions import Functions, functions_of, prepare_of
from t5lite.inference.options import STATIC
from t5lite.inference.predict import Predictor, PredictRequest, predict
from t5lite.inference.predictions import Prediction
from t5lite.inference.request import Request
from t5lite.inference.scoring import Score, ScoreRequest, score
from t5lite.inference.settings import settings_of
from t5lite.models import Model
from t5lite.objectives.masked_lm import mask_of
from t5lite.parallel import Layout

_ALL = np.int32(np.iinfo(np.int32).max)  # steps: until every row has ended


class Draft(NamedTuple):
    """A smaller model of the same vocabulary that proposes tokens.

    Args:
      engine: of it.
      params: of it, prepared or not.
    """

    engine: "Engine"
    params: Any


@dataclasses.dataclass(frozen=True)
class Engine:
    """Compiled functions of a model, without parameters: others of the same shapes compile nothing.

    Functions compile at the first call of each size: prompts and outputs of up to 16, 32, 64, …
    tokens, batches of 1, 2, 4, … rows. Two engines of an equal model, layout and mesh share them.

    Args:
      model: what is computed.
      vocabulary: of the token ids; None for a model that reads no text.
      layout: how parameters and batches are sharded over `mesh`.
      mesh: the devices.
    """

    model: Model
    vocabulary: Vocabulary | None = dataclasses.field(compare=False)
    layout: Layout
    mesh: Mesh

    @property
    def functions(self) -> Functions:
        """The compiled functions."""
        return functions_of(self.model, self.layout, self.mesh)

    # Parameters.

    def prepare(self, params: Any, *, dtype: Any = None) -> Any:
        """Returns parameters as decoding reads them: an array a layer, sharded by `layout`.

        It keeps a copy of the layers beside the parameters that it is given; see `Model.unstack`.
        Only `prefill`, `decode` and `generate` need it; the latter calls it itself, each time.

        Args:
          params: of `model`, on any mesh of these devices.
          dtype: to cast to; None for each as it is.
        """
        if dtype is not None:
            cast = lambda leaf: leaf.astype(dtype)  # noqa: E731
            params = jax.tree.map(cast, params)
        if self.model.spec.decoder is None or self._is_prepared(params):
            return params
        return prepare_of(self.model, self.layout, self.mesh)(params)

    def _is_prepared(self, params: Any) -> bool:
        """Whether no stack of layers is in one array."""
        for side in ("encoder", "decoder"):
            stack = getattr(self.model.spec, side)
            if stack is not None and stack.num_periods and not stack.shared_layers:
                return "layers" not in params[side]
        return True

    # One batch, step by step: what a server calls.

    def prefill(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        cache_length: int,
        capacity: int | None = None,
        rows: int | None = None,
        num_top: int = 0,
    ) -> State:
        """Reads the prompts of requests, one row each.

        Args:
          params: prepared.
          requests: at least one.
          cache_length: decoder tokens of a row in the cache: a prompt with its start token, and the
            output. Rows of equal cache length can be inserted into each other's batches.
          capacity: most tokens generated a row; None for as many as the longest request asks for.
          rows: of the batch, at least as many as requests; None for the next of few sizes.
          num_top: most probable tokens recorded at each step, for requests that ask for them.

        Raises:
          InputError: if a request does not fit the cache.
        """
        batch = self._prompts(requests, limit=self._most(requests, cache_length), rows=rows)
        width = batch["decoder_input_tokens"].shape[1] if "decoder_lengths" in batch else 1
        if capacity is None:
            capacity = bucket(_longest(requests), cache_length - width + 1)
        return self.functions.prefill(
            params, batch, cache_length=cache_length, capacity=capacity, num_top=num_top
        )

    def settings(self, requests: Sequence[Request], *, rows: int | None = None) -> Settings:
        """Returns the settings of a batch of requests; rows after them are padding.

        Args:
          requests: at least one, of equal `rules` and `logits_fn`.
          rows: of the batch; None for the next of few sizes.
        """
        count = num_rows(len(requests), self.layout, self.mesh) if rows is None else rows
        return self._settings(requests, count)

    def decode(
        self, params: Any, state: State, settings: Settings, *, steps: int | None = None
    ) -> State:
        """Appends at most `steps` tokens to each row; None: generates to the end.

        Args:
          params: prepared.
          state: as `prefill`, `insert` or `decode` returned it; its memory is reused.
          settings: of its rows.
          steps: other numbers compile nothing.
        """
        count = _ALL if steps is None else np.int32(steps)
        return self.functions.decode(params, state, settings, count)[0]

    def insert(self, running: Any, rows: Sequence[int], new: Any) -> Any:
        """Replaces whole rows of a running batch, so that requests enter it between two steps.

        Args:
          running: a `State`, whose memory is reused, or its `Settings`.
          rows: that the new ones replace; those out of range are dropped.
          new: a state or settings of `len(rows)` rows.

        Raises:
          InputError: another cache length, or prompts, outputs or rules longer than there is room
            for in the running batch.
        """
        functions, at = self.functions, np.asarray(rows, np.int32)
        if isinstance(running, Settings):
            return functions.insert_settings(running, at, new)
        return functions.insert(running, at, new)

    def answers(self, requests: Sequence[Request], state: State) -> list[Answer]:
        """Returns what the first rows of a state hold as the answers to requests, one row each."""
        generated = jax.device_get(state.generated)
        return [
            answer_of(request, generated, row, self.vocabulary)
            for row, request in enumerate(requests)
        ]

    @property
    def words(self) -> Vocabulary:
        """The vocabulary.

        Raises:
          InputError: if there is none.
        """
        if self.vocabulary is None:
            raise InputError("the engine has no vocabulary, which text needs")
        return self.vocabulary

    # Whole answers.

    def generate(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        batch_size: int = 32,
        draft: "Draft | str | None" = None,
        draft_length: int = 4,
    ) -> list[list[Answer]]:
        """Answers requests.

        Args:
          params: prepared; others are prepared first, at each call.
          requests: of any options. Those of like length, and of options that need the same
            compiled function, are answered together.
          batch_size: most requests at once.
          draft: for speculative decoding: a smaller model, or "prompt", which looks tokens up in
            the prompt and the output.
          draft_length: tokens that it proposes at a time.

        Returns:
          `num_samples` answers to each request, in order, the best or first drawn first.

        Raises:
          InputError: numbers that are NaN or infinite, or rules that leave no token.
        """
        outcomes = self.outcomes(
            params, requests, batch_size=batch_size, draft=draft, draft_length=draft_length
        )
        for outcome in outcomes:
            if isinstance(outcome, InputError):
                raise outcome
        return outcomes  # type: ignore[return-value]

    def outcomes(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        batch_size: int = 32,
        draft: "Draft | str | None" = None,
        draft_length: int = 4,
    ) -> list[list[Answer] | InputError]:
        """Does as `generate`, with an error in place of answers where there is one."""
        check_count("batch_size", batch_size)
        lookahead = 0 if draft is None else draft_length
        params = self.prepare(params)
        batches: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            shared = [getattr(request.options, name) for name in STATIC]
            shape = request.bidirectional, request.options.num_log_probabilities > 0
            batches.setdefault((*shared, *shape, request.rules), []).append(index)
        outcomes: list[Any] = [None] * len(requests)
        for indices in batches.values():
            sizes = [len(requests[index].ids) for index in indices]
            for places in by_size(sizes, batch_size):
                for together in self._fitting([indices[i] for i in places], requests, lookahead):
                    part = [requests[index] for index in together]
                    answers = self._answered(params, part, draft, draft_length)
                    for index, answer in zip(together, answers, strict=True):
                        outcomes[index] = answer
        return outcomes

    def stream(
        self,
        params: Any,
        request: Request,
        *,
        draft: "Draft | str | None" = None,
        draft_length: int = 4,
    ) -> Iterator[str]:
        """Returns the answer to a request in pieces, as they are generated.

        Args:
          params, draft, draft_length: see `generate`.
          request: of one greedy or drawn answer.

        Raises:
          InputError: at once, an encoder, beam search or several samples; and as `generate`.
        """
        options = request.options
        if self.model.topology == "encoder":
            raise InputError("an encoder fills gaps all at once: it cannot be streamed")
        for name, several in (
            ("fill = True", request.fill),
            (f"num_beams = {options.num_beams}", options.num_beams > 1),
            (f"num_samples = {options.num_samples}", options.num_samples > 1),
        ):
            if several:
                raise InputError(
                    f"{name}: an answer that is only complete at the end cannot be streamed; set "
                    f"{name.split()[0]} to {'False' if request.fill else 1}, or use generate",
                    field=name.split()[0],
                )
        return self._pieces(self.prepare(params), request, draft, draft_length)

    # Other questions to a model; parameters are those of `model`, not prepared.

    def score(
        self, params: Any, requests: Sequence[ScoreRequest], *, batch_size: int = 32
    ) -> list[Score | InputError]:
        """Returns how likely the model finds each text; see `scoring.score`."""
        return score(self, params, requests, vocabulary=self.vocabulary, batch_size=batch_size)

    def embed(
        self, params: Any, requests: Sequence[EmbedRequest], *, batch_size: int = 32
    ) -> list[np.ndarray | InputError]:
        """Returns the vector `[size]` float32 of each text; see `embedding.embed`."""
        return embed(self, params, requests, batch_size=batch_size)

    def predict(
        self,
        params: Any,
        predictor: Predictor,
        requests: Sequence[PredictRequest],
        *,
        batch_size: int = 32,
    ) -> list[Prediction | InputError]:
        """Returns what a head predicts for each text; see `predict.predict`."""
        return predict(self, params, predictor, requests, batch_size=batch_size)

    # Batches of equal static options.

    def _fitting(
        self, indices: list[int], requests: Sequence[Request], lookahead: int
    ) -> Iterator[list[int]]:
        """Yields groups whose longest prompt and longest output fit the positions together.

        Each request fits alone; they are in the order of their lengths.
        """
        decoder = self.model.topology == "decoder"
        positions = self.model.spec.decoder.max_length if decoder else None  # type: ignore
        together: list[int] = []
        most = 0
        for index in indices:
            new = max(most, requests[index].options.max_new_tokens)
            length = len(requests[index].ids) + new + lookahead
            if together and positions is not None and length > positions:
                yield together
                together, new = [], requests[index].options.max_new_tokens
            together, most = [*together, index], new
        yield together

    def _answered(
        self, params: Any, requests: Sequence[Request], draft: Any, draft_length: int
    ) -> list[list[Answer] | InputError]:
        """Returns the answers to the requests of one batch."""
        options = requests[0].options
        if self.model.topology == "encoder":
            return self._infilled(params, requests)
        if options.num_beams > 1:
            return self._searched(params, requests)
        state, decode = self._started(params, requests, draft, draft_length)
        _, (generated, _) = decode(state, _ALL)
        return self._read(params, requests, jax.device_get(generated))

    def _started(
        self, params: Any, requests: Sequence[Request], draft: Any, draft_length: int
    ) -> tuple[Any, Callable]:
        """Returns the state after the prompts, and a function `(state, steps) -> (state, read)`."""
        lookahead = 0 if draft is None else draft_length
        num_samples, functions = requests[0].options.num_samples, self.functions
        others = [draft.engine] if isinstance(draft, Draft) else []
        batch, sizes = self._sized(requests, lookahead, others)
        settings = self._settings(requests, len(batch["seeds"]), repeat=num_samples)
        sizes |= {"num_samples": num_samples, "draft_length": lookahead}
        num_top = max(request.options.num_log_probabilities for request in requests)
        state = functions.prefill(params, batch, num_top=num_top, **sizes)
        if draft is None:
            return state, lambda state, steps: functions.decode(params, state, settings, steps)
        memory = references = theirs = model = None
        if isinstance(draft, Draft):
            model, theirs = draft.engine.model.unstacked, draft.engine.prepare(draft.params)
            prompts = draft.engine._sized(requests, lookahead, [self])[0]
            memory = DraftMemory.of(draft.engine.functions.prefill(theirs, prompts, **sizes).cache)
        elif "encoder_input_tokens" in batch:
            valid = batch["encoder_segment_ids"] > 0
            references = np.where(valid, batch["encoder_input_tokens"], -1)
            references = references.repeat(num_samples, axis=0)

        def speculate(state: Any, steps: Any) -> Any:
            arguments = (params, theirs, state, settings, references, steps)
            return functions.speculate(*arguments, draft_model=model, draft_length=draft_length)

        return Speculation.of(state, memory), speculate

    def _searched(
        self, params: Any, requests: Sequence[Request]
    ) -> list[list[Answer] | InputError]:
        options = requests[0].options
        batch, sizes = self._sized(requests, 0, [])
        rows = len(batch["seeds"])
        penalties = np.ones(rows, np.float32)
        penalties[: len(requests)] = [request.options.length_penalty for request in requests]
        settings = dataclasses.replace(self._settings(requests, rows), sampling=Sampling())
        beams = self.functions.search(
            params,
            batch,
            settings,
            penalties,
            num_beams=options.num_beams,
            num_samples=options.num_samples,
            early_stopping=options.early_stopping,
            **sizes,
        )
        return self._read(params, requests, jax.device_get(beams))

    def _infilled(
        self, params: Any, requests: Sequence[Request]
    ) -> list[list[Answer] | InputError]:
        num_samples = requests[0].options.num_samples
        vocabulary: Any = self.words
        repeated = [request for request in requests for _ in range(num_samples)]
        batch = self._prompts(repeated, limit=self._positions("encoder", []))
        tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        for row, request in enumerate(repeated):
            number = request.number * num_samples + row % num_samples
            batch["seeds"][row] = request.options.seed, number
        settings, mask_id = self._settings(repeated, len(tokens)), mask_of(vocabulary)
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
        filled = self.functions.infill(params, batch, masked, settings, steps)
        filled, frame, answers = jax.device_get(filled), vocabulary.frame, []
        for row, request in enumerate(repeated):
            ids = filled.tokens[row, : len(request.ids)]
            gains = filled.log_probabilities[row, : len(ids)]
            total = float(gains.sum())
            inner = ids[len(frame.before) : len(ids) - len(frame.after)]
            answers.append(Answer(vocabulary.decode(inner), ids, total, total, gains))
        several = [answers[at : at + num_samples] for at in range(0, len(answers), num_samples)]
        return [self._checked(params, each, [False] * num_samples) for each in several]

    def _pieces(
        self, params: Any, request: Request, draft: Any, draft_length: int
    ) -> Iterator[str]:
        state, decode = self._started(params, [request], draft, draft_length)
        shown, finished, vocabulary = "", False, self.words
        cleans_up = getattr(vocabulary, "cleans_up", False)
        while not finished:
            state, read = decode(state, np.int32(1))
            generated, done = jax.device_get(read)
            (outcome,) = self._read(params, [request], generated)
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

    # Requests to arrays.

    def _positions(self, side: str, others: Sequence["Engine"]) -> int | None:
        """Returns the positions of a side of the models; None for any number."""
        specs = [self.model.spec, *(engine.model.spec for engine in others)]
        lengths = [getattr(spec, side).max_length for spec in specs]
        return min((length for length in lengths if length is not None), default=None)

    def _most(self, requests: Sequence[Request], cache_length: int) -> int | None:
        """Returns how many tokens of a prompt there is room for in a cache."""
        if self.model.topology == "encoder_decoder":
            taken, most = _longest(requests), self._positions("encoder", [])
            if taken > cache_length:
                raise InputError(
                    f"cache_length = {cache_length}: a request asks for {taken} new tokens",
                    field="cache_length",
                )
            return most
        start = 0 if self.model.start_id is None else 1
        longest = max(len(request.ids) + request.options.max_new_tokens for request in requests)
        if longest + start - 1 > cache_length:
            raise InputError(
                f"cache_length = {cache_length}: a request takes {longest + start - 1} tokens, "
                "prompt and max_new_tokens together",
                field="cache_length",
            )
        return cache_length - start

    def _sized(
        self, requests: Sequence[Request], lookahead: int, others: Sequence["Engine"]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Returns a batch in one of few sizes, and `cache_length` and `capacity` of its state."""
        decoder, longest = self.model.topology == "decoder", max(len(r.ids) for r in requests)
        positions = self._positions("decoder", others)
        taken = (longest if decoder else 0) + lookahead
        capacity = bucket(_longest(requests), None if positions is None else positions - taken)
        limit = self._positions("encoder", []) if not decoder else positions
        if decoder and limit is not None:
            limit = max(limit - capacity - lookahead, longest)
        batch = self._prompts(requests, limit=limit)
        width = batch["decoder_input_tokens"].shape[1] if decoder else 1
        # The last new token is never read.
        return batch, {"cache_length": width + capacity - 1 + lookahead, "capacity": capacity}

    def _prompts(
        self, requests: Sequence[Request], *, limit: int | None, rows: int | None = None
    ) -> dict[str, np.ndarray]:
        """Returns prompts in one of few sizes."""
        topology = self.model.topology
        return prompt_batch(
            "encoder_decoder" if topology == "encoder" else topology,
            [request.ids for request in requests],
            num_rows=num_rows(len(requests), self.layout, self.mesh) if rows is None else rows,
            length=bucket(max(len(request.ids) for request in requests), limit),
            prefix=requests[0].bidirectional,
            start_id=self.model.start_id,
            seeds=[(request.options.seed, request.number) for request in requests],
        )

    def _settings(self, requests: Sequence[Request], rows: int, *, repeat: int = 1) -> Settings:
        vocab = self.model.spec.vocab
        return settings_of(
            requests, rows=rows, vocab=vocab, vocabulary=self.vocabulary, repeat=repeat
        )

    # Arrays to answers.

    def _read(
        self, params: Any, requests: Sequence[Request], generated: Any
    ) -> list[list[Answer] | InputError]:
        """Returns the answers of rows, `num_samples` to each request."""
        n = requests[0].options.num_samples
        # Beam search has no first answer where rules leave none.
        stuck = (generated.lengths == 0) & (np.arange(len(generated.lengths)) % n == 0)
        if isinstance(generated, Generated):
            stuck = generated.stuck
        outcomes = []
        for index, request in enumerate(requests):
            part = range(index * n, (index + 1) * n)
            answers = [answer_of(request, generated, row, self.vocabulary) for row in part]
            outcomes.append(self._checked(params, answers, [bool(stuck[row]) for row in part]))
        return outcomes

    def _checked(
        self, params: Any, answers: list[Answer], stuck: Sequence[bool]
    ) -> list[Answer] | InputError:
        """Returns answers, or the error that numbers or rules make of them."""
        if broken(answers):
            return not_finite(Source(params, self.model), "the model's logits")
        if any(stuck):
            after = max(len(answers[stuck.index(True)].tokens) - 1, 0)
            return InputError(
                f"no token is left to write after {after}: banned, no_repeat_ngram_size, choices "
                "or logits_fn forbid all; loosen one of them"
            )
        return answers


def _longest(requests: Sequence[Request]) -> int:
    """Returns the most tokens that a request asks for."""
    return max(request.options.max_new_tokens for request in requests)
