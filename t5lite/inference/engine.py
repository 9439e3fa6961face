"""The engine: a model's compiled functions, which take parameters as an argument."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5lite.errors import InputError
from t5lite.inference.answer import Answer
from t5lite.inference.embedding import EmbedRequest, embed
from t5lite.inference.generation import Draft, Generation
from t5lite.inference.predict import Predictor, PredictRequest, predict
from t5lite.inference.predictions import Prediction
from t5lite.inference.request import Request
from t5lite.inference.scoring import Score, ScoreRequest, score
from t5lite.inference.steps import Steps


@dataclasses.dataclass(frozen=True)
class Engine(Steps):
    """Compiled functions of a model, without parameters: others of the same shapes compile nothing.

    Functions compile at the first call of each size: prompts and outputs of up to 16, 32, 64, …
    tokens, batches of 1, 2, 4, … rows. Two engines of an equal model, layout and mesh share them.
    `Steps` has the arguments, and the functions for one batch.
    """

    def generate(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        batch_size: int = 32,
        draft: Draft | str | None = None,
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
        draft: Draft | str | None = None,
        draft_length: int = 4,
    ) -> list[list[Answer] | InputError]:
        """Does as `generate`, with an error in place of answers where there is one."""
        generation = Generation(self, self.prepare(params), draft, draft_length)
        return generation.outcomes(requests, batch_size=batch_size)

    def stream(
        self,
        params: Any,
        request: Request,
        *,
        draft: Draft | str | None = None,
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
        return Generation(self, self.prepare(params), draft, draft_length).pieces(request)

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
